"""A window: rows of a stream that are shuffled together, as slices of the tables that were read."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from datarax.columns.arrow import as_python, without_views
from datarax.stream.decoder import Decoder, Part
from datarax.stream.faults import Fault, Faults, Raised
from datarax.stream.shards import row_label

_ROW_BITS = 40  # of a record's number, which has 64: 16 million shards of 10**12 rows


class Table:
    """Rows that were read of a shard at once.

    Args:
        rows: The rows.
        shard: The shard.
        first: The number of the first row, counted from the shard's start.
        label: Names a shard in an error.

    Attributes:
        length: How many rows they are.
    """

    def __init__(self, rows: pa.Table, shard: int, first: int, label: Callable[[int], str]):
        self.rows, self.length = without_views(rows), len(rows)
        self.shard, self.first = shard, first
        self._named = label
        self._numbers: tuple[Part, Faults] | None = None

    def numbers(self, decoder: Decoder) -> tuple[Part, Faults]:
        """Returns the columns of numbers, made once: a slice is too short for that cost."""
        if self._numbers is None:
            self._numbers = decoder.numbers(self.rows)
            whole = decoder.with_all_columns(self.rows)
            self.rows = whole.select(decoder.kept_names)  # nothing is held twice
        return self._numbers

    def label(self, row: int) -> str:
        """Names a row in an error."""
        return row_label(self.first + row, self._named(self.shard))

    @property
    def record(self) -> int:
        """The number of the first row's record: its shard, and its row there."""
        return (self.shard << _ROW_BITS) + self.first


class Slice(NamedTuple):
    """Rows `start` to `stop` of a table."""

    table: Table
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def numbers(self, decoder: Decoder) -> tuple[Part, Faults]:
        """Returns the columns of numbers, views of the table's, and the rows that do not fit."""
        columns, faults = self.table.numbers(decoder)
        part = {path: column[self.start : self.stop] for path, column in columns.items()}
        within = {row - self.start: fault for row, fault in faults.items() if row >= self.start}
        return part, {row: fault for row, fault in within.items() if row < self.rows}

    def rest(self) -> pa.Table:
        """Returns the other columns, once those of numbers were asked for."""
        return self.table.rows.slice(self.start, self.rows)

    def label(self, row: int) -> str:
        """Names a row in an error."""
        return self.table.label(self.start + row)


class Window:
    """Rows that are shuffled together.

    Args:
        slices: The rows, as they were read.
        decoder: What makes columns of them.
        permutation: The order of the rows; None as they were read.
        anchor: The reader's state before them.
        number: How many windows came before in this epoch.
        seed: The seed of the epoch.
    """

    def __init__(
        self,
        slices: list[Slice],
        decoder: Decoder,
        permutation: np.ndarray | None,
        anchor: dict[str, Any],
        number: int,
        seed: int,
    ):
        self.anchor, self.number, self.seed = anchor, number, seed
        self._slices, self._decoder, self._order = slices, decoder, permutation
        self._ends = np.cumsum([part.rows for part in slices])
        self._length = int(self._ends[-1])
        made = [part.numbers(decoder) for part in slices]
        self._numbers = joined([columns for columns, _ in made])
        self._starts = self._ends - [part.rows for part in slices]
        self._faults = {
            start + row: fault
            for start, (_, faults) in zip(self._starts.tolist(), made, strict=True)
            for row, fault in faults.items()
        }
        if permutation is not None:
            self._numbers = {p: column.take(permutation, 0) for p, column in self._numbers.items()}
        self._tables = _concatenated([part.rest() for part in slices]) if decoder.kept_names else []
        self._check: str | None = None

    def __len__(self) -> int:
        return self._length

    def rows(self, start: int, stop: int) -> tuple[Part, Faults]:
        """Returns rows `start` to `stop`, and those among them that are wrong."""
        part = {path: column[start:stop] for path, column in self._numbers.items()}
        if not (self._faults or self._tables):
            return part, {}
        order = self._order
        rows = np.arange(start, stop) if order is None else order[start:stop]
        faults: Faults = {}
        if self._faults:
            read = enumerate(rows.tolist())
            faults = {n: self._faults[row] for n, row in read if row in self._faults}
        if self._tables:
            rest, found = self._rest(rows)
            part, faults = part | rest, found | faults
        return part, faults

    def error(self, row: int, fault: Fault | Raised) -> Exception:
        """Returns the error to raise for row `row` of the window, which is wrong."""
        return fault.error(self.label(row if self._order is None else int(self._order[row])))

    def label(self, row: int) -> str:
        """Names a row in an error, by its number as it was read."""
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._slices[part].label(row - int(self._starts[part]))

    def records(self, rows: np.ndarray) -> np.ndarray:
        """Returns the numbers of rows' records, by their numbers as they were read.

        A number is the shard and the row there: it is the same in any order, on any process.
        """
        firsts = np.array([part.table.record + part.start for part in self._slices], np.uint64)
        parts = np.searchsorted(self._ends, rows, side="right")
        return firsts[parts] + (rows - self._starts[parts]).astype(np.uint64)

    def check(self) -> str:
        """Returns a hash of length and last row: a window that was read again has the same."""
        if self._check is None:
            found = zlib.crc32(str(len(self)).encode())
            for column in self._last_numbers().values():
                found = zlib.crc32(column[-1:].tobytes(), found)
            if self._decoder.lazy_names:
                row = self._stored(len(self) - 1)
                last = [{name: as_python(row[name][0]) for name in self._decoder.lazy_names}]
                found = zlib.crc32(repr(last).encode(), found)
            self._check = f"{found:08x}"
        return self._check

    def _last_numbers(self) -> Part:
        """Returns the numbers of the last row in order, also where none are made of them."""
        if self._numbers or not self._tables:
            return self._numbers
        last = len(self) - 1 if self._order is None else int(self._order[-1])
        return self._decoder.stored_numbers(self._stored(last))[0]

    def _stored(self, row: int) -> pa.Table:
        """Returns a row as it is stored, by its number as it was read."""
        if len(self._tables) == 1:
            return self._tables[0].slice(row, 1)
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._tables[part].slice(row - int(self._starts[part]), 1)

    def _rest(self, rows: np.ndarray) -> tuple[Part, Faults]:
        """Returns rows of the other columns, by their number as they were read."""
        if len(self._tables) == 1:
            table = self._tables[0]
            if self._order is None:
                return self._decoder.rest(table.slice(rows[0], len(rows)), rows, self)
            return self._decoder.rest(table.take(pa.array(rows)), rows, self)
        numbers = np.searchsorted(self._ends, rows, side="right")
        wheres, parts, faults = [], [], {}
        for number in np.unique(numbers).tolist():
            where, table = np.flatnonzero(numbers == number), self._tables[number]
            some = rows[where]
            chosen = table.take(pa.array(some - self._starts[number]))
            part, found = self._decoder.rest(chosen, some, self)
            wheres.append(where)
            parts.append(part)
            faults |= {int(where[row]): fault for row, fault in found.items()}
        order = np.argsort(np.concatenate(wheres))
        return {path: column[order] for path, column in joined(parts).items()}, faults


def _concatenated(tables: list[pa.Table]) -> list[pa.Table]:
    """Returns tables as one; as they are, where a column has several types among them."""
    try:
        return [pa.concat_tables(tables, promote_options="default")]
    except pa.ArrowException:
        return tables


def joined(parts: list[Part]) -> Part:
    """Returns parts, one at least, as one."""
    if len(parts) == 1:
        return parts[0]
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}
