"""A window: rows of a stream that are shuffled together, as slices of the tables that were read."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from datarax.columns.arrow import as_python, without_views
from datarax.stream.decoder import Decoder, Fault, Faults, Part
from datarax.stream.shards import row_label


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
        self.rows, self.shard, self.first, self.length = (
            without_views(rows),
            shard,
            first,
            len(rows),
        )
        self._named = label
        self._numbers: tuple[Part, Faults] | None = None

    def numbers(self, decoder: Decoder) -> tuple[Part, Faults]:
        """Returns the columns of numbers, made once: a slice is too short for that cost."""
        if self._numbers is None:
            self._numbers = decoder.numbers(self.rows)
            whole = decoder.with_all_columns(self.rows)
            self.rows = whole.select(decoder.lazy_names)  # nothing is held twice
        return self._numbers

    def label(self, row: int) -> str:
        """Names a row in an error."""
        return row_label(self.first + row, self._named(self.shard))


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
    """

    def __init__(
        self,
        slices: list[Slice],
        decoder: Decoder,
        permutation: np.ndarray | None,
        anchor: dict[str, Any],
        number: int,
    ):
        self.anchor, self.number = anchor, number
        self._slices, self._decoder, self._order = slices, decoder, permutation
        self._ends = np.cumsum([part.rows for part in slices])
        self._length = int(self._ends[-1])
        made = [part.numbers(decoder) for part in slices]
        self._numbers = joined([columns for columns, _ in made])
        starts = (self._ends - [part.rows for part in slices]).tolist()
        self._faults = {
            start + row: fault
            for start, (_, faults) in zip(starts, made, strict=True)
            for row, fault in faults.items()
        }
        if permutation is not None:
            self._numbers = {p: column.take(permutation, 0) for p, column in self._numbers.items()}
        self._tables = _concatenated([part.rest() for part in slices]) if decoder.lazy else []
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

    def error(self, row: int, fault: Fault) -> ValueError:
        """Returns the error to raise for row `row` of the window, which is wrong."""
        read = row if self._order is None else int(self._order[row])
        number = int(np.searchsorted(self._ends, read, side="right"))
        part = self._slices[number]
        label = part.label(read - int(self._ends[number]) + part.rows)
        return ValueError(f"column {fault.column!r}, {label}: {fault.found}.")

    def check(self) -> str:
        """Returns a hash of length and last row: a window that was read again has the same."""
        if self._check is None:
            found = zlib.crc32(str(len(self)).encode())
            for column in self._numbers.values():
                found = zlib.crc32(column[-1:].tobytes(), found)
            if self._tables:
                last = self._tables[-1].slice(len(self._tables[-1]) - 1)
                last = [{name: as_python(last[name][0]) for name in last.column_names}]
                found = zlib.crc32(repr(last).encode(), found)
            self._check = f"{found:08x}"
        return self._check

    def _rest(self, rows: np.ndarray) -> tuple[Part, Faults]:
        """Returns rows of the other columns, by their number as they were read."""
        if len(self._tables) == 1:
            table = self._tables[0]
            if self._order is None:
                return self._decoder.rest(table.slice(rows[0], len(rows)))
            return self._decoder.rest(table.take(pa.array(rows)))
        numbers = np.searchsorted(self._ends, rows, side="right")
        wheres, parts, faults = [], [], {}
        for number in np.unique(numbers).tolist():
            where, table = np.flatnonzero(numbers == number), self._tables[number]
            start = self._ends[number] - len(table)
            part, found = self._decoder.rest(table.take(pa.array(rows[where] - start)))
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
