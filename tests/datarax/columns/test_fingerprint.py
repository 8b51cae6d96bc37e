"""The fingerprint knows data by their content, wherever and however they are stored."""

import io
import os
import shutil

import datasets
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from datasets import Array2D, ClassLabel, Features, Image, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax.columns.fingerprint import fingerprint_arrays, fingerprint_dataset
from datarax.columns.host import HostColumn
from datarax.columns.load import load_columns

_FEATURES = Features(
    {
        "x": Value("int64"),
        "y": ClassLabel(names=["no", "yes"]),
        "text": Value("string"),
        "ragged": List(Value("float32")),
        "array": Array2D((2, 2), "uint8"),
        "nested": {"a": Value("bool"), "b": List(Value("string"))},
        "when": Value("date32"),
    }
)


def _row(i):
    return {
        "x": i if i % 7 else None,
        "y": i % 2,
        "text": f"text {i}",
        "ragged": [i / 2] * (i % 3),
        "array": [[i % 9, 1], [2, 3]],
        "nested": {"a": bool(i % 2), "b": [str(i)] * (i % 2)},
        "when": None,
    }


def _dataset(length=40):
    return datasets.Dataset.from_list([_row(i) for i in range(length)], features=_FEATURES)


def _of(ds):
    return fingerprint_dataset(ds, ds.column_names)


def test_the_layout_has_no_influence(tmp_path):
    ds = _dataset()
    ours = _of(ds)
    assert len(ours) == 32
    assert (
        _of(datasets.concatenate_datasets([ds.select(range(9)), ds.select(range(9, 40))])) == ours
    )
    assert _of(ds.select(list(range(40)))) == ours
    assert _of(datasets.concatenate_datasets([ds, ds]).select(range(40))) == ours
    assert _of(ds.with_format("numpy")) == ours
    ds.save_to_disk(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert _of(datasets.load_from_disk(tmp_path / "there")) == ours
    assert fingerprint_dataset(ds, reversed(ds.column_names)) == ours
    assert _of(ds.select_columns(ds.column_names[::-1])) == ours


def test_the_width_of_offsets_has_no_influence():
    narrow = Features({"t": Value("string"), "l": List(Value("int8"))})
    wide = Features({"t": Value("large_string"), "l": LargeList(Value("int8"))})
    rows = {"t": ["a", "bc", None], "l": [[1], [], None]}
    assert _of(datasets.Dataset.from_dict(rows, narrow)) == _of(
        datasets.Dataset.from_dict(rows, wide)
    )


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=6), st.data())
def test_other_content_is_another_fingerprint(rows, data):
    ds = datasets.Dataset.from_dict({"l": rows}, Features({"l": List(Value("int8"))}))
    row = data.draw(st.integers(0, len(rows) - 1))
    changed = [*rows[:row], [*rows[row], 0], *rows[row + 1 :]]
    assert _of(datasets.Dataset.from_dict({"l": changed}, ds.features)) != _of(ds)


def test_order_length_names_and_features_count():
    ds = _dataset()
    others = [
        ds.select(range(39)),
        ds.select(range(39, -1, -1)),
        ds.rename_column("x", "z"),
        ds.remove_columns("x"),
        ds.cast_column("y", Value("int64")),
        ds.map(lambda row: {"text": row["text"] + ("" if row["y"] else "!")}),
    ]
    assert len({_of(other) for other in (ds, *others)}) == 7


def test_a_thousand_rows_of_many_are_read():
    numbers = np.arange(10_000)
    ds = datasets.Dataset.from_dict({"x": numbers})
    for row in (0, 9_999):
        changed = numbers.copy()
        changed[row] = -1
        assert _of(datasets.Dataset.from_dict({"x": changed})) != _of(ds)


def test_images_count_by_their_bytes(tmp_path):
    files = []
    for i in range(4):
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.full((4, 4), i, np.uint8)).save(buffer, "PNG")
        files.append(buffer.getvalue())
        for name in ("here", "there"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i}.png").write_bytes(files[-1])
    stored = [{"bytes": file, "path": "any.png"} for file in files]
    inside = datasets.Dataset.from_dict({"image": stored}, Features({"image": Image()}))
    for name in ("here", "there"):
        paths = [str(tmp_path / name / f"{i}.png") for i in range(4)]
        os.utime(paths[0], (1, 1))
        outside = datasets.Dataset.from_dict({"image": paths}, Features({"image": Image()}))
        assert _of(outside) == _of(inside)
    (tmp_path / "there" / "2.png").write_bytes(files[0])
    assert _of(outside) != _of(inside)


def test_a_damaged_image_does_not_matter():
    broken = [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "/is/not/there.png"}]
    _of(datasets.Dataset.from_dict({"image": broken}, Features({"image": Image()})))


def test_arrays_on_host_and_device_are_the_same():
    data = {
        "x": np.arange(2000, dtype=np.int32).reshape(1000, 2),
        "n": {"y": np.ones(1000, np.float32)},
    }
    ours = fingerprint_arrays(data)
    assert (
        fingerprint_arrays({"n": {"y": jnp.asarray(data["n"]["y"])}, "x": jnp.asarray(data["x"])})
        == ours
    )
    assert fingerprint_arrays(data | {"x": data["x"].astype(np.int16)}) != ours
    assert fingerprint_arrays(data | {"x": data["x"][::-1]}) != ours
    assert fingerprint_arrays({"x": data["x"], "y": data["n"]["y"]}) != ours


def test_host_columns_count_by_their_rows():
    ds = _dataset()
    one, two = (load_columns(part).data for part in (ds, ds.select(list(range(40)))))
    assert fingerprint_arrays(one) == fingerprint_arrays(two)
    other = load_columns(ds.map(lambda row: {"text": "!"})).data
    assert fingerprint_arrays(one) != fingerprint_arrays(other)
    long = np.zeros(5000)
    changed = long.copy()
    changed[2500] = 1  # what `repr` leaves out
    assert fingerprint_arrays({"o": HostColumn.of_objects("o", [long, "a"])}) != fingerprint_arrays(
        {"o": HostColumn.of_objects("o", [changed, "a"])}
    )


@pytest.mark.parametrize(
    "type_",
    [pa.string(), pa.binary(), pa.list_(pa.int8()), pa.timestamp("us"), pa.decimal128(5, 2)],
)
def test_any_type_has_one(type_):
    table = pa.table({"x": pa.array([None, None], type_)})
    assert _of(datasets.Dataset(table)) == _of(datasets.Dataset(table))
