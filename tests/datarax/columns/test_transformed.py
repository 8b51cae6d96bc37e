"""Rows as a transform makes them: what it is given, what becomes of it, and what is refused."""

import datetime
import io
import logging
import os
import pickle
import threading
import time

import datasets
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import soundfile
from datasets import ClassLabel, Features, Image, List, Value

from datarax.columns.transform import generator, takes_rng
from datarax.columns.transformed import TransformedRows


def file(size=(30, 20), format="JPEG", colour=(90, 60, 30), **options):
    encoded = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(encoded, format, **options)
    return {"bytes": encoded.getvalue(), "path": None}


def photos(count=7):
    return datasets.Dataset.from_dict(
        {
            "image": [file((30 + row, 20), colour=(20 * row, 0, 0)) for row in range(count)],
            "label": [row % 3 for row in range(count)],
        },
        Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])}),
    )


def small(record):
    return record | {"image": record["image"].resize((4, 5))}


def rows(dataset, function, **options):
    return TransformedRows(dataset, function, **options)


def numbers(count=50, **columns):
    return datasets.Dataset.from_dict({"x": range(count), **columns})


# --- what it is given ------------------------------------------------------------------------


def test_a_record_holds_what_hugging_face_gives():
    wave = np.linspace(-0.5, 0.5, 800, dtype=np.float32)
    sound = io.BytesIO()
    soundfile.write(sound, wave, 8000, format="WAV", subtype="FLOAT")
    features = Features(
        {
            "image": Image(),
            "audio": datasets.Audio(),
            "text": Value("string"),
            "tokens": List(Value("int16")),
            "matrix": datasets.Array2D((2, 2), "float32"),
            "words": List(Value("string")),
            "nested": {"x": Value("float32"), "ids": List(Value("int8"))},
            "missing": Value("string"),
        }
    )
    row = {
        "image": file(),
        "audio": {"bytes": sound.getvalue(), "path": None},
        "text": "to be",
        "tokens": [1, 2],
        "matrix": [[1.0, 2.0], [3.0, 4.0]],
        "words": ["to", "be"],
        "nested": {"x": 0.5, "ids": [3]},
        "missing": None,
    }
    longer = row | {"tokens": [1, 2, 3]}
    stored = features.arrow_schema
    table = datasets.table.pa.Table.from_pylist([row, longer], schema=stored)
    seen = []
    rows(datasets.Dataset(table), lambda record: seen.append(record) or {"x": 1})
    record = seen[0]
    assert isinstance(record["image"], PIL.JpegImagePlugin.JpegImageFile)
    assert record["image"].tile  # nothing of it is decoded
    assert record["audio"].keys() == {"array", "sampling_rate"}
    assert (record["audio"]["array"] == wave).all()
    assert record["audio"]["sampling_rate"] == 8000
    assert record["text"] == "to be"
    assert (record["tokens"].dtype, record["tokens"].tolist()) == (np.int16, [1, 2])
    assert (record["matrix"].dtype, record["matrix"].shape) == (np.float32, (2, 2))
    assert record["words"] == ["to", "be"]
    assert record["nested"]["x"] == 0.5
    assert record["nested"]["ids"].dtype == np.int8
    assert record["missing"] is None


def test_an_image_comes_turned_as_its_exif_data_say():
    exif = PIL.Image.Exif()
    exif[274] = 6  # a quarter turn
    image = {"image": [file((40, 20), exif=exif)]}
    dataset = datasets.Dataset.from_dict(image, Features({"image": Image()}))
    assert dataset[0]["image"].size == (20, 40)
    made = rows(dataset, lambda record: record).read(np.array([0])).columns["image"]
    assert (made[0] == np.asarray(dataset[0]["image"])).all()


def test_the_generator_depends_on_the_seed_and_the_record_alone():
    def draw(record, rng):
        return {"x": record["x"], "drawn": rng.random()}

    every = rows(numbers(), draw, num_threads=1).read(np.arange(50), seed=7).columns["drawn"]
    assert every.tolist() == [np.float32(generator(7, row).random()) for row in range(50)]
    assert len(set(every.tolist())) == 50
    for threads in (2, 16):
        some = np.random.default_rng(threads).permutation(50)[:20]
        again = rows(numbers(), draw, num_threads=threads).read(some, seed=7).columns["drawn"]
        assert (again == every[some]).all()
    later = rows(numbers(), draw).read(np.arange(50), seed=8).columns["drawn"]
    assert (later != every).all()


def test_a_dataset_with_other_rows_counts_them_as_its_user_does():
    picked = numbers().select([40, 7, 9])
    made = rows(picked, lambda record, rng: {"x": record["x"], "drawn": rng.random()})
    read = made.read(np.array([2, 0]), seed=1).columns
    assert read["x"].tolist() == [9, 40]
    assert read["drawn"].tolist() == [np.float32(generator(1, row).random()) for row in (2, 0)]


def test_a_generator_is_given_to_who_takes_one():
    assert [takes_rng(f) for f in (lambda r: r, lambda r, rng: r, lambda r, noise: r)] == [0, 1, 1]
    assert takes_rng(lambda r, *, rng=None: r)
    assert not takes_rng(lambda r, size=3: r)
    keyword = rows(numbers(), lambda r, *, rng: {"x": rng.random()}).read(np.array([1]), seed=5)
    assert keyword.columns["x"] == np.float32(generator(5, 1).random())
    with pytest.raises(TypeError, match=r"\(a, b, c\): expected \(record\) or \(record, rng\)"):
        takes_rng(lambda a, b, c: a)
    with pytest.raises(TypeError, match="transform='resize': expected a function"):
        rows(numbers(), "resize")


# --- what becomes of it ----------------------------------------------------------------------


def test_columns_that_stay_keep_their_features_and_others_get_their_own():
    def mixed(record):
        rest = {
            "half": np.float64(0.5),
            "row": [1, 2, 3],
            "name": "x",
            "when": datetime.date.today(),
        }
        return small(record) | rest | {"in": {"a": np.zeros((2, 2), np.int64)}}

    made = rows(photos(), mixed)
    assert made.features == Features(
        {
            "image": Image(),
            "label": ClassLabel(names=["a", "b", "c"]),
            "half": Value("float64"),
            "row": List(Value("int64"), length=3),
            "name": Value("string"),
            "in": {"a": List(List(Value("int64"), length=2), length=2)},
        }
    )
    read = made.read(np.array([6, 0])).columns
    assert {
        name: (column.dtype, column.shape) for name, column in read.items() if name != "in"
    } == {
        "image": (np.uint8, (2, 5, 4, 3)),
        "label": (np.int32, (2,)),
        "half": (np.float32, (2,)),
        "row": (np.int32, (2, 3)),
        "name": (object, (2,)),
        "when": (object, (2,)),
    }
    assert read["in"]["a"].shape == (2, 2, 2)
    assert made.spec()["image"].shape == (5, 4, 3)


def test_a_column_with_other_values_loses_its_class_names():
    changed = rows(photos(), lambda record: {"label": 2 - record["label"]})
    assert changed.features == {"label": Value("int64")}


def test_small_dtypes_stay_as_declared():
    features = Features({"x": Value("uint8"), "y": Value("float16"), "z": Value("bool")})
    dataset = datasets.Dataset.from_dict({"x": [1], "y": [0.5], "z": [True]}, features)
    read = rows(dataset, lambda record: record).read(np.array([0])).columns
    assert [column.dtype for column in read.values()] == [np.uint8, np.float16, bool]


def test_all_rows_as_columns():
    loaded = rows(photos(), lambda r: small(r) | {"name": f"n{r['label']}"}).load()
    assert (loaded.length, loaded.skipped) == (7, 0)
    assert loaded.data["image"].shape == (7, 5, 4, 3)
    assert loaded.data["name"][4] == "n1"
    assert loaded.data["name"].name == "name"
    with pytest.raises(TypeError, match="returns 'n0' for it"):
        jnp.asarray(loaded.data["name"])


def test_rows_can_be_pickled_with_their_transform():
    made = pickle.loads(pickle.dumps(rows(photos(), small)))
    assert made.read(np.arange(7)).columns["image"].shape == (7, 5, 4, 3)


def test_a_jax_array_is_moved_to_the_host_with_a_hint_once(caplog):
    made = rows(numbers(), lambda record: {"y": jnp.float32(record["x"])})
    with caplog.at_level(logging.WARNING):
        assert made.read(np.arange(5)).columns["y"].tolist() == [0, 1, 2, 3, 4]
        made.read(np.arange(5))
    told = [record.getMessage() for record in caplog.records]
    assert sum("'y' as a JAX array" in one and "NumPy" in one for one in told) == 1


# --- what is refused -------------------------------------------------------------------------


def at_30(value):
    def function(record):
        return value(record) if record["x"] == 30 else {"y": np.zeros(3, np.float32)}

    return function


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (lambda r: None, TypeError, "returned None: return a dict"),
        (lambda r: {}, TypeError, "returned {{}}: return a dict"),
        (lambda r: [1], TypeError, "returned a list: return a dict"),
        (lambda r: {1: 2}, TypeError, "a column named 1"),
        (lambda r: {"z": 1}, ValueError, "the columns 'z', and 'y' for the first record"),
        (
            lambda r: {"y": np.zeros(4, np.float32)},
            ValueError,
            "'y': the transform {} returned float32 of shape (4,), and float32 of shape (3,)",
        ),
        (lambda r: {"y": np.zeros(3)}, ValueError, "returned float64 of shape (3,), and float32"),
        (lambda r: {"y": "text"}, ValueError, "returned 'text', and float32 of shape (3,)"),
        (lambda r: 1 / 0, ZeroDivisionError, "record 30: division by zero"),
        (lambda r: os.stat("/none/such"), FileNotFoundError, "record 30: No such file"),
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_what_differs_or_raises_is_an_error_that_names_the_record(value, error, words, threads):
    function = at_30(value)
    made = rows(numbers(), function, num_threads=threads)
    made.read(np.arange(30))
    with pytest.raises(error) as raised:
        made.read(np.arange(20, 40))
    assert "record 30: " in str(raised.value)
    assert words.format(f"{__name__}.{function.__qualname__}") in str(raised.value)
    assert "Raised by the transform" in raised.value.__notes__[0]


def test_the_first_wrong_record_of_the_order_is_the_one_that_is_named():
    def late(record):
        if record["x"] in (5, 17, 33):
            time.sleep(0.001 * (40 - record["x"]))
            raise ValueError("no")
        return record

    order = np.random.default_rng(0).permutation(50)
    first = next(row for row in order if row in (5, 17, 33))
    with pytest.raises(ValueError, match=f"record {first}: no"):
        rows(numbers(), late, num_threads=8).read(order)


def test_an_integer_out_of_range_and_a_label_without_a_name():
    large = rows(numbers(), lambda record: {"y": 2**31 if record["x"] == 9 else 0})
    with pytest.raises(
        ValueError, match="record 9: column 'y': 2147483648 does not fit into int32"
    ):
        large.read(np.arange(10))

    def relabel(record):
        return record | {"label": 5} if record["label"] == 1 and record["x"] == 4 else record

    labels = photos().remove_columns("image").add_column("x", list(range(7)))
    with pytest.raises(ValueError, match="record 4: column 'label': found the label 5"):
        rows(labels, relabel).read(np.arange(7))


def test_lists_of_many_lengths_say_what_to_do():
    ragged = numbers(3, tokens=[[1], [1, 2], [3]])
    with pytest.raises(ValueError, match=r"record 1: column 'tokens'.*Pad, cut.*tokenize"):
        rows(ragged, lambda record: record).read(np.arange(3))


def damaged():
    files = [file(), {"bytes": file((600, 600))["bytes"][:3000], "path": "d/cut.jpg"}, file()]
    files[2] = {"bytes": b"no image", "path": None}
    files.append(file(colour=(200, 0, 0)))
    return datasets.Dataset.from_dict({"image": files}, Features({"image": Image()}))


def test_a_damaged_image_is_named_with_its_file():
    made = rows(damaged(), small)
    with pytest.raises(OSError, match=r"record 1 \(d/cut.jpg\): .*truncated") as raised:
        made.read(np.arange(4))
    assert "on_bad_rows='skip'" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match="record 2: column 'image': the image cannot be decoded"):
        made.read(np.array([0, 2]))


def test_damaged_rows_are_skipped_and_counted():
    made = rows(damaged(), small, on_bad_rows="skip")
    read = made.read(np.arange(4))
    assert read.whole.tolist() == [True, False, False, True]
    assert (read.columns["image"][1] == read.columns["image"][0]).all()
    loaded = made.load()
    assert (loaded.length, loaded.skipped) == (2, 2)
    assert (loaded.data["image"] == read.columns["image"][[0, 3]]).all()


def test_the_first_rows_may_be_damaged():
    backwards = damaged().select([2, 1, 0])
    with pytest.raises(ValueError, match="record 0: column 'image'"):
        rows(backwards, small)
    assert rows(backwards, small, on_bad_rows="skip").read(np.arange(3)).whole.tolist() == [0, 0, 1]
    with pytest.raises(OSError, match="record 1"):
        rows(backwards.select([0, 1]), small, on_bad_rows="skip")


def test_what_differs_is_never_skipped():
    made = rows(numbers(), at_30(lambda record: {"y": 1}), on_bad_rows="skip")
    with pytest.raises(ValueError, match="record 30"):
        made.read(np.array([30]))


def test_a_transform_that_blocks_is_an_error_after_the_timeout():
    never = threading.Event()

    def block(record):
        if record["x"] == 30:
            never.wait()
        return record

    made = rows(numbers(), block, timeout=0.2, num_threads=2)
    with pytest.raises(TimeoutError, match=r"record 30: .*took longer than 0.2 s.*timeout=0.4"):
        made.read(np.arange(20, 40))
    assert made.read(np.arange(5)).columns["x"].tolist() == [0, 1, 2, 3, 4]
    never.set()


def test_arguments_out_of_range_are_refused():
    for options in ({"num_threads": 0}, {"timeout": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=0"):
            rows(numbers(), small, **options)
    with pytest.raises(IndexError, match="50 rows, 0 to 49: there is no row 50"):
        rows(numbers(), lambda record: record).read(np.array([50]))
    custom = numbers().with_transform(lambda batch: batch)
    with pytest.raises(ValueError, match="transform="):
        rows(custom, small)
