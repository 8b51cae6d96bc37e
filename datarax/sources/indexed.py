"""The base of sources whose rows are read by number, from host memory or disk, batch by batch."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer

from datarax.columns.fingerprint import fingerprint_rows
from datarax.columns.host import HostColumn, is_host
from datarax.columns.rows import ReadRows, each_row, joined, on_device
from datarax.errors import expect_between, expect_rows
from datarax.order.canonical import row_positions
from datarax.order.epochs import key_seed
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.memory import columns_of
from datarax.sources.module import DataraxModuleConfig
from datarax.sources.random_access import RandomAccessSource
from datarax.sources.row_spec import RowSpec
from datarax.stream.block import Block

_COLUMN_BLOCK = 8192  # rows read at once of a whole column, such as the classes of a view


class IndexedSourceBase(RandomAccessSource):
    """A source that reads rows by their number: the order of an eager source, for data of any size.

    A subclass defines `__len__` and `read_rows`, and has order, state, views, `Pipeline`,
    `prefetch_to_device` and the trainer: the same batches as a `MemorySource` of the same arrays,
    bit for bit, and a state that either restores. Only the rows of a few batches are in memory.

    Args:
        config: The subclass's configuration.
        shuffle: Whether each epoch has its own random order: a full permutation.
        seed: Seed of that order, from 0 to 2**32 - 1.
        fingerprint: Fingerprint of the data's content; of up to 1,024 rows where None.
        revision: The version that the data was resolved to; part of the state.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If there are no rows, or columns of different lengths.

    Example:
        >>> class Squares(IndexedSourceBase):
        ...     def __len__(self):
        ...         return 10
        ...
        ...     def read_rows(self, indices):
        ...         return {"x": indices, "y": indices.astype(np.float32) ** 2}
        >>> Squares(SourceConfigBase()).get_batch(3)["y"]
        Array([0., 1., 4.], dtype=float32)
    """

    def __init__(
        self,
        config: DataraxModuleConfig,
        *,
        shuffle: bool = False,
        seed: int = 42,
        fingerprint: str | None = None,
        revision: str | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        rows = self._count_rows()
        if not rows:
            raise ValueError(
                f"{name or type(self).__name__} has no rows: a source needs one record at least."
            )
        self._spec = nnx.static(RowSpec(self._first_row()))
        fingerprint = fingerprint or fingerprint_rows(self.host_rows, rows)
        super().__init__(
            config,
            length=rows,
            shuffle=shuffle,
            seed=seed,
            fingerprint=fingerprint,
            revision=revision,
            rngs=rngs,
            name=name,
        )
        self._shards = self._together = 1  # canonical ones, and those whose rows lie together
        # Which share of every batch is read here, and how many shares there are.
        self._reader, self._readers = 0, 1

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        # A view of the source has another length, so `len` cannot be the subclass's method.
        if "__len__" in vars(cls):
            cls._count_rows = vars(cls)["__len__"]
            del cls.__len__

    # --- what a subclass defines -----------------------------------------------------------------

    def _count_rows(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} defines no __len__().")

    def read_rows(self, indices: np.ndarray) -> dict[str, Any]:
        """Returns some rows; a subclass defines it. The trainer calls it on a thread of its own.

        Args:
            indices: Numbers of rows, `int64` of shape `(k,)`, in any order, some perhaps twice.

        Returns:
            Nested dict of arrays of shape `(k, ...)`, each column with one shape and dtype whatever
            the rows; or lists of `k` Python objects.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no read_rows(indices).")

    # --- what it is ------------------------------------------------------------------------------

    def element_spec(self) -> dict[str, Any]:
        """Returns the shape and dtype of one record, as of the first row; see `Source`."""
        return self._spec.record

    def host_columns(self) -> tuple[HostColumn, ...]:
        """Returns the columns that are no arrays, nested ones too, without rows."""
        return self._spec.host

    def host_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some rows of all columns; see `RandomAccessSource.host_rows`."""
        numbers = np.asarray(rows, np.int64)
        expect_rows(numbers, self._count_rows())
        return self._read(numbers, seed=0).columns

    def sharded(self, shards: int) -> Self:
        """Returns a source in the order that eager data has when they are dealt to shards.

        Raises:
            ValueError: If there are fewer records than shards.
        """
        replace(self.order, shards=shards)
        source = self.clone()
        source._shards = shards
        return source

    def share(self, shards: int, reader: int, readers: int) -> tuple[Self, int]:
        """Returns a source of one process's rows of every batch, those of a shard together."""
        source = self.clone()
        source._shards = source._together = shards
        source._reader, source._readers = reader, readers
        return source, readers

    # --- batches ---------------------------------------------------------------------------------

    def get_batch_at(
        self, start: int | jax.Array, size: int, key: jax.Array | None = None
    ) -> dict[str, Any]:
        """Returns `size` records from position `start` of the epoch that `key` names.

        It changes nothing. Past the end it wraps in the same permutation.

        Args:
            start: Position within the epoch; not traced, since the rows are read on the host.
            size: Number of records.
            key: PRNG key of the epoch; see `EagerSourceBase.get_batch_at`.

        Raises:
            NotImplementedError: If `start` or `key` is traced.
            ValueError: If the order is random and `key` is None, or `size` is not positive.
        """
        expect_between("size", size, 1, MAX_RECORDS)
        if any(isinstance(value, Tracer) for value in (start, key)):
            raise NotImplementedError(
                f"{self.label} reads its rows on the host, which a compiled function cannot: train "
                "with trainers.Trainer, iterate over a Pipeline or prefetch_to_device, or load the "
                "data with an eager source."
            )
        order = replace(self.order, seed=self._key_seed(key))
        records = order.host_records(0, int(start) % self.length + np.arange(size))
        seed = self.seed if key is None else int(key_seed(key))
        return on_device(self._read(records, seed).columns)

    def get_host_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns what `get_batch` does, as NumPy arrays."""
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        rows = self._host_rows(*self.position(), batch_size)
        self.skip(batch_size)
        self._count(rows)
        return rows.columns

    def take(self, count: int, step: int) -> Iterator[dict[str, Any]]:
        """Yields the next `count` records; see `Source.take`."""
        if count:
            yield self.get_host_batch(count)

    def read_batches(self, batches: int, batch_size: int) -> Block:
        """Returns the next batches of this epoch, stacked in host memory; see `Source`.

        An epoch's last batch is filled up with the epoch's first records, which do not count.
        """
        epoch, index = self.position()
        whole = batch_size * self._readers
        filled = min(batches, -(-(self.length - index) // whole))
        rows = row_positions(whole, self._together)[self._reader * batch_size :][:batch_size]
        positions = index + whole * np.arange(batches)[:, None] + rows
        records = self.records_at(epoch, positions[:filled].reshape(-1))
        read = self._read(records, (self.seed + epoch) % 2**32)
        columns = jax.tree.map(lambda column: _stacked(column, batches, batch_size), read.columns)
        valid = positions < self.length
        full = int(valid.all(axis=1).sum())
        valid[:filled] &= read.whole.reshape(filled, batch_size)
        skipped = len(read.whole) - int(read.whole.sum())
        self._counts.skipped += skipped
        self._counts.decoding += read.decoding
        ends = np.minimum(index + whole * np.arange(batches + 1), self.length).tolist()
        self.move(epoch, ends[-1])
        states, ranks = [(epoch, end) for end in ends], positions.astype(np.uint32)
        return Block(columns, valid, ranks, epoch, filled, states, skipped, full)

    @property
    def decoding_seconds(self) -> float:
        """Seconds that decoding and transforming rows took so far; see `Source`."""
        return self._counts.decoding

    def records_at(self, epoch: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the number of each record of an epoch; see `Source`."""
        return replace(self.order, shards=self._shards).host_records(epoch, ranks)

    # --- parts -----------------------------------------------------------------------------------

    def _next_batch(self, batch_size: int) -> dict[str, Any]:
        rows = self._host_rows(*self.position(), batch_size)
        self.skip(batch_size)
        self._count(rows)
        return rows.columns if rows.whole.all() else _some(rows.columns, rows.whole)

    def _count(self, rows: ReadRows) -> None:
        self._counts.applied += int(rows.whole.sum())
        self._counts.skipped += int((~rows.whole).sum())

    def _each(self, epoch: int, index: int, size: int) -> Iterator[dict[str, Any] | None]:
        rows = self._host_rows(epoch, index, size)
        self._counts.skipped += int((~rows.whole).sum())
        records = each_row(on_device(rows.columns))
        return (
            record if whole else None for record, whole in zip(records, rows.whole, strict=True)
        )

    def _rows(self, epoch: int, index: int, size: int) -> dict[str, Any]:
        return on_device(self._host_rows(epoch, index, size).columns)

    def _host_rows(self, epoch: int, index: int, size: int) -> ReadRows:
        """Returns what `_rows` does, as NumPy arrays, and which of them count."""
        parts = []
        while size:
            count = min(size, self.length - index)
            records = self.order.host_records(epoch, np.arange(index, index + count))
            parts.append(self._read(records, (self.seed + epoch) % 2**32))
            epoch, index, size = epoch + 1, 0, size - count
        self._counts.decoding += sum(part.decoding for part in parts)
        return parts[0] if len(parts) == 1 else joined(parts)

    def _column(self, name: str) -> Any:
        for column in self.host_columns():
            if column.name == name:
                return column
        records = self.stored_records(np.arange(self.length))
        starts = range(0, self.length, _COLUMN_BLOCK)
        return np.concatenate([self._part(name, records[s : s + _COLUMN_BLOCK]) for s in starts])

    def _part(self, name: str, records: np.ndarray) -> np.ndarray:
        """Returns rows of one column."""
        return self.host_rows(records)[name]

    def _first_row(self) -> dict[str, Any]:
        """Returns the first row's columns, or columns without rows, which tell what a row is."""
        return columns_of(self.read_rows(np.zeros(1, np.int64)))

    def _read(self, records: np.ndarray, seed: int) -> ReadRows:
        """Returns rows of the columns, checked against the first row.

        Args:
            records: Their numbers, int64 of shape `(k,)`.
            seed: The seed of their epoch, `(seed of the order + epoch) % 2**32`, for a subclass
                whose rows differ from epoch to epoch.
        """
        # A subclass is never asked for no rows: what it stacks then has no shape.
        asked = records if len(records) else np.zeros(1, np.int64)
        rows = columns_of(self.read_rows(asked))
        self._spec.check(rows, asked)
        if not len(records):
            rows = jax.tree.map(lambda column: np.asarray(column)[:0], rows, is_leaf=is_host)
        columns = jax.tree.map(np.asarray, rows, is_leaf=is_host)
        return ReadRows(columns, np.ones(len(records), bool))


def _stacked(column: np.ndarray, batches: int, size: int) -> np.ndarray:
    filled = column.reshape(-1, size, *column.shape[1:])
    missing = batches - len(filled)
    return filled if not missing else np.concatenate([filled, filled[:1].repeat(missing, axis=0)])


def _some(columns: dict[str, Any], which: np.ndarray) -> dict[str, Any]:
    return jax.tree.map(lambda column: column[which], columns)
