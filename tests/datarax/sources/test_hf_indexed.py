"""`HFIndexedSource`: the eager source's records, order and states, whatever is in the columns."""

import copy
import datetime
import json
import os
import pickle

import datasets
import jax
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from datarax import HFEagerSource, HFIndexedConfig, HFIndexedSource, Pipeline, prefetch_to_device
from datarax.columns import mapped
from datarax.columns.row_reader import RowReader

N = 2300  # Arrow files hold a thousand rows a record batch

FEATURES = datasets.Features(
    {
        "x": datasets.Array2D((3, 4), "float32"),
        "wide": datasets.Value("int64"),
        "label": datasets.ClassLabel(names=["a", "b", "c"]),
        "tokens": datasets.List(datasets.Value("int64")),
        "pixels": datasets.List(datasets.Value("uint8"), length=5),
        "flag": datasets.Value("bool"),
        "double": datasets.Value("float64"),
        "none": datasets.List(datasets.Value("int16")),
        "ragged": datasets.List(datasets.Value("int32")),
        "deep": datasets.List(datasets.List(datasets.Value("int32"))),
        "text": datasets.Value("string"),
        "long": datasets.Value("large_string"),
        "bytes": datasets.Value("binary"),
        "gaps": datasets.Value("string"),
        "date": datasets.Value("date32"),
        "nested": {"y": datasets.Value("float16"), "text": datasets.Value("string")},
    }
)


def row(i):
    return {
        "x": np.full((3, 4), i, np.float32),
        "wide": 2 * i,
        "label": i % 3,
        "tokens": [i, i + 1, 7],
        "pixels": [i % 256] * 5,
        "flag": i % 3 == 0,
        "double": i / 3,
        "none": [],
        "ragged": list(range(i % 5)),
        "deep": [[i], []],
        "text": f"row {i} \N{SNOWMAN}"[: i % 9],
        "long": "ab" * (i % 4),
        "bytes": bytes([i % 256]) * (i % 3),
        "gaps": None if i % 11 == 5 else "here",
        "date": None if i == 2 else datetime.date(2020, 1, 1 + i % 28),
        "nested": {"y": i / 8, "text": str(i)},
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    rows = datasets.Dataset.from_list([row(i) for i in range(N)], features=FEATURES)
    folder = tmp_path_factory.mktemp("indexed") / "rows"
    rows.save_to_disk(folder)
    disk = datasets.load_from_disk(folder)
    order = np.random.default_rng(0).integers(0, N, N)  # some rows twice, others never
    return {"memory": rows, "disk": disk, "mapped": disk.select(order)}


def same(a, b):
    assert a.keys() == b.keys()
    for name, column in a.items():
        if isinstance(column, dict):
            same(column, b[name])
            continue
        assert type(column) is type(b[name])
        if not hasattr(column, "dtype"):
            assert column == b[name]
            continue
        column, other = np.asarray(column), np.asarray(b[name])
        assert (column.dtype, column.shape) == (other.dtype, other.shape), name
        if column.dtype != object:
            assert column.tobytes() == other.tobytes(), name
            continue
        for x, y in zip(column.ravel(), other.ravel(), strict=True):
            assert (type(x), getattr(x, "dtype", None)) == (type(y), getattr(y, "dtype", None))
            assert np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y


@pytest.mark.parametrize("kind", ["memory", "disk", "mapped"])
def test_it_is_the_eager_source_in_all_that_is_asked_of_it(kinds, kind):
    eager = HFEagerSource.from_dataset(kinds[kind], shuffle=True, seed=3)
    indexed = HFIndexedSource.from_dataset(kinds[kind], shuffle=True, seed=3)
    assert indexed.element_spec() == eager.element_spec()
    assert indexed.features == eager.features
    assert indexed.get_state() == eager.get_state()
    assert (len(indexed), indexed.split_name) == (len(eager), eager.split_name)
    told = [
        [(column.name, column.reason, column.fix) for column in source.host_columns()]
        for source in (eager, indexed)
    ]
    assert told[0] == told[1]
    same(eager[-3:], indexed[-3:])
    same(eager[7], indexed[7])
    for size in (1, 100, len(eager)):
        same(eager.get_batch(size), indexed.get_batch(size))
        assert eager.get_state() == indexed.get_state()
    key = jax.random.key(5)
    same(eager.get_batch_at(N - 50, 100, key), indexed.get_batch_at(N - 50, 100, key))
    same(eager.balanced("label").get_batch(50), indexed.balanced("label").get_batch(50))
    same(eager.collect_to_array(), indexed.collect_to_array())


def test_states_restore_either_and_any_number_of_threads_reads_the_same(kinds):
    eager = HFEagerSource.from_dataset(kinds["disk"], shuffle=True)
    sources = [
        HFIndexedSource.from_dataset(kinds["disk"], shuffle=True, num_threads=threads)
        for threads in (1, 2, 16)
    ]
    drawn = np.random.default_rng(1)
    for _ in range(20):
        state = eager.get_state() | {
            "epoch": int(drawn.integers(9)),
            "index": int(drawn.integers(N)),
        }
        for source in (eager, *sources):
            source.set_state(json.loads(json.dumps(state)))
        batch = eager.get_batch(200)
        for source in sources:
            same(batch, source.get_batch(200))
            assert source.get_state() == eager.get_state()


def test_pipelines_views_and_prefetching_give_the_eager_batches(kinds):
    fields = {"shuffle": True, "include_keys": {"x", "label", "text"}}
    eager, indexed = (
        kind.from_dataset(kinds["mapped"], **fields).select(slice(0, 300))
        for kind in (HFEagerSource, HFIndexedSource)
    )

    def noise(batch, key):
        return {**batch, "z": jax.vmap(lambda k: jax.random.normal(k, (4,)))(key)}

    pipelines = [
        Pipeline(source=s.clone(), stages=[noise], batch_size=64) for s in (eager, indexed)
    ]
    for a, b in zip(*pipelines, strict=True):
        same(a, b)
    with prefetch_to_device(indexed.clone(), batch_size=64) as batches:
        for a, b in zip(eager.clone().epoch_batches(64), batches, strict=True):
            same(a, b)


def test_it_is_loaded_by_name_copied_and_pickled(kinds, tmp_path):
    kinds["disk"].select_columns(["wide", "text"]).to_parquet(tmp_path / "train.parquet")
    config = HFIndexedConfig(name=str(tmp_path), split="train[:50]", shuffle=True)
    source = HFIndexedSource(config)
    batch = source.get_batch(20)
    eager = HFEagerSource.from_dataset(
        kinds["disk"].select(range(50)).select_columns(["wide", "text"])
    )
    assert source.fingerprint == eager.fingerprint
    for other in (source.copy(), source.copy(config=config), copy.deepcopy(source)):
        other.reset()
        same(batch, other.get_batch(20))
    reader = source._loaded.rows
    again = pickle.loads(pickle.dumps(reader))
    same(again.read(np.arange(9)).columns, reader.read(np.arange(9)).columns)
    with pytest.raises(TypeError, match="HFIndexedConfig"):
        source.copy(config=eager.config)
    with pytest.raises(ValueError, match=r"HFIndexedSource.from_dataset\(ds, num_threads=2\)"):
        HFIndexedSource.from_dataset(kinds["disk"]).copy(
            config=HFIndexedConfig(name="dataset", split="all", num_threads=2)
        )


def test_columns_of_a_view_are_read_without_the_others(kinds, monkeypatch):
    source = HFIndexedSource.from_dataset(kinds["disk"])
    wanted = []
    read = RowReader.read
    monkeypatch.setattr(
        RowReader,
        "read",
        lambda self, rows, names=None: wanted.append(names) or read(self, rows, names),
    )
    source.balanced("label")
    assert wanted == [{"label"}]


def test_what_cannot_be_is_said(kinds):
    source = HFIndexedSource.from_dataset(kinds["disk"], shuffle=True)
    with pytest.raises(IndexError, match="there is no record 2300"):
        source[N]
    with pytest.raises(IndexError, match="2300 rows, 0 to 2299: there is no row -1"):
        source.read_rows(np.array([0, -1]))
    with pytest.raises(NotImplementedError, match=r"prefetch_to_device.*eager source"):
        jax.jit(lambda t: source.get_batch_at(t, 4, jax.random.key(0)))(3)
    with pytest.raises(ValueError, match="num_threads=0"):
        HFIndexedConfig(name="x", split="train", num_threads=0)
    with pytest.raises(ValueError, match=r"row 1: 4294967296 does not fit into int32"):
        HFIndexedSource.from_dataset(datasets.Dataset.from_dict({"x": [1, 2**32]})).get_batch(2)
    label = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    unnamed = datasets.Dataset(
        pa.table({"label": [0, 1, 0, 3]}), datasets.DatasetInfo(features=label)
    )
    with pytest.raises(ValueError, match="column 'label', row 3: found the label 3"):
        HFIndexedSource.from_dataset(unnamed)


def pictures(sizes, modes=("RGB",)):
    drawn = np.random.default_rng(0)
    images = [
        PIL.Image.fromarray(drawn.integers(0, 255, (h, w, 3), dtype=np.uint8)).convert(mode)
        for i, (w, h) in enumerate(sizes)
        for mode in [modes[i % len(modes)]]
    ]
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("int32")})
    return datasets.Dataset.from_dict(
        {"image": images, "id": range(len(images))}, features=features
    )


MANY = pictures([(8 + i % 3, 6) for i in range(20)])
ALIKE = pictures([(160, 120)] * 60, ("RGB", "L"))


@pytest.mark.parametrize(
    "rows", [MANY, ALIKE, ALIKE.select(range(9))], ids=["many", "alike", "few"]
)
@pytest.mark.parametrize("kept", ["1", "0"], ids=["kept", "decoded then"])
def test_images_are_those_of_the_eager_source(rows, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("DATARAX_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DATARAX_CACHE", kept)
    rows = rows.select(np.random.default_rng(2).permutation(len(rows)))
    indexed = HFIndexedSource.from_dataset(rows, shuffle=True)
    eager = HFEagerSource.from_dataset(rows, shuffle=True)
    assert indexed.element_spec() == eager.element_spec()
    same(eager.get_batch(50), indexed.get_batch(50))
    # What one kind has decoded, the other maps.
    assert len(list(tmp_path.glob("images/*"))) == (kept == "1" and len(rows) == 60)


def damaged(rows, which):
    def cut(row, i):
        stored = row["image"]
        return {
            "image": {**stored, "bytes": stored["bytes"][:90] if i in which else stored["bytes"]}
        }

    encoded = rows.cast_column("image", datasets.Image(decode=False))
    return encoded.map(cut, with_indices=True).cast_column("image", datasets.Image())


@pytest.mark.parametrize("rows", [MANY, ALIKE], ids=["many", "alike"])
@pytest.mark.parametrize("kept", ["1", "0"], ids=["kept", "decoded then"])
def test_a_damaged_image_raises_or_does_not_count(rows, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("DATARAX_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DATARAX_CACHE", kept)
    bad = damaged(rows, {3, 17})
    with pytest.raises(ValueError, match=r"column 'image', row 3: the image cannot be decoded"):
        HFIndexedSource.from_dataset(bad).get_batch(len(bad))
    source = HFIndexedSource.from_dataset(bad, on_bad_rows="skip")
    whole = [i for i in range(len(bad)) if i not in (3, 17)]
    assert [int(record["id"]) for record in source] == whole
    assert source.get_operation_stats() == {"applied_count": len(whole), "skipped_count": 2}
    batches = Pipeline(source=source.clone(), stages=[], batch_size=8)
    assert np.concatenate([batch["id"] for batch in batches]).tolist() == whole
    block = source.read_batches(2, 10)
    assert np.argwhere(~block.valid).tolist() == [[0, 3], [1, 7]]
    assert (block.skipped, block.full, source.get_batch(8)["image"].shape[0]) == (2, 2, 8)


def test_a_removed_file_is_still_read_and_a_truncated_one_is_named(kinds, tmp_path):
    rows = kinds["disk"].select_columns(["x", "text"])
    sources = {}
    for name in ("removed", "truncated"):
        rows.save_to_disk(tmp_path / name)
        held = datasets.load_from_disk(tmp_path / name)
        sources[name] = HFIndexedSource.from_dataset(held)
    before = sources["removed"].get_batch(9)
    (file,) = (tmp_path / "removed").glob("*.arrow")
    file.unlink()
    sources["removed"].reset()
    same(before, sources["removed"].get_batch(9))
    (file,) = (tmp_path / "truncated").glob("*.arrow")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(OSError, match=r"\.arrow has \d+ bytes, and had \d+ when it was opened"):
        sources["truncated"].get_batch(9)


def test_of_large_files_little_memory_is_held(kinds, monkeypatch):
    monkeypatch.setattr(mapped, "SMALL", 0)
    source = HFIndexedSource.from_dataset(kinds["disk"], shuffle=True)
    reader = source._loaded.rows
    assert reader._files.is_large
    same(
        HFEagerSource.from_dataset(kinds["disk"], shuffle=True).get_batch(700),
        source.get_batch(700),
    )


def test_a_function_that_runs_when_rows_are_read_belongs_to_the_source(kinds):
    with pytest.raises(ValueError, match=r"from_dataset\(ds.with_format\(None\), transform="):
        HFIndexedSource.from_dataset(kinds["memory"].with_transform(lambda batch: batch))
