"""HFStreamingSource: every name of its page, any column, and errors that name the row."""

import io
import json
import re

import datasets
import flax.nnx as nnx
import jax
import numpy as np
import PIL.Image
import pytest

from datarax import HFEagerConfig, HFEagerSource, HFStreamingConfig, HFStreamingSource, from_hf
from datarax.sources import hf_source

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "vector": datasets.List(datasets.Value("float64"), length=3),
        "tokens": datasets.List(datasets.Value("int32")),
        "nested": {"a": datasets.Value("int64"), "b": datasets.Value("string")},
        "maybe": datasets.Value("int32"),
    }
)
ROWS = 24


def png(size=(4, 3), mode="RGB", colour=0) -> bytes:
    file = io.BytesIO()
    PIL.Image.new(mode, size, (colour,) * len(mode) if len(mode) > 1 else colour).save(file, "PNG")
    return file.getvalue()


def row(n: int) -> dict:
    return {
        "image": {"bytes": png(colour=n), "path": None},
        "label": n % 2,
        "vector": [n, n + 0.5, -n],
        "tokens": list(range(n % 4)),
        "nested": {"a": n, "b": str(n)},
        "maybe": None if n % 5 == 0 else n,
    }


def mixed(rows: int = ROWS, **changed) -> datasets.Dataset:
    table = [row(n) for n in range(rows)]
    for n, change in changed.items():
        table[int(n[1:])] |= change
    return datasets.Dataset.from_list(table, features=FEATURES)


@pytest.mark.parametrize("shuffle", [False, True])
def test_columns_are_those_of_the_eager_source(shuffle):
    data = mixed()
    eager = HFEagerSource.from_dataset(data)
    for of in (data, data.to_iterable_dataset(num_shards=3)):
        source = HFStreamingSource.from_dataset(of, shuffle=shuffle, shuffle_buffer_size=10)
        assert source.element_spec() == eager.element_spec()
        batch, whole = source.get_batch(ROWS), eager.get_batch(ROWS)
        order = np.asarray(batch["nested"]["a"])
        assert sorted(order.tolist()) == list(range(ROWS))
        for found, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True):
            assert type(found) is type(expected)
            assert found.dtype == expected.dtype
            for one, other in zip(found, expected[order], strict=True):
                assert np.array_equal(one, other)


def test_the_page(tmp_path):
    mixed().to_parquet(tmp_path / "train.parquet")
    config = HFStreamingConfig(
        name=str(tmp_path),
        split="train",
        streaming=True,
        shuffle=True,
        shuffle_buffer_size=7,
        exclude_keys={"image", "absent"},
    )
    source = HFStreamingSource(config, rngs=nnx.Rngs(0))
    assert source.dataset_name == str(tmp_path)
    assert source.split_name == "train"
    assert source.is_iterable_mode
    assert source.random_order_buffer_depth == 7
    assert source.selected_keys is None
    assert source.rejected_keys == {"image", "absent"}
    assert source.is_random_order
    assert source.length is None
    assert source.name == f"HFStreamingSource({tmp_path}:train)"
    assert source.get_dataset_info().features is not None
    assert set(next(iter(source))) == set(FEATURES) - {"image"}
    assert source.get_operation_stats() == {"applied_count": 1, "skipped_count": 0}
    source.reset_operation_stats()
    assert source.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
    first = source.get_batch(5)
    source.reset()
    assert len(source.get_batch(5)["label"]) == len(first["label"])
    state = json.loads(json.dumps(source.get_state()))
    copy = source.copy()
    copy.set_state(state)
    assert np.array_equal(copy.get_batch(9)["label"], source.get_batch(9)["label"])
    with pytest.raises(NotImplementedError, match="cannot be indexed"):
        source.get_batch_at(0, 4, jax.random.key(0))
    with pytest.raises(NotImplementedError):
        source.process({})
    loaded = HFStreamingSource(HFStreamingConfig(name=str(tmp_path), split="train[:50%]"))
    assert (len(loaded), loaded.is_iterable_mode) == (ROWS // 2, False)
    assert nnx.state(source, nnx.Variable) is not None
    assert jax.jit(lambda s: s.epoch.get_value() + 1)(source) == 1


def test_an_eager_configuration_can_ask_for_a_stream(tmp_path):
    mixed().to_parquet(tmp_path / "train.parquet")
    fields = {"name": str(tmp_path), "split": "train", "include_keys": {"label"}}
    config = HFEagerConfig(**fields, streaming=True, shuffle=True, shuffle_buffer_size=10)
    source = HFEagerSource(config, rngs=nnx.Rngs(0), name="mine")
    assert type(source) is HFStreamingSource
    assert (source.name, source.random_order_buffer_depth) == ("mine", 10)
    assert type(HFEagerSource(config=config)) is HFStreamingSource
    assert type(HFEagerSource(HFEagerConfig(**fields))) is HFEagerSource
    given = HFEagerSource.from_dataset(mixed(), streaming=True)
    assert type(given) is HFStreamingSource
    assert type(from_hf(**fields, streaming=True)) is HFStreamingSource
    assert hf_source.HFStreamingSource is HFStreamingSource


def test_from_hf_takes_what_fits(tmp_path, caplog):
    mixed().to_parquet(tmp_path / "train.parquet")
    with caplog.at_level("INFO", "datarax.sources.hf_source"):
        assert type(from_hf(str(tmp_path), "train", shuffle=True)) is HFEagerSource
        assert type(from_hf(str(tmp_path), "train[:3]")) is HFEagerSource
    assert re.search(r"is eager \(HFEagerSource\): \d+ rows, about .* of the memory", caplog.text)
    assert "is eager (HFEagerSource): 3 rows" in caplog.text


def late(change: dict, at: int = 1500) -> HFStreamingSource:
    """A stream of 2,000 rows, one of which, far from the first, is changed."""
    table = [{"x": n, "v": [n, n], "t": str(n)} for n in range(2000)]
    table[at] |= change
    features = datasets.Features(
        {
            "x": datasets.Value("int64"),
            "v": datasets.List(datasets.Value("int64")),
            "t": datasets.Value("string"),
        }
    )
    data = datasets.Dataset.from_list(table, features=features)
    return HFStreamingSource.from_dataset(data.to_iterable_dataset(num_shards=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "column 'x', row 0 of shard 3: found None"),
        ({"v": [1, 2, 3]}, r"column 'v', row 0 of shard 3: found \[1, 2, 3\], .* shape \(2,\)"),
        ({"v": None}, "column 'v', row 0 of shard 3: found None"),
        ({"x": 2**40}, "column 'x', row 0 of shard 3: .*does not fit into int32"),
        ({"v": [1, 2**40]}, "column 'v', row 0 of shard 3: .*does not fit into int32"),
    ],
)
def test_a_late_row_that_does_not_fit_is_named(change, message):
    source = late(change)
    for _ in range(15):
        source.get_batch(100)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            source.get_batch(100)
    text = late({"t": None})
    assert [t for _ in range(20) for t in text.get_batch(100)["t"]].count(None) == 1


def test_damaged_images_are_named_or_left_out():
    broken = {"r20": {"image": {"bytes": png()[:40], "path": None}}}
    data = mixed(**broken).to_iterable_dataset(num_shards=2)
    source = HFStreamingSource.from_dataset(data)
    with pytest.raises(ValueError, match=r"row 8 of shard 1: .*on_bad_rows='skip'"):
        source.get_batch(ROWS)
    assert len(source.get_batch(10)["label"]) == 10  # nothing was lost
    for shuffle in (False, True):
        fields = {"on_bad_rows": "skip", "shuffle": shuffle, "shuffle_buffer_size": 30}
        source = HFStreamingSource.from_dataset(data, **fields)
        batch = source.get_batch(ROWS)
        assert sorted(np.asarray(batch["nested"]["a"]).tolist()) == [*range(20), *range(21, ROWS)]
        assert source.get_operation_stats() == {"applied_count": 23, "skipped_count": 1}
    wrong = mixed(r20={"image": {"bytes": png((9, 9), "L"), "path": None}})
    source = HFStreamingSource.from_dataset(_many(wrong, 20))
    with pytest.raises(ValueError, match=r"row 1100 .* mode L and 9x9"):
        list(source.epoch_batches(8))
    sizes = mixed(r3={"image": {"bytes": png((9, 9)), "path": None}})
    source = HFStreamingSource.from_dataset(sizes.to_iterable_dataset())
    assert source.element_spec()["image"].dtype == object
    assert "resize" in str(source.host_columns()[0].error())
    assert source.get_batch(5)["image"][3].shape == (9, 9, 3)


def _many(data: datasets.Dataset, last: int) -> datasets.IterableDataset:
    """More rows than decide what a column is, and then one of `data`."""
    good = [0] * 1100
    return data.select([*good, last]).to_iterable_dataset()


def test_what_cannot_be_read_is_said_at_once():
    with pytest.raises(ValueError, match="both are needed"):
        HFStreamingConfig(name="x")
    with pytest.raises(ValueError, match="exclude each other"):
        HFStreamingConfig(name="x", split="train", include_keys={"a"}, exclude_keys={"b"})
    with pytest.raises(ValueError, match="shuffle_buffer_size=0"):
        HFStreamingConfig(name="x", split="train", shuffle_buffer_size=0)
    with pytest.raises(ValueError, match="timeout=-1"):
        HFStreamingConfig(name="x", split="train", timeout=-1)
    with pytest.raises(TypeError, match="pick a split"):
        HFStreamingSource.from_dataset(datasets.DatasetDict(train=mixed()))
    for data in (mixed(), mixed().to_iterable_dataset()):
        with pytest.raises(ValueError, match="Did you mean 'label'"):
            HFStreamingSource.from_dataset(data, include_keys={"labels"})
        with pytest.raises(ValueError, match="no column is left"):
            HFStreamingSource.from_dataset(data, exclude_keys=set(FEATURES))
    empty = mixed().filter(lambda row: False)
    with pytest.raises(ValueError, match="empty"):
        HFStreamingSource.from_dataset(empty)
    with pytest.raises(ValueError, match="empty"):
        HFStreamingSource.from_dataset(mixed().to_iterable_dataset().filter(lambda row: False))
    with pytest.raises(ValueError, match="transform"):
        HFStreamingSource.from_dataset(mixed().with_transform(lambda rows: rows))


def test_selected_and_shuffled_datasets_keep_their_order():
    data = mixed().shuffle(seed=1).select(range(10))
    source = HFStreamingSource.from_dataset(data, include_keys={"nested"})
    expected = [r["a"] for r in data["nested"]]
    assert np.asarray(source.get_batch(20)["nested"]["a"]).tolist() == expected


def test_a_table_that_is_sorted_by_label_is_said(caplog):
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"label": [0] * 60 + [1] * 60}, features=features)
    HFStreamingSource.from_dataset(data, shuffle_buffer_size=50)
    HFStreamingSource.from_dataset(data, shuffle=True, shuffle_buffer_size=120)
    HFStreamingSource.from_dataset(data.shuffle(seed=0), shuffle=True, shuffle_buffer_size=50)
    assert not caplog.records
    HFStreamingSource.from_dataset(data, shuffle=True, shuffle_buffer_size=50)
    assert "The first 50 rows all have one label ('label')" in caplog.text
