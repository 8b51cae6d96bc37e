"""Documents packed into rows of one length, each a segment of its own."""

from collections.abc import Mapping
from typing import Any, Literal

import datasets
import numpy as np

from datarax.errors import expect_between
from datarax.tokens.lists import flat_tokens
from datarax.tokens.padding import token_weights, with_columns


class Packer:
    """Packs documents into rows of one length: a function for `map(..., batched=True)`.

    A batch of documents becomes a batch of rows, so the other columns have to go:
    `map(packer, batched=True, remove_columns=[...], features=packer.features)`. Batches are packed
    by themselves; 1,000 documents, the default of `map`, leave about 1 % of the rows empty.

    `"best_fit"` puts the longest pieces first, each into the fullest row that has room ("best-fit
    decreasing": Johnson, "Near-optimal bin packing algorithms", 1973). `"split"` puts the documents
    one after the other and cuts at each row's end, so only a batch's last row has padding, and most
    rows begin in the middle of a document. Both cut a document that is longer than a row into rows
    and a rest, and lose no token.

    Args:
        length: Tokens a row.
        method: `"best_fit"` or `"split"`.
        end_id: Token to put behind each document, or None.
        column: The column of integer lists that holds the documents.
        pad_id: The token that fills the rest of a row.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> documents = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9], [4]]})
        >>> rows = documents.map(Packer(4), batched=True)
        >>> rows["input_ids"][:]
        [[5, 6, 7, 4], [8, 9, 0, 0]]
        >>> rows["segment_ids"][:]
        [[1, 1, 1, 2], [1, 1, 0, 0]]
        >>> rows["positions"][:]
        [[0, 1, 2, 0], [0, 1, 0, 0]]
    """

    def __init__(
        self,
        length: int,
        method: Literal["best_fit", "split"] = "best_fit",
        end_id: int | None = None,
        *,
        column: str = "input_ids",
        pad_id: int = 0,
    ):
        expect_between("length", length, 1, 2**31 - 1)
        if method not in ("best_fit", "split"):
            raise ValueError(f"method={method!r}: expected 'best_fit' or 'split'.")
        self.length, self.method, self.end_id = int(length), method, end_id
        self.column, self.pad_id = column, pad_id

    @property
    def features(self) -> datasets.Features:
        """The features of the rows, for `map(..., features=packer.features)` of a stream."""
        kinds = {self.column: "int32", "segment_ids": "int32", "positions": "int32"}
        return datasets.Features(
            {
                name: datasets.List(datasets.Value(kind), length=self.length)
                for name, kind in {**kinds, "weights": "float32"}.items()
            }
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Packs a batch of documents.

        Args:
            batch: Columns of the documents: `column`, lists of integers, and perhaps `weights`, a
                number a token, as `chat` gives them.

        Returns:
            `column`, `segment_ids`, `positions`, all `int32`, and `weights`, `float32`, of shape
            `(rows, length)`. Segments are numbered from 1 in each row, 0 is padding; positions
            begin at 0 in each segment; weights are the documents', 1 where they have none, and 0 on
            padding.

        Raises:
            ValueError: If there is no such column, or it holds no integer lists.
        """
        tokens, sizes = flat_tokens(batch, self.column)
        weights = token_weights(batch, sizes)
        weights = np.ones(len(tokens), np.float32) if weights is None else weights
        if self.end_id is not None:
            ends = np.cumsum(sizes)
            tokens = np.insert(tokens, ends, self.end_id)
            # The end of a document that counts is learned, too: 0 only behind a last weight of 0.
            last = weights[np.maximum(ends - 1, 0)] if len(weights) else np.ones(len(ends))
            weights = np.insert(weights, ends, np.where(sizes > 0, last, 1))
            sizes = sizes + 1
        cut = _split if self.method == "split" else _best_fit
        return self._filled(tokens, weights, *cut(sizes, self.length))

    def _filled(
        self, tokens: np.ndarray, weights: np.ndarray, sizes: np.ndarray, starts: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the rows.

        Args:
            tokens: All tokens, the pieces one after the other.
            weights: Their weights.
            sizes: Tokens of each piece, none of them 0.
            starts: Position of each piece's first token in the rows laid end to end.
        """
        rows = int(starts.max()) // self.length + 1 if len(starts) else 0
        order = np.argsort(starts)
        row = starts[order] // self.length
        segment = np.empty(len(starts), np.int32)
        segment[order] = np.arange(len(row)) - np.searchsorted(row, row) + 1

        within = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        place = np.repeat(starts, sizes) + within
        kinds = {self.column: (np.int32, self.pad_id, tokens), "weights": (np.float32, 0, weights)}
        kinds["segment_ids"] = np.int32, 0, np.repeat(segment, sizes)
        kinds["positions"] = np.int32, 0, within
        columns = {}
        for name in self.features:
            dtype, padding, values = kinds[name]
            column = np.full(rows * self.length, padding, dtype)
            column[place] = values
            columns[name] = column.reshape(rows, self.length)
        return columns


def pack(
    dataset: datasets.Dataset,
    length: int,
    *,
    column: str = "input_ids",
    end_id: int | None = None,
) -> datasets.Dataset:
    """Returns a dataset of all tokens one after the other, cut into rows of `length`.

    The rows do not say where a document ends; `Packer` keeps documents apart and takes streams.

    Args:
        dataset: Has a column of integer lists of any lengths.
        length: Tokens a row; fewer than `length` at the very end are left out.
        column: The column of tokens; the other columns are left out.
        end_id: Token to put behind each list, or None.

    Returns:
        A dataset with `column` as `(length,)` of `int32` a row, and `attention_mask`, all ones.

    Raises:
        ValueError: If there is no such column, it holds no integer lists, or there are fewer than
            `length` tokens.

    Example:
        >>> tokens = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8]]})
        >>> pack(tokens, 3, end_id=1)["input_ids"][:]
        [[5, 6, 7], [1, 8, 1]]
    """
    expect_between("length", length, 1, 2**31 - 1)
    values, sizes = flat_tokens(dataset, column)
    if end_id is not None:
        values = np.insert(values, np.cumsum(sizes), end_id)
    rows = len(values) // length
    if not rows:
        raise ValueError(f"There are {len(values)} tokens: fewer than one row of length={length}.")
    packed = values[: rows * length].reshape(rows, length)
    return with_columns(None, {column: packed, "attention_mask": np.ones((rows, length), np.int8)})


# --- where the pieces of documents go ---------------------------------------------------------


def _split(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sizes and starts of pieces laid end to end and cut where a row ends."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(length, total + 1, length))
    cuts = cuts[cuts > 0]
    starts = np.concatenate([[0], cuts])[:-1]
    return cuts - starts, starts


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sizes and starts of pieces, each in the fullest row that had room for it.

    The rows are in the order of their first documents, and so are the pieces of a row.
    """
    whole, rest = np.divmod(sizes, length)
    counts = whole + (rest > 0)
    pieces = np.full(int(counts.sum()), length)
    last = np.cumsum(counts)[rest > 0] - 1
    pieces[last] = rest[rest > 0]

    row = np.empty(len(pieces), np.int64)
    room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the room they have
    some = 0  # bit r is set where a row has room for r tokens
    rows = 0
    for piece in np.argsort(-pieces, kind="stable").tolist():
        size = int(pieces[piece])
        fitting = some >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1  # the least room that is enough
            number = room[left].pop()
            if not room[left]:
                some ^= 1 << left
        else:
            left, number, rows = length, rows, rows + 1
        row[piece] = number
        if left > size:
            room[left - size].append(number)
            some |= 1 << (left - size)

    first = np.full(rows, len(pieces))
    np.minimum.at(first, row, np.arange(len(pieces)))
    row = np.argsort(np.argsort(first))[row]
    order = np.argsort(row, kind="stable")
    ordered = pieces[order]
    before = np.cumsum(ordered) - ordered  # tokens before a piece, of rows laid without padding
    starts = np.empty(len(pieces), np.int64)
    opens = np.searchsorted(row[order], row[order])  # the first piece of each piece's row
    starts[order] = row[order] * length + before - before[opens]
    return pieces, starts
