"""Rows that Python makes: what `datasets` gives is what comes, and what cannot is named."""

import io
import json
import time

import datasets
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from datarax import HFStreamingConfig, HFStreamingSource, Pipeline, prefetch_to_device
from trainers import Trainer

Features, Value = datasets.Features, datasets.Value


def source(data, **fields) -> HFStreamingSource:
    return HFStreamingSource.from_dataset(data, **fields)


def generated(*rows, features=None) -> datasets.IterableDataset:
    def generate():
        yield from rows

    return datasets.IterableDataset.from_generator(generate, features=features)


def table(rows: int = 200, shards: int = 2) -> datasets.IterableDataset:
    data = {"x": list(range(rows)), "label": [n % 2 for n in range(rows)]}
    features = Features({"x": Value("int64"), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict(data, features=features).to_iterable_dataset(shards)


def values(of, column="x", batch_size=7) -> list:
    return [v for batch in of.epoch_batches(batch_size) for v in np.asarray(batch[column]).tolist()]


@pytest.mark.parametrize("mapped", [False, True])
def test_three_thousand_columns_take_ten_times_as_long_as_three_hundred(mapped):
    def seconds(count):
        row = {f"c{i}": float(i) for i in range(count)}
        stream = generated(*[row] * 20)
        stream = stream.map(lambda row: {"y": 1}) if mapped else stream
        start = time.process_time()
        # The second epoch reads rows with the features that the first has found.
        read = source(stream)
        assert values(read, "c0") == values(read, "c0") == [0.0] * 20
        return time.process_time() - start

    seconds(10)
    few, many = (min(seconds(count) for _ in range(2)) for count in (300, 3000))
    assert many < 30 * few


def jpeg(seed: int) -> dict:
    y, x = np.mgrid[0:32, 0:32]
    pixels = np.stack([8 * x, 8 * y, 127 + 120 * np.sin((x + seed) / 3)], -1).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG")
    return {"bytes": file.getvalue(), "path": None}


def pictures(*stored) -> datasets.IterableDataset:
    rows = {"image": list(stored or map(jpeg, range(8))), "n": list(range(len(stored) or 8))}
    features = Features({"image": datasets.Image(), "n": Value("int32")})
    return datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"x": 1}, {"x": 2.5}], [1.0, 2.5]),
        ([{"x": "a"}, {"x": None}, {"x": "b"}], ["a", None, "b"]),
        ([{"y": 0, "x": 1}, {"x": 2, "y": 0}, {"x": 3}], [1, 2, 3]),
        ([{"x": None}] * 100 + [{"x": "late"}], [None] * 100 + ["late"]),
        ([{"x": "a"}] * 100 + [{"x": 5}], ["a"] * 100 + [5]),
        ([{"x": 1}] * 100 + [{"x": 2.0}], [1] * 100 + [2]),
        ([{"x": 0.5}] * 100 + [{"x": 2}], [0.5] * 100 + [2.0]),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_of_several_types_come(rows, expected, shuffle):
    found = values(source(generated(*rows), shuffle=shuffle))
    assert sorted(found, key=str) == sorted(expected, key=str) if shuffle else found == expected


def test_lists_are_arrays_whatever_is_read_together():
    rows = [{"x": [1] * (n % 3)} for n in range(100)] + [{"x": [2**40 + 5]}]
    for record, row in zip(source(generated(*rows)), rows, strict=True):
        assert isinstance(record["x"], np.ndarray)
        assert record["x"].dtype == np.int64
        assert record["x"].tolist() == row["x"]
    rows = [{"x": []}] * 100 + [{"x": [1, 2]}]
    assert [len(record["x"]) for record in source(generated(*rows))] == [0] * 100 + [2]


@pytest.mark.parametrize(
    ("first", "late", "found"),
    [
        (1, 2.5, "found 2.5"),
        (1, "a", "found 'a'"),
        (1, None, "found None"),
        (True, 2, "found 2"),
        (0.5, "a", "found 'a'"),
        ([1, 2], [1], r"found \[1\]"),
        ([1, 2], [0.5, 2], r"found \[0.5, 2.0\]"),
        ([[1], [2, 3]], [[1], 2], "found"),
        ({"a": 1}, None, "found None"),
    ],
)
def test_a_late_row_that_fits_no_column_is_named_everywhere(first, late, found):
    rows = [{"x": first}] * 100 + [{"x": late}] + [{"x": first}] * 20
    message = rf"column 'x(\.a)?', row 100 of shard 0: {found}"

    def read(how):
        found = []
        with pytest.raises(ValueError, match=message):
            found.extend(how(source(generated(*rows), on_bad_rows="skip")))
        return len(found)

    assert read(iter) == 100
    assert read(lambda of: of.epoch_batches(10)) == 10
    assert read(lambda of: prefetch_to_device(of, 2, batch_size=10)) == 10
    assert read(lambda of: Pipeline(source=of, stages=[], batch_size=10)) == 10


def test_the_trainer_names_a_late_row_too(tmp_path):
    for number, prices in enumerate(([1, 2, 3, 4], [0.5, 1.5, 2.5, 3.5])):
        lines = [json.dumps({"price": price, "target": 0.5}) for price in prices]
        (tmp_path / f"train-{number}.jsonl").write_text("\n".join(lines))
    config = HFStreamingConfig(name=str(tmp_path), split="train", streaming=True)
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def loss(model, batch):
        return (model(batch["price"][:, None] * 1.0)[:, 0] - batch["target"]) ** 2

    trainer = Trainer(model, HFStreamingSource(config), loss=loss, steps=4, batch_size=2)
    with pytest.raises(ValueError, match=r"column 'price', row 0 of .*train-1.jsonl: found 0.5"):
        trainer.fit()


def test_declared_features_are_the_cure(tmp_path):
    for number, prices in enumerate(([1, 2], [0.5, 3])):
        lines = [json.dumps({"price": price}) for price in prices]
        (tmp_path / f"train-{number}.jsonl").write_text("\n".join(lines))
    features = Features({"price": Value("float32")})
    config = HFStreamingConfig(
        name=str(tmp_path), split="train", streaming=True, download_kwargs={"features": features}
    )
    assert values(HFStreamingSource(config), "price", 3) == [1.0, 2.0, 0.5, 3.0]


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_an_image_that_fits_no_byte_is_named(mode):
    file = io.BytesIO()
    PIL.Image.new(mode, (4, 3), 300).save(file, "TIFF")
    grey = io.BytesIO()
    PIL.Image.new("L", (4, 3), 7).save(grey, "PNG")
    stored = [{"bytes": grey.getvalue(), "path": None}] * 1030
    data = pictures(*stored, {"bytes": file.getvalue(), "path": None})
    for of in (data, data.filter(lambda row: True)):
        with pytest.raises(ValueError, match=f"column 'image', row 1030 .* mode {mode}"):
            list(source(of).epoch_batches(64))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.filter(lambda row: row["n"] != 2),
        lambda data: data.map(lambda row: {"m": row["n"]}),
        lambda data: data.map(lambda row: row, features=data.features),
        lambda data: data.map(lambda row: {"image": row["image"].rotate(90)}),
        lambda data: data.map(lambda row: {"image": row["image"].convert("L")}),
        lambda data: data.map(lambda row: row["image"].thumbnail((8, 8)) or row),
        lambda data: data.map(lambda row: {"image": row["image"].resize((5, 4 + row["n"]))}),
    ],
)  # fmt: skip
def test_pictures_are_pictures_and_their_pixels_those_that_datasets_gives(change):
    data = change(pictures())
    given = [np.asarray(row["image"]) for row in data]
    reader = source(data)
    assert isinstance(reader.features["image"], datasets.Image)
    found = [np.asarray(record["image"]) for record in reader]
    assert len(found) == len(given)
    assert all(map(np.array_equal, found, given))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.decode(num_threads=2),
        lambda data: data.decode(num_threads=2).filter(lambda row: True),
        # `datasets` encodes the half that is filtered as JPEG again.
        lambda data: datasets.interleave_datasets([data, data.filter(lambda row: True)]),
    ],
)
def test_pictures_keep_the_pixels_that_were_stored(change):
    stored = [np.asarray(row["image"]) for row in pictures()]
    for record in source(change(pictures())):
        assert np.array_equal(record["image"], stored[int(record["n"])])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_made_pictures_keep_each_pixel(mode):
    made = PIL.Image.effect_noise((6, 5), 90).convert(mode if mode != "I;16" else "I")
    if mode == "I;16":
        made = PIL.Image.fromarray(np.arange(30, dtype=np.uint16).reshape(5, 6) * 999)
    reader = source(generated({"image": made}, {"image": made}))
    expected = np.asarray(made.convert("L") if mode == "1" else made)
    assert np.array_equal(np.asarray(reader.get_batch(1)["image"][0]), expected)


def test_a_damaged_picture_takes_no_other_row():
    stored = list(map(jpeg, range(8)))
    stored[3] = {"bytes": stored[3]["bytes"][:300], "path": None}
    stored[5] = {"bytes": b"no picture", "path": None}
    data = pictures(*stored)
    for of in (data.filter(lambda row: True), data.map(lambda row: {"m": row["n"]})):
        reader = source(of, on_bad_rows="skip")
        assert values(reader, "n") == [0, 1, 2, 4, 6, 7]
        assert reader.get_operation_stats() == {"applied_count": 6, "skipped_count": 2}
        with pytest.raises(ValueError, match="column 'image', row 3 of shard 0"):
            values(source(of), "n")


def test_labels_and_declared_features_stay():
    mapped = source(table().map(lambda row: {"y": row["x"] + 1}))
    assert mapped.features["label"] == datasets.ClassLabel(names=["a", "b"])
    assert mapped.get_batch(3)["label"].tolist() == [0, 1, 0]
    other = source(table().map(lambda row: {"label": str(row["label"])}))
    assert other.features["label"] == Value("string")
    features = Features({"x": Value("int16"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [{"label": "yes", "x": 1}, {"x": 2, "label": "no"}]
    declared = source(generated(*rows, features=features))
    assert declared.features == features
    assert declared.get_batch(2)["label"].tolist() == [1, 0]
    assert declared.element_spec()["x"].dtype == np.int16


class Mine(Exception):
    """An error of the user's, whose message is made of two values."""

    def __init__(self, what, number):
        super().__init__(what, number)


@pytest.mark.parametrize(
    "error", [KeyError("typo"), ValueError("bad"), FileNotFoundError(2, "none"), Mine("w", 3)]
)
@pytest.mark.parametrize("on_bad_rows", ["raise", "skip"])
def test_an_error_in_ones_own_function_is_ones_own(error, on_bad_rows):
    def mine(row):
        if row["x"] == 170:
            raise type(error)(*error.args)
        return row

    for change in (lambda data: data.map(mine), lambda data: data.filter(lambda r: bool(mine(r)))):
        reader, found = source(change(table()), on_bad_rows=on_bad_rows), []
        with pytest.raises(type(error)) as caught:
            found.extend(int(record["x"]) for record in reader)
        assert found == list(range(170))
        said = "\n".join([str(caught.value), *caught.value.__notes__])
        assert "shard 1, row 70" in said


def test_what_a_broken_generator_gave_before_comes():
    def rows():
        for n in range(100):
            if n == 70:
                raise ValueError("broken file")
            yield {"x": n}

    data = datasets.IterableDataset.from_generator(rows)
    found = []
    with pytest.raises(ValueError, match=r"row 70: the rest cannot be read.*broken file"):
        found.extend(int(record["x"]) for record in source(data))
    assert found == list(range(70))
    assert values(source(data, on_bad_rows="skip")) == list(range(70))
