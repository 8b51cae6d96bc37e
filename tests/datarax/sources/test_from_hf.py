"""`from_hf` chooses by the size of a split, the same before and after it is prepared."""

import gzip
import importlib
import json

import datasets
import numpy as np
import PIL.Image
import pytest

from datarax import HFEagerSource, HFIndexedSource, HFStreamingSource, from_hf
from datarax.hub.load import load_split
from datarax.sources.hf_source import streaming

chooses = importlib.import_module("datarax.sources.hf_source.from_hf")  # the face has the function

ROWS = 1000


def parquet(folder):
    rows = datasets.Dataset.from_dict({"x": range(ROWS)})
    rows.select(range(600)).to_parquet(folder / "train-0.parquet")
    rows.select(range(600, ROWS)).to_parquet(folder / "train-1.parquet")


def arrow(folder):
    datasets.Dataset.from_dict({"x": range(ROWS)}).save_to_disk(folder / "saved")
    (folder / "saved" / "data-00000-of-00001.arrow").rename(folder / "train.arrow")
    for file in (folder / "saved").iterdir():
        file.unlink()


def saved(folder):
    datasets.Dataset.from_dict({"x": range(ROWS)}).save_to_disk(folder)


def text(folder, suffix="jsonl"):
    rows = "".join(json.dumps({"x": n}) + "\n" for n in range(ROWS)).encode()
    packed = gzip.compress(rows) if suffix.endswith("gz") else rows
    (folder / f"train.{suffix}").write_bytes(packed)


def images(folder):
    for n in range(20):
        PIL.Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"{n}.png")


@pytest.mark.parametrize(
    ("make", "rows"), [(parquet, ROWS), (arrow, ROWS), (saved, ROWS), (images, 20), (text, None)]
)
def test_files_say_how_large_a_split_is(tmp_path, make, rows):
    make(tmp_path)
    size = load_split(tmp_path, "train", streaming=True).size()
    assert size.rows == rows
    if rows is None:
        assert size.bytes == (tmp_path / "train.jsonl").stat().st_size


def test_a_packed_file_counts_as_text(tmp_path):
    text(tmp_path, "jsonl.gz")
    packed = (tmp_path / "train.jsonl.gz").stat().st_size
    assert load_split(tmp_path, "train", streaming=True).size().bytes == 4 * packed


@pytest.mark.parametrize("make", [parquet, saved, text, images])
@pytest.mark.parametrize(("memory", "kind"), [(1 << 30, HFEagerSource), (100, HFIndexedSource)])
def test_the_answer_is_the_same_every_time(tmp_path, make, memory, kind, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr(chooses, "_memory", lambda: memory)
    assert type(chooses.from_hf(str(tmp_path), "train")) is kind
    from_hf(str(tmp_path), "train", streaming=False)  # which prepares it
    assert type(chooses.from_hf(str(tmp_path), "train")) is kind


def test_what_is_asked_for_wins_and_a_slice_is_no_stream(tmp_path, monkeypatch):
    parquet(tmp_path)
    monkeypatch.setattr(chooses, "_memory", lambda: 100)
    asked = {"shuffle": True, "num_threads": 1, "shuffle_buffer_size": 10}
    made = from_hf(str(tmp_path), "train", streaming=True, **asked)
    assert type(made) is HFStreamingSource
    for split in ("train", "train[:50%]"):
        assert type(from_hf(str(tmp_path), split, streaming=False, **asked)) is HFIndexedSource
    assert len(from_hf(str(tmp_path), "train[:50%]")) == ROWS // 2
    monkeypatch.setattr(chooses, "_memory", lambda: 1 << 30)
    assert type(from_hf(str(tmp_path), "train[:50%]", **asked)) is HFEagerSource


def test_a_stream_of_rows_on_this_machine_names_the_global_shuffle(caplog):
    rows = datasets.Dataset.from_dict({"x": range(9)})
    streaming._note_indexed.cache_clear()
    for _ in range(2):
        HFStreamingSource.from_dataset(rows, shuffle=True)
    HFStreamingSource.from_dataset(rows.to_iterable_dataset(), shuffle=True)
    assert caplog.text.count("HFIndexedSource shuffles globally") == 1
