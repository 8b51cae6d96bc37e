"""`transform=` of eager, indexed and streaming sources: batches, states, features, refusals."""

import io
import json
import logging

import datasets
import jax
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Features, Image

from datarax import (
    HFEagerConfig,
    HFEagerSource,
    HFIndexedSource,
    HFStreamingSource,
    Pipeline,
    from_hf,
)
from datarax.transforms import center_crop, random_resized_crop, resize

CROP = random_resized_crop(8, flip=0.5)


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    files = []
    for row in range(30):
        file, size = io.BytesIO(), (20 + row, 40 - row)
        noise = PIL.Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
        noise.resize(size).save(file, "JPEG")
        files.append({"bytes": file.getvalue(), "path": None})
    columns = {"image": files, "label": [row % 3 for row in range(30)], "row": list(range(30))}
    features = datasets.Dataset.from_dict({"row": [0]}).features
    return datasets.Dataset.from_dict(
        columns,
        Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), **features}),
    )


def as_bytes(batch):
    return {name: np.asarray(column).tobytes() for name, column in batch.items()}


def test_an_eager_source_applies_it_once(photos):
    seen = []

    def small(record):
        seen.append(record["row"])
        return resize(8)(record)

    source = HFEagerSource.from_dataset(photos, transform=small, shuffle=True, seed=3)
    assert len(seen) == 33  # first, middle and last of them show what it makes
    assert source.features["label"] == photos.features["label"]
    assert source.element_spec()["image"].shape == (8, 8, 3)
    batch = source.get_batch(5)
    for row, image in zip(batch["row"], batch["image"], strict=True):
        whole = np.asarray(photos[int(row)]["image"].resize((8, 8), PIL.Image.Resampling.BILINEAR))
        assert np.abs(np.asarray(image).astype(int) - whole).mean() < 6  # draft of a tiny image
    assert len(seen) == 33
    assert set(source.columns) == {"image", "label", "row"}


def test_an_indexed_source_gives_the_eager_sources_batches_where_nothing_is_drawn(photos):
    options = {"transform": center_crop(8), "shuffle": True, "seed": 3}
    eager = HFEagerSource.from_dataset(photos, **options)
    indexed = HFIndexedSource.from_dataset(photos, **options)
    assert eager.get_state() == indexed.get_state()
    for size in (7, 30, 5):
        assert as_bytes(eager.get_batch(size)) == as_bytes(indexed.get_batch(size))
    eager.set_state(json.loads(json.dumps(indexed.get_state())))


def test_draws_depend_on_seed_epoch_and_record_alone(photos):
    def source(**options):
        return HFIndexedSource.from_dataset(photos, transform=CROP, seed=3, **options)

    def by_row(batch):
        images = [np.asarray(image).tobytes() for image in batch["image"]]
        return dict(zip(np.asarray(batch["row"]).tolist(), images, strict=True))

    first = by_row(source().get_batch(30))
    shuffled = source(shuffle=True, num_threads=1)
    parts = [by_row(shuffled.get_batch(size)) for size in (7, 11, 12)]
    assert {row: image for part in parts for row, image in part.items()} == first
    second = by_row(shuffled.get_batch(30))
    assert all(first[row] != second[row] for row in range(30))
    assert by_row(shuffled.get_batch_at(0, 30, jax.random.key(4))) == second
    blocks = source(num_threads=16).read_batches(3, 10)
    flat = {n: c.reshape(30, *c.shape[2:]) for n, c in blocks.columns.items()}
    assert by_row(flat) == first


def test_batches_are_equal_for_any_threads_and_after_any_state(photos):
    def source(threads):
        return HFIndexedSource.from_dataset(
            photos, transform=CROP, shuffle=True, seed=1, num_threads=threads
        )

    sources = [source(threads) for threads in (1, 2, 16)]
    states, batches = [], []
    for _ in range(12):
        states.append(sources[0].get_state())
        found = [as_bytes(one.get_batch(7)) for one in sources]
        assert found[0] == found[1] == found[2]
        batches.append(found[0])
    for at in np.random.default_rng(0).permutation(12).tolist():
        sources[at % 3].set_state(json.loads(json.dumps(states[at])))
        assert as_bytes(sources[at % 3].get_batch(7)) == batches[at]


def test_another_transform_is_a_warning_once(photos, caplog):
    def named(record):
        return record | {"image": np.zeros((8, 8, 3), np.uint8)}

    indexed = HFIndexedSource.from_dataset(photos, transform=CROP)
    other = HFIndexedSource.from_dataset(photos, transform=named)
    state = indexed.get_state()
    assert len(state["transform"]) == 16
    with caplog.at_level(logging.WARNING, "datarax.sources"):
        indexed.set_state(state)
        assert not caplog.records
        other.set_state(state)
        other.set_state(state)
    assert ["another transform" in record.getMessage() for record in caplog.records] == [True]


def test_an_eager_source_refuses_a_transform_that_draws(photos):
    with pytest.raises(ValueError, match=r"draws at random.*HFIndexedSource"):
        HFEagerSource.from_dataset(photos, transform=CROP)
    with pytest.raises(ValueError, match="HFIndexedSource"):
        HFEagerConfig(name="x", split="train", transform=CROP)
    with pytest.raises(TypeError, match="transform=3: expected a function"):
        HFEagerConfig(name="x", split="train", transform=3)


@pytest.mark.parametrize("kind", [HFEagerSource, HFIndexedSource])
def test_bad_rows_are_skipped_and_counted(photos, kind):
    def picky(record):
        if record["row"] % 10 == 9:
            raise ValueError("too dark")
        return resize(8)(record)

    source = kind.from_dataset(photos, transform=picky, on_bad_rows="skip")
    rows = [int(record["row"]) for record in source]
    assert rows == [row for row in range(30) if row % 10 != 9]
    assert source.get_operation_stats()["skipped_count"] == 3
    raising = {"transform": picky, "on_bad_rows": "raise"}
    with pytest.raises(ValueError, match="record 9: too dark"):
        kind.from_dataset(photos, **raising).get_batch(12)


def test_a_pipeline_takes_it(photos):
    source = HFIndexedSource.from_dataset(photos, transform=CROP)
    batches = list(Pipeline(source=source, stages=[], batch_size=8))
    assert [len(batch["image"]) for batch in batches] == [8, 8, 8, 6]


def test_a_stream_takes_one_that_draws(photos, tmp_path):
    photos.to_parquet(tmp_path / "train.parquet")
    config = HFEagerConfig(name=str(tmp_path), split="train", transform=CROP, streaming=True)
    expected = as_bytes(HFIndexedSource.from_dataset(photos, transform=CROP).get_batch(30))
    for source in (
        HFEagerSource(config),
        from_hf(str(tmp_path), "train", transform=CROP, streaming=True),
    ):
        assert type(source) is HFStreamingSource
        assert as_bytes(source.get_batch(30)) == expected


def test_from_hf_reads_by_number_where_a_transform_draws(photos, tmp_path):
    photos.to_parquet(tmp_path / "train.parquet")
    eager = from_hf(str(tmp_path), "train", transform=resize(8))
    indexed = from_hf(str(tmp_path), "train", transform=CROP)
    assert (type(eager), type(indexed)) == (HFEagerSource, HFIndexedSource)
    assert indexed.get_batch(4)["image"].shape == (4, 8, 8, 3)
