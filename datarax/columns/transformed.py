"""A dataset's rows as a transform makes them: some by number, or all as columns."""

import functools
import time
from collections.abc import Collection, Iterable
from typing import Any, Literal

import datasets
import numpy as np

from datarax.columns.arrow import gathered, rows_of, without_views
from datarax.columns.buffers import Buffers
from datarax.columns.load import Columns, chosen_features, row_numbers
from datarax.columns.mapped import MappedFiles
from datarax.columns.nested import Path, nested
from datarax.columns.outputs import OBJECT
from datarax.columns.records import Records
from datarax.columns.rows import ReadRows
from datarax.columns.transform import TransformFunction
from datarax.columns.transformer import Transformer
from datarax.hub.private import table_of

_AT_ONCE = 1024  # rows that are read for a transform at once, at most
_BYTES = 64 << 20  # and the bytes that they may have


class TransformedRows:
    """The rows of a dataset, by number, as a transform makes them.

    Args:
        dataset: Any dataset, selected, shuffled, mapped or filtered.
        function: The transform, `(record) -> record` or `(record, rng) -> record`.
        include: The columns of a record; None for all.
        exclude: Columns to leave out; a name that does not exist is no error.
        on_bad_rows: What to do where a record cannot be decoded or transformed: raise, or `"skip"`
            it: the first row stands in its place.
        num_threads: How many threads decode and transform; None for one a core.
        timeout: Seconds that a record may take; None for no limit.

    Raises:
        TypeError: The transform cannot be called with a record, or returns no dict.
        ValueError: The dataset is empty, or a column of `include` does not exist.
        Exception: What the transform raises for the first record, which decides the shapes.

    Example:
        >>> dataset = datasets.Dataset.from_dict({"text": ["to be", "or", "not to be"]})
        >>> rows = TransformedRows(dataset, lambda record: {"letters": len(record["text"])})
        >>> rows.read(np.array([2, 0])).columns
        {'letters': array([9, 5], dtype=int32)}
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        function: TransformFunction,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        on_bad_rows: Literal["raise", "skip"] = "raise",
        num_threads: int | None = None,
        timeout: float | None = None,
    ):
        self._made_of = functools.partial(
            TransformedRows,
            *(dataset, function),
            include=include,
            exclude=exclude,
            on_bad_rows=on_bad_rows,
            num_threads=num_threads,
            timeout=timeout,
        )
        features = chosen_features(dataset, include, exclude)
        self.transformer = Transformer(
            function,
            features,
            on_bad_rows=on_bad_rows,
            num_threads=num_threads,
            timeout=timeout,
        )
        self._table = without_views(table_of(dataset).select(list(features)))
        self._rows = rows_of(dataset)
        chunks = (chunk for column in self._table.columns for chunk in column.chunks)
        buffers = (buffer for chunk in chunks for buffer in chunk.buffers() if buffer is not None)
        self._files = MappedFiles(buffer.address for buffer in buffers)
        self.trim, self._buffers = self._files.trim, Buffers()
        row_bytes = max(1, self._table.nbytes // max(len(self._table), 1))
        self._at_once = max(1, min(_AT_ONCE, _BYTES // row_bytes))
        few = min(len(dataset), 64)
        shown = np.unique(np.r_[np.arange(few), [len(dataset) // 2, len(dataset) - 1]])
        self.transformer.learn(self._records(shown), lambda row: f"record {shown[row]}")

    def __len__(self) -> int:
        return self._rows.length

    def __reduce__(self):
        return self._made_of, ()  # its files lie elsewhere in another process's memory

    def __deepcopy__(self, memo: dict[int, Any]) -> "TransformedRows":
        return self  # its rows are never written to, and its threads are for all

    @property
    def features(self) -> datasets.Features:
        """The features of the columns that the transform makes, of those that have one."""
        return self.transformer.outputs.features

    def spec(self) -> dict[str, Any]:
        """Returns shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`."""
        return self.transformer.outputs.spec()

    @property
    def empty(self) -> dict[str, Any]:
        """The columns without rows: arrays of shape `(0, ...)`, and `HostColumn`s."""
        return self._columns(self.transformer.outputs.buffers(0))

    def read(
        self, indices: np.ndarray, names: Collection[str] | None = None, seed: int = 0
    ) -> ReadRows:
        """Returns some rows.

        Args:
            indices: Their numbers, integers of shape `(k,)`, in any order, some perhaps twice.
            names: The columns to return; None: all.
            seed: The seed of their epoch, `(seed + epoch) % 2**32`.

        Raises:
            IndexError: There is no such row.
            ValueError: A row has other columns, shapes or dtypes than the first; it names the row.
            TimeoutError: A row took longer than `timeout`.
            Exception: What the transform raised, with the row's number in its message.
        """
        indices = row_numbers(indices, len(self)) if len(indices) else np.empty(0, np.int64)
        out = self.transformer.outputs.buffers(len(indices), self._buffers.empty)
        whole, decoding = self._read_into(out, indices, seed)
        wanted = {p: column for p, column in out.items() if names is None or p[0] in names}
        return ReadRows(nested(wanted.items()), whole, decoding)

    def load(self, rows: np.ndarray | None = None) -> Columns:
        """Returns all rows, or some, as columns; rows that are skipped are left out.

        Args:
            rows: Load these rows only, in this order; integers of shape `(k,)`.
        """
        numbers = np.arange(len(self)) if rows is None else row_numbers(rows, len(self))
        out = self.transformer.outputs.buffers(len(numbers))
        whole, _ = self._read_into(out, numbers, 0)
        skipped = len(numbers) - int(whole.sum())
        if skipped:
            out = {path: column[whole] for path, column in out.items()}
        return Columns(self._columns(out), len(numbers) - skipped, skipped, self.features)

    def _columns(self, out: dict[Path, np.ndarray]) -> dict[str, Any]:
        host = self.transformer.outputs.host_column
        return nested(
            (path, host(path, column) if column.dtype == OBJECT else column)
            for path, column in out.items()
        )

    def _read_into(
        self, out: dict[Path, np.ndarray], indices: np.ndarray, seed: int
    ) -> tuple[np.ndarray, float]:
        """Writes rows to arrays; returns which are whole, and the seconds of transforming them."""
        whole, took = np.ones(len(indices), bool), 0.0
        for start in range(0, len(indices), self._at_once):
            some = slice(start, start + self._at_once)
            part = {path: column[some] for path, column in out.items()}
            records = self._records(indices[some])
            begun = time.perf_counter()
            errors = self._apply(records, indices[some], seed, part)
            took += time.perf_counter() - begun
            for error in errors.values():
                if self.transformer.must_raise(error):
                    raise error
            whole[[start + row for row in errors]] = False
            self.trim()
        return whole, took

    def _apply(
        self, records: Records, indices: np.ndarray, seed: int, out: dict[Path, np.ndarray]
    ) -> dict[int, Exception]:
        return self.transformer.apply(
            records, indices, seed, out, lambda row: f"record {indices[row]}"
        )

    def _records(self, indices: np.ndarray) -> Records:
        self._files.expect_whole()
        positions = self._rows.positions
        stored = indices if positions is None else positions[indices]
        return Records(gathered(self._table, stored), self.transformer.features)
