"""Ranges of rows of a table: of rows in any order, and of large ones."""

import datasets
import numpy as np
import pyarrow as pa
import pytest

from datarax.columns.arrow import gathered
from datarax.stream import shards
from datarax.stream.shards import TableShards


def _rows(found):
    return [row for table, _ in found for row in table.to_pylist()]


@pytest.mark.parametrize("chunks", [1, 3])
def test_rows_are_gathered_from_any_chunks_in_any_order(chunks):
    whole = pa.table(
        {"x": range(30), "t": [str(i) for i in range(30)], "l": [[i] for i in range(30)]}
    )
    table = pa.concat_tables([whole.slice(10 * i, 10) for i in range(3)][:chunks])
    order = np.random.default_rng(0).integers(0, len(table), 50)
    assert gathered(table, order).to_pylist() == [whole.slice(i, 1).to_pylist()[0] for i in order]


@pytest.mark.parametrize("mapped", [False, True])
def test_large_rows_are_read_a_few_at_a_time(mapped):
    ds = datasets.Dataset.from_dict({"file": [bytes([i]) * 1_000_000 for i in range(64)]})
    ds = ds.select(np.arange(64)[::-1]) if mapped else ds
    found = list(TableShards(ds).open(0, None))
    assert max(table.nbytes for table, _ in found) <= 1.1 * shards.READ_BYTES
    assert [row["file"] for row in _rows(found)] == ds["file"][:]
    middle = found[0][1]
    assert _rows(TableShards(ds).open(0, middle)) == _rows(found)[middle:]


def test_more_text_than_an_offset_of_32_bits_counts():
    one = datasets.Dataset.from_dict({"file": [b"a" * 300_000], "y": [1]})
    many = one.select(np.zeros(20_000, np.int64))  # 6 GB, were they copied
    table, after = next(TableShards(many).open(0, None))
    assert after == len(table) < 200
    assert table["y"].to_pylist() == [1] * after
