"""Local files: any name and place, damaged ones, and how much of them is read."""

import gzip
import json
import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarax import HFEagerConfig, HFEagerSource, HFStreamingConfig, HFStreamingSource
from datarax.hub.builders import without_address
from datarax.hub.load import load_split

JSON = b'{"x": 1}\n{"x": 2}\n'


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def parquet(**columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


NONE = parquet(x=pa.array([], pa.int64()))
TWO = parquet(x=[1, 2])


def written(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def both(name, split="train", **fields):
    """The rows of the column `x` of an eager source, and of a stream."""
    eager = HFEagerSource(HFEagerConfig(name=name, split=split, **fields))
    config = HFStreamingConfig(name=name, split=split, streaming=True, **fields)
    stream = HFStreamingSource(config)
    return eager.columns["x"].tolist(), stream.collect_to_array(len(eager))["x"].tolist()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl.gz", packed(JSON)),
        ("rows.ndjson", JSON),
        ("rows.tsv", b"x\ty\n1\t2\n2\t4\n"),
        ("rows.csv.gz", packed(b"x,y\n1,2\n2,4\n")),
        ("ROWS.PARQUET", TWO),
        ("ro[w]s - 1.jsonl", JSON),
    ],
)
def test_a_file_by_its_name(tmp_path, name, data):
    written(tmp_path, **{name: data})
    assert both(tmp_path / name) == ([1, 2], [1, 2])


@pytest.mark.parametrize("name", ["a[1]", "b-c", "d e", "f{1,2}", "g*", "h?x", "i#j", "[train]"])
def test_a_folder_by_its_name(tmp_path, name):
    folder = written(tmp_path / name, **{"train.parquet": TWO, "test.parquet": NONE})
    assert both(folder) == ([1, 2], [1, 2])


def test_splits_that_were_saved_by_any_name(tmp_path):
    one, other = datasets.Dataset.from_dict({"x": [1]}), datasets.Dataset.from_dict({"x": [2]})
    datasets.DatasetDict({"train-a": one, "b[1]": other}).save_to_disk(tmp_path)
    assert both(tmp_path, "train-a") == ([1], [1])
    assert both(tmp_path, "b[1]") == ([2], [2])


def test_paths_are_arguments(tmp_path):
    folder = written(tmp_path, **{"sub/train.parquet": TWO})
    for files in (folder / "sub/train.parquet", [folder / "sub/train.parquet"]):
        given = {"data_files": files, "cache_dir": tmp_path / "cache"}
        assert load_split("parquet", "train", download_kwargs=given).dataset["x"][:] == [1, 2]
    assert load_split(folder, "train", data_dir=Path("sub")).dataset["x"][:] == [1, 2]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/datasets/me/rows", "me/rows"),
        ("https://huggingface.co/datasets/me/rows/tree/main", "me/rows"),
        ("https://huggingface.co/datasets/mnist", "mnist"),
        ("https://huggingface.co/datasets/mnist/viewer/default/train", "mnist"),
        ("hf://datasets/me/rows", "me/rows"),
        ("https://host/datasets/me/rows.csv", "https://host/datasets/me/rows.csv"),
        ("me/rows", "me/rows"),
        ("https://huggingface.co/me/model", "https://huggingface.co/me/model"),
    ],
)
def test_the_address_of_a_repository_is_its_name(address, name):
    assert without_address(address) == name


def test_an_address_of_no_dataset():
    with pytest.raises(
        FileNotFoundError, match=r"name='https://host/a.csv' .* its builder"
    ) as info:
        load_split("https://host/a.csv?Signature=abc", "train")
    assert "abc" not in str(info.value)


# --- no rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"train-0.parquet": NONE, "train-1.parquet": TWO},
        {"train-0.jsonl": b"", "train-1.jsonl": JSON},
        {"train.jsonl": JSON, "test.jsonl": b""},
    ],
)
def test_files_without_rows_among_others(tmp_path, files):
    assert both(written(tmp_path, **files)) == ([1, 2], [1, 2])


@pytest.mark.parametrize(
    "files", [{"train.parquet": NONE}, {"train.jsonl": b""}, {"a.csv": b"x\n"}]
)
def test_a_split_without_rows(tmp_path, files):
    folder = written(tmp_path, **files)
    with pytest.raises(ValueError, match="empty"):
        HFEagerSource(HFEagerConfig(name=folder, split="train"))
    with pytest.raises(ValueError, match="empty"):
        HFStreamingSource(HFStreamingConfig(name=folder, split="train", streaming=True))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("train-0.jsonl.gz", packed(1000 * JSON)[:60], "torn"),
        ("train-0.jsonl.gz", b"no gzip", "torn"),
        ("train-0.parquet", TWO[:-10], "torn"),
        ("train-0.jsonl", b'{"x": 1}\n{"x": ', r"in row 1.*features"),
        ("train-0.csv", b"x,y\n1,2\n1,2,3\n", "line 3.*on_bad_lines"),
        ("train-0.csv", "x\nä\n".encode("latin-1"), "encoding"),
        ("train-0.arrow", b"no arrow", "Repair or remove"),
    ],
)
def test_the_file_that_cannot_be_read_is_named(tmp_path, name, data, words):
    written(tmp_path, **{name: data})
    with pytest.raises(Exception, match=f"{name}' of .* cannot be read.*{words}") as info:
        load_split(tmp_path, "train")
    assert isinstance(info.value, (ValueError, datasets.exceptions.DatasetGenerationError))


def test_what_is_not_there_is_said(tmp_path):
    written(tmp_path, **{"rows.xyz": b""})
    with pytest.raises(FileNotFoundError, match=r"Data files are such as '.parquet'"):
        load_split(tmp_path, "train")
    files = {"data_files": str(tmp_path / "*.json")}
    with pytest.raises(FileNotFoundError):
        load_split("json", "train", download_kwargs=files)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{"include_keys": {"x"}}, {"exclude_keys": {"m"}}])
def test_columns_nobody_asked_for_cannot_stop_loading(tmp_path, keys):
    pairs = pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int32()))  # `datasets` has no maps
    files = {
        "train-0.parquet": parquet(x=[1, 2], m=pairs),
        "train-1.parquet": parquet(m=[1], x=[3]),
    }
    assert both(written(tmp_path, **files), **keys) == ([1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match=r"train-0.parquet.*map<string, int32"):
        load_split(tmp_path, "train")
    with pytest.raises(ValueError, match=r"no column 'xx'\. Did you mean 'x'"):
        HFEagerSource(HFEagerConfig(name=tmp_path, split="train", include_keys={"xx"}))


@pytest.mark.parametrize("keys", [{"include_keys": {"x"}}, {"exclude_keys": {"m"}}])
def test_of_csv_files_some_columns_are_read(tmp_path, keys):
    files = {"train-0.csv": b"m,x\n1,1\n", "train-1.csv": b"x,m\n2,a\n"}
    assert both(written(tmp_path, **files), **keys) == ([1, 2], [1, 2])
    with pytest.raises(ValueError, match=r"no column 'xx'\. Did you mean 'x'"):
        HFEagerSource(HFEagerConfig(name=tmp_path, split="train", include_keys={"xx"}))


def test_a_broken_csv_file_is_named_where_columns_are_chosen(tmp_path):
    written(tmp_path, **{"train.csv": b"x,y\n1,2\n1,2,3\n"})
    for kind in (HFEagerConfig, HFStreamingConfig):
        config = kind(name=tmp_path, split="train", streaming=True, include_keys={"x"})
        with pytest.raises(ValueError, match=r"train.csv' of .* line 3.*on_bad_lines"):
            HFStreamingSource(config) if kind is HFStreamingConfig else HFEagerSource(config)


def test_prepared_rows_serve_any_columns(tmp_path):
    folder = written(tmp_path / "rows", **{"train.parquet": parquet(x=[1, 2], y=[3, 4])})
    given = {"cache_dir": str(tmp_path / "cache")}

    def load(**keys):
        split = load_split(folder, "train", download_kwargs=given, **keys).dataset
        return split.column_names, split.cache_files[0]["filename"]

    some, apart = load(include={"x"})
    assert some == ["x"]
    assert load(include={"x"}) == (some, apart)
    whole, file = load()
    assert whole == ["x", "y"]
    assert load(include={"x"}) == (whole, file)
    assert load(exclude={"x"}) == (["x", "y"], file)  # nothing is prepared twice


def test_a_float_of_json_stays_one(tmp_path):
    rows = {"data": [{"x": 0.0}, {"x": 1.0}]}
    written(tmp_path, **{"rows.json": json.dumps(rows).encode()})
    field = {"download_kwargs": {"field": "data"}}
    eager = HFEagerSource(HFEagerConfig(name=tmp_path / "rows.json", split="train", **field))
    assert eager.columns["x"].dtype == "float32"


# --- the card -------------------------------------------------------------------------------------

CARD = b"""---
dataset_info:
  features: [{name: x, dtype: int64}]
  splits: [{name: train, num_bytes: 100, num_examples: 1}]
configs:
- config_name: default
  data_files: [{split: train, path: data/*}]
---
"""


def test_a_card_that_counts_wrong_is_told_and_not_believed(tmp_path, caplog):
    folder = written(tmp_path, **{"README.md": CARD, "data/train-0.parquet": TWO})
    with caplog.at_level(logging.WARNING):
        stream = HFStreamingSource(HFStreamingConfig(name=folder, split="train", streaming=True))
        assert len(stream) == 2
        assert stream.collect_to_array()["x"].tolist() == [1, 2]
        assert len(HFEagerSource(HFEagerConfig(name=folder, split="train"))) == 2
    assert caplog.text.count("says that split 'train' has 1 rows; its files hold 2") == 2


def test_a_card_that_counts_files_of_json_wrong(tmp_path):
    folder = written(tmp_path, **{"README.md": CARD, "data/train-0.jsonl": JSON})
    stream = HFStreamingSource(HFStreamingConfig(name=folder, split="train", streaming=True))
    assert stream.collect_to_array()["x"].tolist() == [1, 2]


def test_a_stream_of_another_length_than_its_card_says_so(tmp_path, caplog):
    for count, given in ((1, "more"), (3, "2")):
        card = CARD.replace(b"num_examples: 1", b"num_examples: %d" % count)
        written(tmp_path, **{"README.md": card, "data/train-0.jsonl": JSON})
        config = HFStreamingConfig(name=tmp_path, split="train", streaming=True)
        for read in (
            lambda source: source.collect_to_array(),
            lambda source: [source.get_batch(2), source.get_batch(2)],
            lambda source: list(source),
            lambda source: source.read_batches(4, 1),
        ):
            source = HFStreamingSource(config)
            assert len(source) == count
            caplog.clear()
            with caplog.at_level(logging.WARNING, "datarax"):
                read(source)
            assert caplog.text.count(f"has {count} rows by its card, and its files give") == 1
            assert given in caplog.text or "give 2" in caplog.text


def test_a_card_that_counts_right_is_not_mentioned(tmp_path, caplog):
    card = CARD.replace(b"num_examples: 1", b"num_examples: 2")
    written(tmp_path, **{"README.md": card, "data/train-0.jsonl": JSON})
    source = HFStreamingSource(HFStreamingConfig(name=tmp_path, split="train", streaming=True))
    with caplog.at_level(logging.WARNING, "datarax"):
        assert len(list(source)) == len(list(source)) == 2
        source.collect_to_array()
    assert not caplog.text


NAMED = b"""---
dataset_info:
  features: [{name: y, dtype: {class_label: {names: {'0': cat, '1': dog}}}}]
---
"""


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("data/train.parquet", parquet(y=[0, 1, -1, 2])),
        ("data/train.csv", b"y\n0\n1\n-1\n2\n"),
        ("data/train.jsonl", b'{"y": 0}\n{"y": 1}\n{"y": -1}\n{"y": 2}\n'),
    ],
)
def test_a_label_that_the_card_does_not_name_is_an_error(tmp_path, file, rows):
    folder = written(tmp_path, **{"README.md": NAMED, file: rows})
    stream = HFStreamingSource(HFStreamingConfig(name=folder, split="train", streaming=True))
    assert stream.get_batch(1)["y"].tolist() == [0]
    place = rf"column 'y', row 3 of .*{Path(file).name}: found the label 2, and the class labels"
    with pytest.raises(ValueError, match=place + r" are 0 to 1 \('cat', 'dog'\)"):
        stream.get_batch(4)
    with pytest.raises((ValueError, datasets.exceptions.DatasetGenerationError)) as error:
        HFEagerSource(HFEagerConfig(name=folder, split="train"))
    told = "column 'y', row 3: found the label 2" in str(error.value)
    assert told or "A label has no name: mend the names in the card" in str(error.value)


def test_names_of_classes_that_a_file_has_otherwise_than_the_card_are_said(tmp_path, caplog):
    folder = written(tmp_path / "rows", **{"README.md": NAMED})
    features = datasets.Features(y=datasets.ClassLabel(names=["dog", "cat"]))
    datasets.Dataset.from_dict({"y": [0, 1]}, features).to_parquet(folder / "train.parquet")
    said = "the classes of column 'y' ['cat', 'dog'], its file"
    with caplog.at_level(logging.WARNING, "datarax"):
        stream = HFStreamingSource(HFStreamingConfig(name=folder, split="train", streaming=True))
        assert caplog.text.count(said) == 1
        source = HFEagerSource(HFEagerConfig(name=folder, split="train"))
        assert caplog.text.count(said) == 2
        declared = {"download_kwargs": {"features": features}}
        HFStreamingSource(HFStreamingConfig(name=folder, split="train", streaming=True, **declared))
    assert caplog.text.count(said) == 2
    assert stream.features["y"].names == source.features["y"].names == ["cat", "dog"]


# --- splits by the names of files -----------------------------------------------------------------


def test_files_that_are_in_no_split_are_named(tmp_path, caplog):
    names = ["a cat.jsonl", "a train.jsonl", "a test.jsonl", ".hidden.jsonl", "notes.txt"]
    written(tmp_path, **dict.fromkeys(names, JSON))
    with caplog.at_level(logging.WARNING, "datarax"):
        load_split(tmp_path, "train")
    assert "1 of the data files of" in caplog.text
    assert "are in no split: 'a cat.jsonl'. The names of others hold 'train'" in caplog.text


@pytest.mark.parametrize(
    "files",
    [
        {"train.jsonl": JSON, "test.jsonl": JSON},
        {"a.jsonl": JSON, "sub/b.jsonl": JSON},
        {"README.md": CARD, "data/train-0.parquet": TWO, "other.parquet": TWO},
    ],
)
def test_where_every_file_is_in_a_split_nothing_is_said(tmp_path, caplog, files):
    written(tmp_path, **files)
    with caplog.at_level(logging.WARNING, "datarax.hub.left_out"):
        load_split(tmp_path, "train")
    assert "in no split" not in caplog.text
