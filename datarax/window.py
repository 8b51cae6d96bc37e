"""A window: rows of a stream that are shuffled together."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from datarax.decoder import Decoder, Path
from datarax.reader import Piece

Part = dict[Path, np.ndarray]


class Window:
    """Rows that are shuffled together.

    Args:
        pieces: The rows, as they were read.
        decoder: What makes columns of them.
        permutation: The order of the rows; None as they were read.
        anchor: The reader's state before them.
        number: How many windows came before in this epoch.
        label: Names a shard in an error.
    """

    def __init__(
        self,
        pieces: list[Piece],
        decoder: Decoder,
        permutation: np.ndarray | None,
        anchor: dict[str, Any],
        number: int,
        label: Callable[[int], str],
    ):
        self.anchor, self.number = anchor, number
        self._pieces, self._decoder, self._order, self._label = pieces, decoder, permutation, label
        tables = [piece.table for piece in pieces]
        self._table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        self._numbers = decoder.numbers(self._table, self._place)
        if permutation is not None:
            self._numbers = {path: column[permutation] for path, column in self._numbers.items()}
        self._check = None

    def __len__(self) -> int:
        return len(self._table)

    def rows(self, start: int, stop: int) -> tuple[Part, dict[int, str]]:
        """Returns rows `start` to `stop`, and what is wrong with damaged ones, by their number."""
        part = {path: column[start:stop] for path, column in self._numbers.items()}
        if not self._decoder.lazy:
            return part, {}
        rows = range(start, stop) if self._order is None else self._order[start:stop]
        if self._order is None:
            table = self._table.slice(start, stop - start)
        else:
            table = self._table.take(pa.array(rows))
        rest, damage = self._decoder.rest(table, lambda row: self._place(int(rows[row])))
        named = {row: f"{self._place(int(rows[row]))}: {found}" for row, found in damage.items()}
        return part | rest, named

    def check(self) -> str:
        """Returns a hash of length and last row: a window that was read again has the same."""
        if self._check is None:
            found = zlib.crc32(str(len(self)).encode())
            for column in self._numbers.values():
                found = zlib.crc32(column[-1:].tobytes(), found)
            if self._decoder.lazy:
                lazy = sorted({leaf.path[0] for leaf in self._decoder.lazy})
                last = self._table.select(lazy).slice(len(self) - 1).to_pylist()
                found = zlib.crc32(repr(last).encode(), found)
            self._check = f"{found:08x}"
        return self._check

    def _place(self, row: int) -> str:
        """Says where row `row`, as it was read, comes from."""
        for piece in self._pieces:
            if row < len(piece.table):
                break
            row -= len(piece.table)
        return f"row {piece.row + row} of {self._label(piece.shard)}"
