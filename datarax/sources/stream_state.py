"""Where a source stands in a dataset's canonical streams: its position, order and state."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import datasets
import numpy as np
from flax import nnx

from datarax.columns.host import HostColumn
from datarax.columns.transform import TransformFunction
from datarax.errors import expect_between
from datarax.order.permutation import MAX_RECORDS
from datarax.order.windows import ShuffleOrder
from datarax.sources.in_order import InOrder
from datarax.sources.module import Counts, DataraxModuleConfig, register_host_state
from datarax.stream.block import Block, read_block
from datarax.stream.open_shard import ReadPolicy
from datarax.stream.reader import first_rows
from datarax.stream.schema import fingerprint
from datarax.stream.shards import Shards, more_shards
from datarax.stream.state import STATE_VERSION, merge_states, order_of
from datarax.stream.streams import Position, Streams
from datarax.stream.transformed import decoder_of


class PositionedStreams(InOrder):
    """Position, order and state of a source that reads canonical streams.

    Args:
        config: The subclass's configuration.
        shards: The shards that are read.
        order: The order of the records.
        policy: When a failure to read is an error.
        transform: What is applied to each record when it is handed out; None for nothing.
        num_threads: Threads that decode and transform; None for one a core.
        revision: The version that the data was resolved to, such as a commit of the Hub.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If there are no rows.
    """

    def __init__(
        self,
        config: DataraxModuleConfig,
        shards: Shards,
        order: ShuffleOrder,
        policy: ReadPolicy,
        *,
        transform: TransformFunction | None = None,
        num_threads: int | None = None,
        revision: str | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        super().__init__(config, rngs=rngs, name=name)
        first, opened = first_rows(shards, policy, keep=not order.shuffle or shards.num_shards == 1)
        decoder = decoder_of(first, transform, policy, num_threads)
        self.epoch = nnx.Variable(0)
        self.revision = revision
        self.fingerprint = fingerprint(shards, first)
        self._streams = Streams(shards, decoder, order, policy, opened=opened)
        self._resumes = False  # whether a `for` goes on where `set_state` put it

    # --- records ---------------------------------------------------------------------------------

    @property
    def length(self) -> int | None:
        """The number of records in an epoch, None where it is not known."""
        return self._streams.shards.length

    def element_spec(self) -> dict[str, Any]:
        """Returns the shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`.

        A host column's is `ShapeDtypeStruct((), numpy.dtype(object))`. It is known from the first
        rows, and holds for all.
        """
        return self._streams.decoder.spec()

    @property
    def features(self) -> datasets.Features:
        """The features of the columns, by name."""
        return self._streams.decoder.features

    def host_columns(self) -> tuple[HostColumn, ...]:
        """Returns the host columns, without rows: their names, and why they are no arrays."""
        errors = self._streams.decoder.host_errors()
        empty = np.empty(0, object)
        return tuple(HostColumn(name, empty, reason=why) for name, why in errors.items())

    @property
    def is_random_order(self) -> bool:
        """Whether each epoch has its own random order."""
        return self._streams.order.shuffle

    @property
    def seed(self) -> int:
        """Seed of the order; epoch `e` follows `(seed + e) % 2**32`."""
        return self._streams.order.seed

    def set_random_order(self, enabled: bool) -> None:
        """Sets whether each epoch has its own random order, and goes to the epoch's start."""
        self._reorder(shuffle=bool(enabled))

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the start of epoch 0, perhaps with another seed; see `Source.reset`."""
        if seed is not None:
            expect_between("seed", seed, 0, 2**32 - 1)
        self._reorder(seed=self.seed if seed is None else int(seed))
        self._begin(0)

    # --- for many devices and processes ----------------------------------------------------------

    def sharded(self, shards: int) -> Self:
        """Returns a source at the start of epoch 0 that reads `shards` canonical streams."""
        return self.split(shards)

    def share(self, shards: int, reader: int, readers: int) -> tuple[Self, int]:
        """Returns a source of a process's canonical streams, and how many processes share them."""
        if shards == 1 or readers == 1:
            return self, 1
        return self.split(shards, reader, readers), readers

    def joined_state(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns one state of those that all processes have; see `merge_states`."""
        # Several processes may have read the same streams.
        return merge_states(list({tuple(s["streams"]): s for s in states}.values()))

    def split(self, streams: int, process_index: int = 0, process_count: int = 1) -> Self:
        """Returns a source at the start of epoch 0 that reads one process's canonical streams.

        The shards are dealt to `streams` streams, each with its own window. Every batch holds the
        same number of records of each, so any number of processes that divides `streams` reads the
        same global batches: the processes' batches, joined in order.

        Args:
            streams: The number of canonical streams; it belongs to the run, not to its devices.
            process_index: Which process this is.
            process_count: How many there are.

        Raises:
            ValueError: If `process_count` does not divide `streams`, or there are fewer shards.
        """
        expect_between("process_count", process_count, 1, MAX_RECORDS)
        expect_between("process_index", process_index, 0, process_count - 1)
        expect_between("streams", streams, 1, MAX_RECORDS)
        if streams % process_count:
            raise ValueError(
                f"{streams} streams cannot be dealt to {process_count} processes: use a number of "
                f"processes that divides {streams}, or another number of streams from the start."
            )
        if streams > self._streams.shards.num_shards:
            raise ValueError(
                f"{streams} streams, but {self.label} has {self._streams.shards.num_shards} "
                f"shards: {more_shards(self._streams.shards)}."
            )
        share = streams // process_count
        numbers = range(process_index * share, (process_index + 1) * share)
        source = nnx.clone(self)
        source._counts = Counts()
        order = dataclasses.replace(self._streams.order, streams=streams)
        source._streams = self._streams.fork(order=order, numbers=numbers)
        source._begin(0)
        return source

    def read_batches(self, batches: int, batch_size: int) -> Block:
        """Returns the next batches of this epoch, stacked in host memory; see `Source`.

        Where fewer of them are used, go back with `go_to(block.positions[used])`.
        """
        self._expect_size(batch_size)
        block = read_block(self._streams, batches, batch_size)
        self._count(int(block.valid.sum()), block.skipped)
        self._streams.note_length(self.label, ended=block.filled < batches)
        return block

    @property
    def decoding_seconds(self) -> float:
        """Seconds that it took so far to make columns of rows; see `Source`."""
        return self._streams.decoder.seconds

    def begin_epoch(self) -> bool:
        """Goes to where a `for` begins (see `__iter__`); returns whether a state put it there."""
        resumes, self._resumes = self._resumes, False
        if self._streams.started and not resumes:
            self._begin(self._streams.epoch + 1)
        return resumes

    def next_epoch(self) -> None:
        """Goes to the start of the next epoch."""
        self._begin(self._streams.epoch + 1)

    def go_to(self, position: Position) -> None:
        """Goes back to a position of this epoch that `read_batches` gave."""
        self._streams.restore(position)

    def state_at(self, position: Position) -> dict[str, Any]:
        """Returns the state of the source when it stands at `position`."""
        order = self._streams.order
        return {
            "version": STATE_VERSION,
            **position.state(self._streams.numbers),
            "order": {
                "shuffle": order.shuffle,
                "seed": order.seed,
                "shuffle_buffer_size": order.shuffle_buffer_size,
                "streams": order.streams,
            },
            "fingerprint": self.fingerprint,
            "revision": self.revision,
        }

    def position(self) -> Position:
        """Returns the position, of which `state_at` makes a state, also later."""
        return self._streams.position()

    # --- state -----------------------------------------------------------------------------------

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that `get_state` returned, of this source or of one with the same data.

        The order is the state's from then on: its seed, whether it is random, and how many rows are
        shuffled together. A state of several processes' streams (see `merge_states`) serves each of
        them, whatever their number is now.

        Args:
            state: The dict, also after a round trip through JSON.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure, data, revision or number of streams differ, or it has
                values that no state has.
        """
        streams = self._streams
        order = order_of(state, self.get_state(), streams.numbers, streams.shards, self.label)
        if order != streams.order:
            self._reorder(**vars(order))
        self._streams.load(state)
        self.epoch.set_value(state["epoch"])
        self._resumes = True

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this source; a `for` begins the next epoch, as after a `break`."""
        self.set_state(state)
        self._resumes = False

    def close(self) -> None:
        """Closes the files; the next record opens them again."""
        position = self._streams.position().state(self._streams.numbers)
        self._streams.close()
        self._streams.load(position)

    # --- parts -----------------------------------------------------------------------------------

    def _begin(self, epoch: int) -> None:
        self._streams.begin(epoch)
        self.epoch.set_value(epoch)
        self._resumes = False

    def _settings_to(self, copy: Self) -> Self:
        copy._reorder(shuffle=self.is_random_order, seed=self.seed)
        return super()._settings_to(copy)

    def _reorder(self, **changes: Any) -> None:
        old = self._streams
        self._streams = old.fork(order=dataclasses.replace(old.order, **changes))
        old.close()
        self._begin(old.epoch)

    def _expect_size(self, batch_size: int) -> None:
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        streams = len(self._streams.numbers)
        if batch_size % streams:
            raise ValueError(
                f"batch_size={batch_size}: expected a multiple of {streams}, the number of streams "
                f"that {self.label} reads; each gives as many records to every batch."
            )

    def _count(self, applied: int, skipped: int) -> None:
        self._counts.applied += applied
        self._counts.skipped += skipped

    def get_operation_stats(self) -> dict[str, int]:
        """Returns how many records were handed out (`applied_count`), and how many damaged images
        and shards were left out (`skipped_count`)."""
        counts, bad = self._counts, self._streams.bad_shards
        return {"applied_count": counts.applied, "skipped_count": counts.skipped + bad}

    def reset_operation_stats(self) -> None:
        """Sets both counters to zero."""
        self._counts = Counts(skipped=-self._streams.bad_shards)


register_host_state(Streams)
