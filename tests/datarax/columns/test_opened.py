"""Rows of large mapped files, which are read from the files."""

import os
import shutil

import datasets
import numpy as np
import pytest

from datarax.columns import file_reads, mapped
from datarax.columns.row_reader import RowReader

ROWS, FEATURES = (
    2500,
    datasets.Features(
        {
            "x": datasets.List(datasets.Value("uint8"), length=3000),
            "label": datasets.Value("int64"),
            "text": datasets.Value("string"),
        }
    ),
)
PIXELS = np.random.default_rng(0).integers(0, 255, (ROWS, 3000), np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    columns = {"x": list(PIXELS), "label": range(ROWS), "text": [f"row {i}" for i in range(ROWS)]}
    datasets.Dataset.from_dict(columns, FEATURES).save_to_disk(folder, num_shards=2)
    return folder


@pytest.fixture
def rows(written, tmp_path, monkeypatch):
    """Rows of two files that count as large, of a copy of its own."""
    monkeypatch.setattr(mapped, "SMALL", 0)
    return datasets.load_from_disk(shutil.copytree(written, tmp_path / "rows"))


def reader_of(rows):
    return RowReader(rows, FEATURES, num_threads=2)


def files_of(reader):
    _, column = reader._leaves[("x",)]
    return column._items._files


def expect_right(reader, count):
    indices = np.random.default_rng(count).integers(0, ROWS, count)
    found = reader.read(indices).columns
    assert found["label"].tolist() == indices.tolist()
    assert found["text"].tolist() == [f"row {i}" for i in indices]
    assert (found["x"] == PIXELS[indices]).all()


def test_rows_are_those_of_the_files(rows):
    reader = reader_of(rows)
    assert {path: column.maps for path, (_, column) in reader._leaves.items()} == {
        ("x",): False,
        ("label",): False,
        ("text",): True,
    }
    for count in (1, 9, 2000):
        expect_right(reader, count)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_reads_too(rows):
    reader = reader_of(rows)
    expect_right(reader, 2000)
    child = os.fork()
    if not child:
        try:
            expect_right(reader, 1999)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_files_that_are_gone_are_mapped(rows, tmp_path):
    shutil.rmtree(tmp_path / "rows")
    reader = reader_of(rows)
    assert files_of(reader) is None
    expect_right(reader, 2000)


def test_where_the_system_takes_no_reads_the_mapped_memory_is_read(rows):
    reader = reader_of(rows)
    reads = files_of(reader)._reads
    for _ in range(file_reads._QUEUES):
        queue = reads._idle.get()
        queue._context = 1  # the system knows none of that number; a destroyed one's may come again
        reads._idle.put(queue)
    expect_right(reader, 2000)
    expect_right(reader, 1999)


def test_a_file_that_is_cut_off_while_it_is_read_is_named(rows):
    files = files_of(reader_of(rows))
    part = files._ranges[0]
    size = os.path.getsize(part.path)
    os.truncate(part.path, 10_000)
    with pytest.raises(
        OSError, match=rf"\.arrow has 10000 bytes, and had {size} when it was opened"
    ):
        files.read(np.array([part.start + 100, part.start + 500_000]), np.empty((2, 64), np.uint8))
