"""A dataset becomes columns: what comes out is what `datasets` holds, row by row."""

import datetime
import string
import time

import datasets
import jax
import numpy as np
import pyarrow as pa
import pytest
from datasets import Array2D, ClassLabel, Features, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax.columns.arrow import plain
from datarax.columns.fingerprint import fingerprint_dataset
from datarax.columns.host import HostColumn
from datarax.columns.load import load_columns

# --- any features, any layout: the invariant ------------------------------------------------------

_INTS = st.integers(-100, 100)
_SCALARS = [
    (Value("int64"), _INTS),
    (Value("uint8"), st.integers(0, 255)),
    (Value("int16"), _INTS),
    (Value("float32"), st.floats(-10, 10, width=16)),
    (Value("float64"), st.floats(-10, 10, width=16)),
    (Value("bool"), st.booleans()),
    (ClassLabel(names=list("abc")), st.integers(0, 2)),
    (Value("string"), st.text(string.printable, max_size=5)),
    (Value("large_string"), st.text(max_size=3)),
    (Value("binary"), st.binary(max_size=4)),
    (Value("date32"), st.dates()),
]


def _lists(feature, items):
    return st.one_of(
        st.just((List(feature, length=3), st.lists(items, min_size=3, max_size=3))),
        st.just((List(feature), st.lists(items, min_size=2, max_size=2))),
        st.just((LargeList(feature), st.lists(items, max_size=3))),
        st.just(
            (
                List(List(feature, length=2)),
                st.lists(st.lists(items, min_size=2, max_size=2), max_size=2),
            )
        ),
        st.just((List(List(feature)), st.lists(st.lists(items, max_size=2), max_size=2))),
    )


_ARRAY = st.just(
    (
        Array2D((2, 3), "int32"),
        st.lists(st.lists(_INTS, min_size=3, max_size=3), min_size=2, max_size=2),
    )
)
_SCALAR = st.sampled_from(_SCALARS)
_FLAT = _SCALAR | _SCALAR.flatmap(lambda pair: _lists(*pair)) | _ARRAY
_NULLABLE = _FLAT.map(lambda pair: (pair[0], st.none() | pair[1]))
_STRUCT = st.dictionaries(st.sampled_from("pqr"), _FLAT | _NULLABLE, min_size=1).map(
    lambda fields: (
        {name: feature for name, (feature, _) in fields.items()},
        st.fixed_dictionaries({name: values for name, (_, values) in fields.items()}),
    )
)
_COLUMN = (
    _FLAT
    | _NULLABLE
    | _STRUCT
    | _STRUCT.map(lambda pair: (List(pair[0]), st.lists(pair[1], max_size=2)))
)


@st.composite
def _datasets(draw):
    columns = draw(st.dictionaries(st.sampled_from("abcd"), _COLUMN, min_size=1, max_size=3))
    features = Features({name: feature for name, (feature, _) in columns.items()})
    row = st.fixed_dictionaries({name: values for name, (_, values) in columns.items()})
    parts = draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=3))
    ds = datasets.concatenate_datasets(
        [datasets.Dataset.from_list(part, features=features) for part in parts]
    )
    for _ in range(draw(st.integers(0, 2))):
        step = draw(st.sampled_from(["select", "slice", "shuffle", "shard", "concatenate"]))
        if step == "select":
            ds = ds.select(draw(st.lists(st.integers(0, len(ds) - 1), min_size=1, max_size=8)))
        elif step == "slice":
            start = draw(st.integers(0, len(ds) - 1))
            ds = ds.select(range(start, draw(st.integers(start + 1, len(ds)))))
        elif step == "shuffle":
            ds = ds.shuffle(seed=draw(st.integers(0, 9)))
        elif step == "shard" and len(ds) > 1:
            ds = ds.shard(2, draw(st.integers(0, 1)), contiguous=draw(st.booleans()))
        else:
            ds = datasets.concatenate_datasets([ds, ds.select([0])])
    return ds


def _rows(column):
    """Turns columns back into rows of Python objects."""
    if isinstance(column, dict):
        parts = {name: _rows(part) for name, part in column.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    return [item.tolist() if hasattr(item, "tolist") else item for item in column[:]]


@settings(deadline=None, max_examples=50)
@given(_datasets(), st.data())
def test_what_comes_out_is_what_the_dataset_holds(ds, data):
    columns = load_columns(ds)
    assert columns.length == len(ds)
    assert columns.features == ds.features
    assert columns.skipped == 0
    for name in ds.column_names:
        assert _rows(columns.data[name]) == ds[:][name]

    some = data.draw(st.lists(st.integers(0, len(ds) - 1), min_size=1, max_size=5))
    part = load_columns(ds, rows=np.array(some))
    for name in ds.column_names:
        assert _rows(part.data[name]) == [ds[row][name] for row in some]
    kinds = [
        jax.tree.map(type, c.data, is_leaf=lambda x: isinstance(x, HostColumn))
        for c in (columns, part)
    ]
    assert kinds[0] == kinds[1]


# --- arrays and their dtypes ----------------------------------------------------------------------


def _load(values, feature=None, **options):
    features = None if feature is None else Features({"x": feature})
    return load_columns(
        datasets.Dataset.from_dict({"x": values}, features=features), **options
    ).data["x"]


@pytest.mark.parametrize(
    ("declared", "loaded"),
    [
        ("int64", "int32"),
        ("uint64", "uint32"),
        ("float64", "float32"),
        *(
            (name, name)
            for name in [
                "int8",
                "uint8",
                "int16",
                "uint16",
                "int32",
                "uint32",
                "float16",
                "float32",
                "bool",
            ]
        ),
    ],
)
def test_the_features_decide_the_dtype(declared, loaded):
    assert _load([0, 1], Value(declared)).dtype == loaded
    assert _load([[0, 1], [1, 1]], List(Value(declared))).dtype == loaded
    grid = np.zeros((1, 2, 1), declared)
    assert _load(list(grid), Array2D((2, 1), declared)).dtype == loaded
    with jax.enable_x64(True):
        assert _load([0, 1], Value(declared)).dtype == declared


def test_class_labels_are_int32_everywhere():
    labels = ClassLabel(names=["no", "yes"])
    assert _load([0, 1], labels).dtype == np.int32
    assert _load([[0, 1]], List(labels)).dtype == np.int32
    with jax.enable_x64(True):
        assert _load([0, 1], labels).dtype == np.int32


def test_an_integer_out_of_range_is_named():
    ds = datasets.Dataset.from_dict(
        {"id": [0, 1, 2**40, 5], "x": [[1, 2], [1, -(2**33)], [0, 0], [0, 0]]}
    )
    with pytest.raises(
        ValueError, match=r"'id', row 2: 1099511627776 does not fit into int32.*jax_enable_x64"
    ):
        load_columns(ds)
    with pytest.raises(ValueError, match=r"'id', row 3"):
        load_columns(ds.select([0, 1, 3, 2]))
    with pytest.raises(ValueError, match=r"'x', row 1: -8589934592.*exclude_keys=\{'x'\}"):
        load_columns(ds, exclude=["id"])
    assert load_columns(ds.select([0, 1]), include=["id"]).data["id"].tolist() == [0, 1]
    with jax.enable_x64(True):
        assert load_columns(ds).data["id"].tolist() == [0, 1, 2**40, 5]


def test_a_double_out_of_range_rounds_to_infinity():
    assert _load([1e300, 1.5]).tolist() == [np.inf, 1.5]


def test_lists_of_one_length_are_arrays_whatever_is_declared():
    assert _load([[1, 2], [3, 4]]).shape == (2, 2)
    assert _load([[[1], [2]]] * 3).shape == (3, 2, 1)
    assert _load([[], []], List(Value("int32"))).shape == (2, 0)
    assert _load([[[1, 2]], [[3, 4]]], Array2D((None, 2), "int8")).shape == (2, 1, 2)


def test_arrow_layouts_make_no_difference():
    text = pa.chunked_array([["b", "a", "b"], ["a"]])
    table = pa.table(
        {
            "number": pa.chunked_array([[1, 2], [3], [4]]),
            "fixed": pa.chunked_array(
                [pa.array([[9, 9]] + [[i, i] for i in range(4)], pa.list_(pa.int8(), 2))[1:]]
            ),
            "large": pa.array([[0, 1]] * 4, pa.large_list(pa.int32())),
            "dictionary": text.dictionary_encode(),
            "large_text": text.cast(pa.large_string()),
        }
    )
    data = load_columns(datasets.Dataset(table)).data
    assert data["number"].tolist() == [1, 2, 3, 4]
    assert data["fixed"].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert data["large"].tolist() == [[0, 1]] * 4
    assert data["dictionary"][:].tolist() == data["large_text"][:].tolist() == ["b", "a", "b", "a"]


def test_a_memory_mapped_dataset_of_many_chunks(tmp_path):
    ds = datasets.Dataset.from_dict(
        {"x": range(3000), "v": [[i, -i] for i in range(3000)], "t": list(map(str, range(3000)))}
    )
    ds.save_to_disk(tmp_path)
    ds = datasets.load_from_disk(tmp_path)
    assert ds.data.column(0).num_chunks > 1
    for some in (ds, ds.shuffle(seed=1), ds.select(range(500, 2500))):
        data = load_columns(some).data
        assert data["x"].tolist() == some["x"][:]
        assert data["v"].tolist() == some["v"][:]
        assert data["t"].take([0, -1]).tolist() == [some[0]["t"], some[-1]["t"]]


def test_no_array_is_as_large_as_one_long_row_would_ask_for():
    assert isinstance(_load([[0] * 1_000_000] + [[1]] * 100_000), HostColumn)  # 400 GB otherwise


# --- host columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "feature", "words"),
    [
        (["to be", "or not"], None, r"row 0 is 'to be'.*tokenizer\(batch\['x'\]"),
        ([1, None], None, r"row 1 is None.*filter\(lambda row: row\['x'\] is not None\)"),
        ([[1, 2], [3, None]], None, r"row 1 holds None, \[3, None\]"),
        (
            [[1, 2], [3, 4], [5]],
            None,
            r"row 2 has shape \(1,\) where row 0 has \(2,\).*pad\(row\['x'\]\)",
        ),
        ([[[1], [2]], [[3], [4, 5]]], None, r"row 1 is ragged, \[\[3\], \[4, 5\]\]"),
        ([b"ab"], Value("binary"), r"row 0 is b'ab'.*encode\(row\['x'\]\)"),
        ([[{"a": 1}]], None, r"row 0 is \[\{'a': 1\}\]"),
        ([None, None], Value("null"), r"row 0 is None"),
        ([datetime.datetime(2024, 5, 1)], None, r"row 0 is datetime"),
    ],
)
def test_a_host_column_says_why_it_is_one_and_what_to_write(values, feature, words):
    column = _load(values, feature)
    assert isinstance(column, HostColumn)
    with pytest.raises(TypeError, match=f"'x' is no JAX array: {words}.*exclude_keys={{'x'}}"):
        raise column.error()
    assert column.first_bad == int(words.split()[1])


def test_ragged_rows_are_arrays_of_the_declared_dtype():
    column = _load([[1, 2**40], None, []])
    assert [None if row is None else (row.tolist(), row.dtype.name) for row in column[:]] == [
        ([1, 2**40], "int64"),
        None,
        ([], "int64"),
    ]
    boxes = _load([[[0.0, 1.0, 2.0, 3.0]] * 2, []], List(List(Value("float32"), length=4)))
    assert [row.shape for row in boxes[:]] == [(2, 4), (0, 4)]
    boxes[0][0, 0] = 7.0  # the rows are the caller's


def test_nested_features_are_dicts_of_columns():
    answers = {"text": List(Value("string")), "start": Value("int32")}
    ds = datasets.Dataset.from_list(
        [{"a": {"text": ["x"], "start": 3}}, {"a": {"text": [], "start": 4}}],
        features=Features({"a": answers}),
    )
    data = load_columns(ds).data["a"]
    assert data["start"].tolist() == [3, 4]
    assert data["text"].name == "a.text"
    assert "exclude_keys={'a'}" in str(data["text"].error())
    with_none = datasets.Dataset.from_list(
        [{"a": None}, {"a": {"text": [], "start": 4}}], features=ds.features
    )
    assert load_columns(with_none).data["a"][:].tolist() == [None, {"text": [], "start": 4}]
    assert load_columns(with_none.select([1, 1])).data["a"]["start"].tolist() == [4, 4]


def test_translations_are_dicts_and_media_stay_encoded():
    features = Features(
        {
            "t": datasets.Translation(["de", "en"]),
            "a": datasets.Audio(decode=False),
            "v": datasets.Video(),
            "j": datasets.Json(),
        }
    )
    media = {"bytes": b"RIFF", "path": None}
    row = {"t": {"de": "eins", "en": "one"}, "a": media, "v": media, "j": '{"k": [1, "b"]}'}
    table = pa.Table.from_pylist(
        [row],
        schema=pa.schema(
            [
                (n, f.storage_type if n == "j" else f)
                for n, f in zip(features, features.arrow_schema.types, strict=True)
            ]
        ),
    )
    data = load_columns(datasets.Dataset(table.cast(features.arrow_schema))).data
    assert data["t"]["en"][0] == "one"
    assert data["a"][0] == data["v"][0] == media
    assert data["j"][0] == {"k": [1, "b"]}
    assert "Videos stay encoded: make arrays of their frames" in str(data["v"].error())


# --- which columns, which rows --------------------------------------------------------------------


def test_include_and_exclude():
    ds = datasets.Dataset.from_dict({"label": [1], "text": ["a"], "idx": [0]})
    assert list(load_columns(ds, include={"idx", "label"}).data) == ["label", "idx"]
    assert list(load_columns(ds, exclude={"idx", "unheard of"}).data) == ["label", "text"]
    with pytest.raises(
        ValueError,
        match=r"no column 'lable'\. Did you mean 'label'\? The columns are 'label', 'text', 'idx'",
    ):
        load_columns(ds, include={"lable"})
    with pytest.raises(ValueError, match="no column is left"):
        load_columns(ds, exclude={"idx", "label", "text"})
    assert load_columns(ds, include=["text"]).features == Features({"text": Value("string")})


def test_what_is_no_loadable_split():
    ds = datasets.Dataset.from_dict({"x": [1, 2]})
    with pytest.raises(ValueError, match="empty"):
        load_columns(ds.select([]))
    with pytest.raises(TypeError, match="take one of 'train', 'test'"):
        load_columns(datasets.DatasetDict(train=ds, test=ds))
    with pytest.raises(TypeError, match="IterableDataset"):
        load_columns(ds.to_iterable_dataset())
    with pytest.raises(ValueError, match=r"transform.*ds\.map"):
        load_columns(ds.with_transform(lambda row: row))
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        load_columns(ds, on_bad_rows="ignore")
    with pytest.raises(IndexError, match="2 rows, 0 to 1: there is no row"):
        load_columns(ds, rows=np.array([2]))


def test_formats_do_not_matter():
    ds = datasets.Dataset.from_dict({"x": [1, 2], "y": [0.5, 1.5]})
    assert load_columns(ds.with_format("numpy")).data["y"].dtype == np.float32


def test_some_rows_are_decided_by_all_rows():
    ds = datasets.Dataset.from_dict({"v": [[1, 2], [1, 2], [3]]})
    column = load_columns(ds, rows=np.array([1])).data["v"]
    assert (column.first_bad, column.shape) == (2, (1,))


# --- odd but legal --------------------------------------------------------------------------------


def _column(values, type_):
    return load_columns(datasets.Dataset(pa.table({"x": pa.array(values, type_)}))).data["x"]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (["a", None, "bc"], pa.string_view()),
        ([b"a", None, b"bc"], pa.binary_view()),
        ([["a"], None, []], pa.list_(pa.string_view())),
        ([{"k": "a"}, None], pa.struct([("k", pa.string_view())])),
        ([datetime.timedelta(days=1), None], pa.duration("us")),
        ([b"ab", b"cd"], pa.binary(2)),
    ],
)
def test_views_spans_and_fixed_bytes_are_what_they_hold(values, type_):
    ds = datasets.Dataset(pa.table({"x": pa.array(values, type_)}))
    assert load_columns(ds).data["x"][:].tolist() == values
    order = np.arange(len(values))[::-1]
    assert load_columns(ds.select(order)).data["x"][:].tolist() == values[::-1]


@pytest.mark.parametrize("type_", [pa.list_view(pa.string()), pa.large_list_view(pa.string())])
def test_list_views_are_the_lists_that_they_show(type_):
    values = [["a"], None, [], ["b", "c"]]
    assert plain(pa.array(values, type_)).to_pylist() == values
    assert plain(pa.array(values, type_)[2:]).to_pylist() == values[2:]


def test_dates_beyond_the_years_of_python_are_dates_of_numpy():
    far = np.datetime64("12345-06-07")
    days = pa.array([far.astype(int), 0], pa.int32()).cast(pa.date32())
    column = load_columns(datasets.Dataset(pa.table({"x": days}))).data["x"]
    assert column[:].tolist() == [far, datetime.date(1970, 1, 1)]
    moments = pa.array([[far.astype("M8[us]").astype(int)], []], pa.list_(pa.int64()))
    column = _column(moments.to_pylist(), pa.list_(pa.timestamp("us")))
    assert column[0] == [far.astype("M8[us]")]
    assert "12345-06-07" in column.reason


def test_text_that_is_no_utf8_is_named_and_can_be_read_as_bytes():
    text = pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xfe")],
    )
    ds = datasets.Dataset(pa.table({"x": text}))
    column = load_columns(ds).data["x"]
    assert column[0] == "a"
    words = r"column 'x', row 1: its text is no UTF-8, b'\\xff\\xfe'.*cast_column.*exclude_keys"
    with pytest.raises(ValueError, match=words):
        column[:]
    as_bytes = ds.cast_column("x", Value("binary"))
    assert load_columns(as_bytes).data["x"][:].tolist() == [b"a", b"\xff\xfe"]


def test_three_thousand_columns_load_in_time_that_grows_with_their_number():
    def seconds(count):
        table = pa.table({f"c{i}": np.zeros(10, np.float32) for i in range(count)})
        ds = datasets.Dataset(table)
        start = time.process_time()
        fingerprint_dataset(ds, load_columns(ds).data)
        return time.process_time() - start

    seconds(10)
    few, many = (min(seconds(count) for _ in range(3)) for count in (300, 3000))
    assert many < 30 * few


# --- class labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature", "rows"),
    [
        (ClassLabel(names=["a", "b"]), [0, -1, 1, 7]),
        (List(ClassLabel(names=["a", "b"])), [[0], [], [1, 1], [0, 7]]),
        (List(ClassLabel(names=["a", "b"]), length=2), [[0, 0], [1, -1], [1, 1], [0, 7]]),
        ({"inner": ClassLabel(names=["a", "b"])}, [{"inner": label} for label in (0, -1, 1, 7)]),
    ],
)
def test_a_label_without_a_name_is_an_error(feature, rows):
    declared = Features(y=feature)
    table = pa.table({"y": pa.array(rows, declared.arrow_schema.field("y").type)})
    dataset = datasets.Dataset(table, datasets.DatasetInfo(features=declared))
    assert load_columns(dataset.select([0, 1, 2])).length == 3
    with pytest.raises(ValueError, match=r"column 'y.*', row 3: found the label 7, and the class"):
        load_columns(dataset)
    with pytest.raises(ValueError, match=r"row 1: found the label 7"):
        load_columns(dataset.select([2, 3]))
