"""A window: rows of a stream that are shuffled together."""

import zlib
from typing import Any

import numpy as np
import pyarrow as pa

from datarax.stream.decoder import Decoder, Part
from datarax.stream.piece import Piece


class Window:
    """Rows that are shuffled together.

    Args:
        pieces: The rows, as they were read.
        decoder: What makes columns of them.
        permutation: The order of the rows; None as they were read.
        anchor: The reader's state before them.
        number: How many windows came before in this epoch.
    """

    def __init__(
        self,
        pieces: list[Piece],
        decoder: Decoder,
        permutation: np.ndarray | None,
        anchor: dict[str, Any],
        number: int,
    ):
        self.anchor, self.number = anchor, number
        self._pieces, self._decoder, self._order = pieces, decoder, permutation
        self._length = sum(piece.rows for piece in pieces)
        self._numbers = joined([piece.numbers(decoder) for piece in pieces])
        if permutation is not None:
            self._numbers = {p: column.take(permutation, 0) for p, column in self._numbers.items()}
        self._table = None
        if decoder.lazy:
            self._table = pa.concat_tables([piece.rest() for piece in pieces])
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
        rest, damage = self._decoder.rest(table, lambda row: self._place(int(rows[row])))
        named = {row: f"{self._place(int(rows[row]))}: {found}" for row, found in damage.items()}
        return part | rest, named

    def check(self) -> str:
        """Returns a hash of length and last row: a window that was read again has the same."""
        if self._check is None:
            found = zlib.crc32(str(len(self)).encode())
            for column in self._numbers.values():
                found = zlib.crc32(column[-1:].tobytes(), found)
            if self._table is not None:
                last = self._table.slice(len(self) - 1).to_pylist()
                found = zlib.crc32(repr(last).encode(), found)
            self._check = f"{found:08x}"
        return self._check

    def _place(self, row: int) -> str:
        """Says where row `row`, as it was read, comes from."""
        for piece in self._pieces:
            if row < piece.rows:
                break
            row -= piece.rows
        return piece.place(row)


def joined(parts: list[Part]) -> Part:
    """Returns parts, one at least, as one."""
    if len(parts) == 1:
        return parts[0]
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}
