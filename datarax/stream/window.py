"""A window: rows of a stream that are shuffled together, as slices of the tables that were read."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from datarax.columns.arrow import as_python, without_views
from datarax.hub import network
from datarax.stream.decoder import Decoder, Part


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
        self._numbers: Part | None = None

    def numbers(self, decoder: Decoder) -> Part:
        """Returns the columns of numbers, made once: a slice is too short for that cost."""
        if self._numbers is None:
            self._numbers = decoder.numbers(self.rows, self.label)
            self.rows = self.rows.select(decoder.lazy_names)  # nothing is held twice
        return self._numbers

    def label(self, row: int) -> str:
        """Says where a row comes from."""
        return f"row {self.first + row} of {network.redacted(self._named(self.shard))}"


class Slice(NamedTuple):
    """Rows `start` to `stop` of a table."""

    table: Table
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def numbers(self, decoder: Decoder) -> Part:
        """Returns the columns of numbers, views of the table's."""
        columns = self.table.numbers(decoder)
        return {path: column[self.start : self.stop] for path, column in columns.items()}

    def rest(self) -> pa.Table:
        """Returns the other columns, once those of numbers were asked for."""
        return self.table.rows.slice(self.start, self.rows)

    def label(self, row: int) -> str:
        """Says where a row comes from."""
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
        self._length = sum(part.rows for part in slices)
        self._numbers = joined([part.numbers(decoder) for part in slices])
        if permutation is not None:
            self._numbers = {p: column.take(permutation, 0) for p, column in self._numbers.items()}
        self._table = None
        if decoder.lazy:
            self._table = pa.concat_tables([part.rest() for part in slices])
        self._check = None

    def __len__(self) -> int:
        return self._length

    def rows(self, start: int, stop: int) -> tuple[Part, dict[int, str]]:
        """Returns rows `start` to `stop`, and what is wrong with damaged ones, by their number."""
        part = {path: column[start:stop] for path, column in self._numbers.items()}
        if self._table is None:
            return part, {}
        rows = range(start, stop) if self._order is None else self._order[start:stop]
        if self._order is None:
            table = self._table.slice(start, stop - start)
        else:
            table = self._table.take(pa.array(rows))
        rest, damage = self._decoder.rest(table, lambda row: self._label(int(rows[row])))
        named = {row: f"{self._label(int(rows[row]))}: {found}" for row, found in damage.items()}
        return part | rest, named

    def check(self) -> str:
        """Returns a hash of length and last row: a window that was read again has the same."""
        if self._check is None:
            found = zlib.crc32(str(len(self)).encode())
            for column in self._numbers.values():
                found = zlib.crc32(column[-1:].tobytes(), found)
            if self._table is not None:
                last = self._table.slice(len(self) - 1)
                last = [{name: as_python(last[name][0]) for name in last.column_names}]
                found = zlib.crc32(repr(last).encode(), found)
            self._check = f"{found:08x}"
        return self._check

    def _label(self, row: int) -> str:
        """Says where row `row`, as it was read, comes from."""
        for part in self._slices:
            if row < part.rows:
                break
            row -= part.rows
        return part.label(row)


def joined(parts: list[Part]) -> Part:
    """Returns parts, one at least, as one."""
    if len(parts) == 1:
        return parts[0]
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}
