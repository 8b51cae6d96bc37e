"""Pieces of a stream: a few rows of a table that was read at once."""

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa

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
        self.rows, self.shard, self.first, self.length = rows, shard, first, len(rows)
        self._label = label
        self._numbers: Part | None = None

    def numbers(self, decoder: Decoder) -> Part:
        """Returns the columns of numbers, made once: a piece is too short for what that costs."""
        if self._numbers is None:
            self._numbers = decoder.numbers(self.rows, self.place)
            self.rows = self.rows.select(decoder.lazy_names)  # nothing is held twice
        return self._numbers

    def place(self, row: int) -> str:
        """Says where a row comes from."""
        return f"row {self.first + row} of {network.redacted(self._label(self.shard))}"


class Piece(NamedTuple):
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

    def place(self, row: int) -> str:
        """Says where a row comes from."""
        return self.table.place(self.start + row)
