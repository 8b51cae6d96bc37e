"""The rows of a dataset, read by their number from mapped Arrow files, on several threads."""

import contextlib
import functools
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import datasets
import numpy as np

from datarax.columns.arrow import Column, Rows, cores, rows_of, without_views
from datarax.columns.buffers import Buffers
from datarax.columns.column_reader import ColumnReader, column_reader
from datarax.columns.images import Damage, damaged
from datarax.columns.labels import expect_named
from datarax.columns.load import is_image
from datarax.columns.mapped import MappedFiles
from datarax.columns.nested import nested, parts
from datarax.columns.opened import OpenedFiles
from datarax.columns.picture_reader import EncodedReader, PixelReader, picture_reader
from datarax.columns.rows import ReadRows
from datarax.errors import expect_rows
from datarax.hub.private import table_of

# Rows of a large file between two looks at its memory; one fault maps up to 270 KB (Linux 6.18).
_LOOKED_AT = 64
# Bytes of a column that are worth a thread's turn: with parts of 512 KB, 2,048 rows of 784 bytes
# take 1.3 times as long on two threads as on one.
_PART = 4 << 20


class RowReader:
    """Reads rows of a dataset: the values that `load_columns` gives, without loading the rest.

    How each column is read is decided once. Which threads read changes nothing: each row has its
    place in an array that is there before.

    Args:
        dataset: Any dataset, selected, shuffled, mapped or filtered.
        features: The features of the columns to read.
        on_bad_rows: Whether a damaged image raises, or its row is told apart.
        num_threads: Threads that read; None: as many as there are cores.

    Raises:
        ValueError: A class label has no name, or an image is known to be damaged.

    Example:
        >>> dataset = datasets.Dataset.from_dict({"x": [1, 2, 3], "text": ["a", "b", "c"]})
        >>> RowReader(dataset, dataset.features).read(np.array([2, 0])).columns
        {'x': array([3, 1], dtype=int32), 'text': array(['c', 'a'], dtype=object)}
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        features: datasets.Features,
        *,
        on_bad_rows: Literal["raise", "skip"] = "raise",
        num_threads: int | None = None,
    ):
        self._made_of = functools.partial(
            *(RowReader, dataset, features), on_bad_rows=on_bad_rows, num_threads=num_threads
        )
        self._skips = on_bad_rows == "skip"
        self._threads = num_threads or cores()
        self._pool: ThreadPoolExecutor | None = None
        self._buffers = Buffers()
        scope = rows_of(dataset)
        self._length, self._positions = scope.length, scope.positions
        self._leaves: dict[tuple[str, ...], tuple[Column, ColumnReader]] = {}
        table = without_views(table_of(dataset).select(list(features)))
        for name, feature in features.items():
            stored = Column((name,), feature, table.column(name), scope)
            for column in parts(stored, scope):
                self._leaves[column.path] = column, self._reader(column)
        self._files = MappedFiles(
            address for leaf in self._leaves.values() for address in _addresses(*leaf)
        )
        self.trim = self._files.trim
        self.trim()
        if self._files.is_large:
            with contextlib.suppress(OSError):  # what is not opened is mapped
                opened = OpenedFiles(self._files.ranges)
                for _, reader in self._leaves.values():
                    reader.read_from(opened)

    def _reader(self, column: Column) -> ColumnReader:
        if not is_image(column):
            expect_named(column)
            return column_reader(column)
        reader = picture_reader(column)
        if not self._skips and isinstance(reader, PixelReader) and reader.damage:
            raise damaged(column, *min(reader.damage.items()))
        return reader

    @property
    def empty(self) -> dict[str, Any]:
        """The columns without rows: arrays of shape `(0, ...)`, and `HostColumn`s."""
        return nested((path, reader.empty) for path, (_, reader) in self._leaves.items())

    def read(
        self, indices: np.ndarray, names: Collection[str] | None = None, seed: int = 0
    ) -> ReadRows:
        """Reads rows.

        Args:
            indices: Their numbers in the dataset, integers of shape `(k,)`, each in range.
            names: The columns to read; None: all.
            seed: The seed of their epoch, on which no row here depends.

        Raises:
            IndexError: There is no such row.
            ValueError: An image is damaged, or an integer does not fit; it names column and row.
        """
        numbers = np.asarray(indices, np.int64)
        expect_rows(numbers, self._length)
        positions = numbers if self._positions is None else self._positions[numbers]
        rows = Rows(len(numbers), positions, numbers)
        leaves = [leaf for leaf in self._leaves.values() if not names or leaf[0].path[0] in names]
        out = [
            self._buffers.empty((rows.length, *reader.empty.shape[1:]), reader.empty.dtype)
            for _, reader in leaves
        ]
        tasks = [
            (column, reader, some, array[where])
            for (column, reader), array in zip(leaves, out, strict=True)
            for where, some in self._split(reader, rows)
        ]
        self._files.expect_whole()
        whole, begun = np.ones(rows.length, bool), time.perf_counter()
        found, took = self._run(tasks), time.perf_counter() - begun
        for (column, _, some, _), damage in zip(tasks, found, strict=True):
            if damage and not self._skips:
                rows_at_fault = {int(row): said for row, said in damage.items()}
                raise damaged(Column(column.path, column.feature, column.values, some),
                              *min(rows_at_fault.items()))  # fmt: skip
            if damage:
                assert some.numbers is not None
                whole &= ~np.isin(numbers, some.numbers[list(damage)])
        paths = (column.path for column, _ in leaves)
        # Of encoded images, copying the bytes is nothing beside decoding them.
        decodes = any(isinstance(reader, EncodedReader) for _, reader in leaves)
        return ReadRows(nested(zip(paths, out, strict=True)), whole, decodes * took)

    def _split(self, reader: ColumnReader, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        """Yields the parts of rows that threads read."""
        most = max(1, reader.row_bytes * rows.length // _PART)
        step = -(-rows.length // min(most, 2 * self._threads)) if self._threads > 1 else rows.length
        for start in range(0, rows.length, max(1, step)):
            where = slice(start, start + step)
            yield where, _part(rows, where)

    def _run(self, tasks: list[tuple[Column, ColumnReader, Rows, np.ndarray]]) -> list[Damage]:
        """Returns what is wrong with the rows of each task; the first that failed raises."""
        large = [task for task in tasks if task[1].row_bytes * task[2].length >= _PART // 2]
        if len(large) < 2 or self._threads == 1:
            return [self._read(reader, rows, out) for _, reader, rows, out in tasks]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="datarax-rows")
        reading: list[Future[Damage]] = [
            self._pool.submit(self._read, reader, rows, out) for _, reader, rows, out in tasks
        ]
        try:
            # This thread reads what no other has begun: a block of 784-byte rows takes 0.5 ms.
            return [
                self._read(*task[1:]) if future.cancel() else future.result()
                for task, future in zip(tasks, reading, strict=True)
            ]
        finally:
            for future in reading:
                future.cancel()

    def _read(self, reader: ColumnReader, rows: Rows, out: np.ndarray) -> Damage:
        if not (self._files.is_large and reader.maps):
            return reader.read(rows, out)
        damage: Damage = {}
        for start in range(0, rows.length, _LOOKED_AT):
            some = slice(start, start + _LOOKED_AT)
            found = reader.read(_part(rows, some), out[some])
            damage |= {start + row: said for row, said in found.items()}
            self.trim()
        return damage

    def __reduce__(self):
        return self._made_of, ()  # its files lie elsewhere in another process's memory

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowReader":
        return self  # what it holds is never written to


def _part(rows: Rows, where: slice) -> Rows:
    assert rows.positions is not None
    assert rows.numbers is not None
    return Rows(len(rows.positions[where]), rows.positions[where], rows.numbers[where])


def _addresses(column: Column, reader: ColumnReader) -> Iterator[int]:
    """Yields addresses of the memory that a column's rows are read from."""
    if isinstance(reader, PixelReader):
        yield reader.address
        return
    chunks: Any = column.values.chunks
    for chunk in chunks:
        yield from (buffer.address for buffer in chunk.buffers() if buffer)
