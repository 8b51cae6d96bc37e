"""The base of sources that are read in order, batch after batch, and resume exactly."""

from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from datarax.columns.rows import on_device
from datarax.columns.transform import TransformFunction
from datarax.errors import expect_between
from datarax.order.permutation import MAX_RECORDS
from datarax.order.windows import ShuffleOrder
from datarax.sources.module import DataraxModuleConfig
from datarax.sources.stream_state import PositionedStreams
from datarax.sources.transform_state import note_other_transform, state_with_transform
from datarax.stream.decoder import length_of, nested
from datarax.stream.open_shard import ReadPolicy
from datarax.stream.shards import Shards
from datarax.stream.state import merge_states as merge_states
from datarax.stream.streams import Position
from datarax.stream.window import joined

_MORE = 1024  # rows a canonical stream, read at a time beyond the length that a card claims


class StreamingSourceBase(PositionedStreams):
    """A source whose records are read on demand, in order: it cannot be indexed.

    Shuffled, each epoch has its own order: the shards are permuted, several are read at once, and
    `shuffle_buffer_size` rows or more are permuted among themselves. All of it is arithmetic on
    (seed, epoch), so that a state of a few KB, which holds no rows, gives back exactly the next
    record. A subclass passes on the `Shards` that it reads.

    Args:
        config: The subclass's configuration.
        shards: The shards that are read, which give Arrow tables.
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order, from 0 to 2**32 - 1; epoch `e` follows `(seed + e) % 2**32`.
        shuffle_buffer_size: How many rows are shuffled together; rows that are sorted stay
            clustered where it is small beside them.
        on_bad_rows: `"raise"` for an image or a shard that cannot be read, or `"skip"` it.
        timeout: Seconds without a row after which reading is an error, and that the transform of a
            record may take; None: no limit.
        transform: A function `record -> record` or `(record, rng) -> record` that is applied to
            each record when it is read; see `datarax.transforms`.
        num_threads: Threads that decode and transform; None for one a core. They change no batch.
        revision: The version that the data was resolved to, such as a commit of the Hub.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If there are no rows, or an argument is out of range.

    Example:
        >>> from datarax.stream.shards import TableShards
        >>> class Counted(StreamingSourceBase):
        ...     def __init__(self, n):
        ...         table = datasets.Dataset.from_dict({"x": range(n)})
        ...         super().__init__(SourceConfigBase(), TableShards(table))
        >>> Counted(10).get_batch(3)["x"]
        Array([0, 1, 2], dtype=int32)
    """

    def __init__(
        self,
        config: DataraxModuleConfig,
        shards: Shards,
        *,
        shuffle: bool = False,
        seed: int = 42,
        shuffle_buffer_size: int = 1000,
        on_bad_rows: Literal["raise", "skip"] = "raise",
        timeout: float | None = None,
        transform: TransformFunction | None = None,
        num_threads: int | None = None,
        revision: str | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        expect_between("seed", seed, 0, 2**32 - 1)
        expect_between("shuffle_buffer_size", shuffle_buffer_size, 1, MAX_RECORDS)
        super().__init__(
            config,
            shards,
            ShuffleOrder(bool(shuffle), int(seed), int(shuffle_buffer_size)),
            ReadPolicy(timeout, on_bad_rows),
            transform=transform,
            num_threads=num_threads,
            revision=revision,
            rngs=rngs,
            name=name,
        )

    # --- state -----------------------------------------------------------------------------------

    def state_at(self, position: Position) -> dict[str, Any]:
        """Returns the state of the source when it stands at `position`; see `Source`."""
        return state_with_transform(super().state_at(position), self._streams.decoder.transform)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state; see `PositionedStreams`. Of another transform, it warns once."""
        super().set_state(state)
        note_other_transform(state, self._streams.decoder.transform, self.label)

    # --- batches ---------------------------------------------------------------------------------

    def get_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the next `batch_size` records, fewer at the end of the epoch, but never none.

        The call that finds the epoch over begins the next.

        Args:
            batch_size: Number of records.

        Returns:
            Dict of JAX arrays of shape `(batch_size, ...)`, and object arrays for host columns.

        Raises:
            ValueError: If a row cannot be read or does not fit; the position stays where it was.
            ConnectionError, TimeoutError: If the network fails for good; likewise.

        Example:
            >>> dataset = datasets.Dataset.from_dict({"x": range(5)})
            >>> source = HFStreamingSource.from_dataset(dataset)
            >>> [source.get_batch(3)["x"].tolist() for _ in range(3)]
            [[0, 1, 2], [3, 4], [0, 1, 2]]
        """
        return on_device(self.get_host_batch(batch_size))

    def get_host_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the batch of `get_batch`, as NumPy arrays that may share the data's memory."""
        for _ in range(2):
            if (batch := self._next_batch(batch_size)) is not None:
                return batch
        raise ValueError(f"{self.label} has no record that can be read.")

    def take(self, count: int, step: int) -> Iterator[dict[str, Any]]:
        """Yields the next `count` records in parts, in host memory; see `Source.take`."""
        while count:
            batch = self.get_host_batch(count)
            count -= len(jax.tree.leaves(batch)[0])
            yield batch

    def _next_batch(self, batch_size: int) -> dict[str, Any] | None:
        """Returns the next batch, or begins the next epoch and returns None."""
        self._expect_size(batch_size)
        taken, skipped = self._streams.take(batch_size)
        parts = [part for parts in taken for part in parts if length_of(part)]
        self._streams.note_length(self.label, ended=not parts)
        if not parts:
            self._count(0, skipped)
            self._begin(self._streams.epoch + 1)
            return None
        batch = joined(parts)
        self._count(length_of(batch), skipped)
        return nested(batch.items())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the records of one epoch.

        The first `for` is epoch 0; later ones go on where `set_state` set the position, and
        otherwise begin the next epoch. The position moves with the loop.
        """
        resumes = self.begin_epoch()
        while (record := self._next_record()) is not None or resumes:
            resumes = False
            if record is not None:
                yield record

    def _next_record(self) -> dict[str, Any] | None:
        parts, skipped = self._streams.take_one()
        self._count(len(parts), skipped)
        self._streams.note_length(self.label, ended=not parts)
        if not parts:
            self._begin(self._streams.epoch + 1)
            return None
        # Rows of a host column stay on the host, where int64 is int64.
        return nested(
            (path, column[0] if column.dtype == object else jnp.asarray(column[0]))
            for path, column in parts[0].items()
        )

    def epoch_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields batches in host memory to the end of one epoch; it begins as a `for` does."""
        resumes = self.begin_epoch()
        while (batch := self._next_batch(batch_size)) is not None or resumes:
            resumes = False  # a state of an epoch's very end: here is the next one
            if batch is not None:
                yield batch

    def collect_to_array(self, num_records: int | None = None) -> dict[str, Any]:
        """Returns the next records as one array a column, on the default device.

        Args:
            num_records: How many, at most those left in the epoch; None: all that are left.

        Raises:
            ValueError: If `num_records` is None and the length unknown: it may never end.
        """
        wanted = self.length if num_records is None else num_records
        if wanted is None:
            raise ValueError(
                f"{self.label} is a stream of unknown length: write "
                "collect_to_array(num_records=...)."
            )
        expect_between("num_records", wanted, 1, MAX_RECORDS)
        step = len(self._streams.numbers)
        taken, skipped = self._streams.take(-(-wanted // step) * step)
        parts = [part for parts in taken for part in parts if length_of(part)]
        if not parts:
            self._begin(self._streams.epoch + 1)
            return self.collect_to_array(num_records)
        while num_records is None:  # the length may be a card's: the rows may be more
            taken, bad = self._streams.take(step * _MORE)
            more = [part for parts in taken for part in parts if length_of(part)]
            if not more:
                self._streams.note_length(self.label, ended=True)
                break
            parts, skipped = parts + more, skipped + bad
        batch = joined(parts)
        self._count(length_of(batch), skipped)
        arrays = {p: c for p, c in batch.items() if c.dtype != object}
        return on_device(nested(arrays.items()))
