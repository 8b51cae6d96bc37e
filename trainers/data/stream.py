"""Batches that a source gives in order: blocks are read ahead while the loop runs."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from datarax import Pipeline
from datarax.columns.rows import absent_of, explained, parted
from datarax.order.canonical import in_position_order, with_shards, without_shards
from trainers.data.batches import Batches, Feed
from trainers.data.blocks import Block, Blocks
from trainers.data.mixed import filled_up
from trainers.data.skipped import Drawn, Skipped
from trainers.devices import agreement
from trainers.devices.layout import Layout

_BYTES = 32 << 20  # of a block at most
_BATCHES = 32  # in a block at most


class StreamBatches(Batches):
    """Batches of a pipeline over a source that is read in host memory.

    The data is a block of a few batches, stacked; batch `t` is a row of it. Each of several
    processes reads its share of every batch where the source has shares, and otherwise all of it.

    Args:
        pipeline: The pipeline; clones of its source are read, so the caller's does not move.
        layout: The devices.
        stored_order: Whether to read all records in stored order, whatever the source's `shuffle`.

    Attributes:
        capacity: Number of batches in a block; the last of them may be empty.
        readers: How many shares of a batch the processes read; 1: each reads all.
        epoch_records: Records of an epoch, None where it is not known.
        by_number: Whether positions are (epoch, index).
    """

    def __init__(self, pipeline: Pipeline, layout: Layout, *, stored_order: bool = False):
        source = pipeline.source.clone()
        source.reset()
        reader, readers = layout.reader(pipeline.batch_size)
        source, self.readers = source.share(pipeline.shards, reader, readers)
        if stored_order:
            source.set_random_order(False)
        super().__init__(pipeline, source, layout, pipeline.drop_remainder and not stored_order)
        self._absent = absent_of(source.host_columns())
        self._first_row = reader * self.batch_size // readers if self.readers > 1 else 0
        zeros = jax.tree.map(
            lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), source.element_spec()
        )
        self._record, _ = parted(zeros)
        row_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._record))
        most = _BYTES // max(1, row_bytes * self.batch_size)
        self.capacity = max(1, min(_BATCHES, most))
        # An epoch by arithmetic is as long as its batches; a stream's is as long as its records.
        self.epoch_records = self.length
        self.by_number = source.is_indexable
        if self.by_number and self.steps_per_epoch is not None:
            self.epoch_records = self.batch_size * self.steps_per_epoch
        self._look({column.name: column for column in source.host_columns()})

    @property
    def data(self) -> Any:
        """Shapes and dtypes of a block's data, to trace the program with."""
        shape, rows = (self.capacity, self.batch_size), self._layout.batch_sharding(axis=1)

        def stacked(x):
            return jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype, sharding=rows)

        record = self._record, np.zeros((), bool), np.uint32(0)
        skipped = self.skipped_in(None)
        return *jax.tree.map(stacked, record), np.uint32(0), self.key, np.int32(0), skipped

    def feed(
        self, t: int = 0, first: int = 0, state: dict[str, Any] | None = None, rows: int = 0
    ) -> "StreamFeed":
        """Returns the feed of a run; see `Batches.feed`. `first` follows from the state."""
        return StreamFeed(self, t, state, rows)

    def epoch_blocks(self) -> Iterator[tuple[Any, int, int]]:
        """Yields data, and the first step and the end of the steps that it serves, of one epoch."""
        with contextlib.closing(self.feed()) as feed:
            for data, t, stop in feed.blocks(0, 2**31 - 1):
                if feed.epoch > 0:
                    return
                yield data, t, stop

    def blocks(self, state: dict[str, Any] | None) -> Blocks:
        """Returns the blocks that a clone of the source gives.

        Args:
            state: Where it begins; None: at the start of epoch 0.
        """
        source = self._source.clone()
        if state is not None:
            source.set_state(without_shards(state, self.shards))
        return Blocks(
            source,
            self.batch_size // self.readers,
            self.capacity,
            self.readers,
            self.to_devices,
            drop_remainder=self._drop_remainder,
        )

    def to_devices(self, columns: Any, *rest: Any) -> Any:
        """Returns a block's arrays on the devices, filled up to `capacity` batches."""
        columns, _ = parted(columns)
        sharding = self._layout.batch_sharding(axis=1)

        def filled_up(column):
            missing = self.capacity - len(column)
            if not missing:  # nothing writes to a block's arrays, so a copy would be for nothing
                return column
            return np.concatenate([column, np.zeros((missing, *column.shape[1:]), column.dtype)])

        def spread(column, sharding):
            def part(index):
                start, stop, _ = index[1].indices(self.batch_size)
                return column[:, start - self._first_row : stop - self._first_row]

            shape = self.capacity, self.batch_size, *column.shape[2:]
            return jax.make_array_from_callback(shape, sharding, part)

        arrays = jax.tree.map(filled_up, (columns, *rest))
        if sharding is None:
            return jax.device_put(arrays)
        return jax.tree.map(lambda column: spread(column, sharding), arrays)

    def joined_state(self, own: dict[str, Any]) -> dict[str, Any]:
        """Returns the state of all processes together, from each one's own after the same batch."""
        if self.readers > 1:
            own = self._source.joined_state(agreement.collected(own))
        return with_shards(own, self.shards)

    def skipped_in(self, block: Block | None) -> Skipped | None:
        """Returns the records that are left out; of a mixture, with those that a block holds.

        Args:
            block: The block; None: any, to trace the program with.
        """
        if self.skipped is None or not self.is_mixed:
            return self.skipped
        records, first = np.zeros((self.capacity, self.batch_size, 2), np.int32), 0
        if block is not None:
            records, first = self.numbers(block).astype(np.int32), block.positions[0].index
        drawn = Drawn(records, np.uint32(first % 2**32), len(self._source.parts))
        return dataclasses.replace(self.skipped, order=self._layout.replicate(drawn))

    def numbers(self, block: Block) -> np.ndarray:
        """Returns the number, or the rank, of each record of a block; see `Feed.records`.

        All processes ask for it. Its shape begins with `(capacity, batch_size)`.
        """
        if self.is_mixed:  # all of its draws are known, on every process
            first = block.positions[0].index + self.batch_size * np.arange(self.capacity)
            ranks = filled_up(first, self.batch_size, self.length)
        else:
            ranks = np.asarray(self._layout.replicate(block.data[2]))
        found = self._source.records_at(block.epoch, ranks.reshape(-1))
        return found.reshape(*ranks.shape, *found.shape[1:])

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions, where they have some."""
        return in_position_order(batch, self.shards) if self.by_number else batch

    def _stored(self, data: Any, t: jax.Array) -> tuple[Any, ...]:
        columns, valid, ranks, epoch, key, start, _ = data
        stored, valid, ranks = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, t - start, keepdims=False),
            (columns, valid, ranks),
        )
        return explained(stored, self._absent), valid, epoch, ranks, key


class StreamFeed(Feed):
    """Gives a run its data: blocks of a stream, read ahead of the loop.

    Args:
        batches: The batches.
        t: The next step.
        state: The source's state before it; None: the start of epoch 0.
        rows: Number of records that counted before it.

    Attributes:
        epoch: The epoch of the block that was handed over last.
    """

    def __init__(self, batches: StreamBatches, t: int, state: dict[str, Any] | None, rows: int):
        self._batches, self._rows = batches, rows
        self.epoch, self._index = (0, 0) if state is None else (state["epoch"], state["index"])
        self._blocks = batches.blocks(state)
        self.waited = self._blocks.waited
        self._block: Block | None = None
        self._skipped = batches.skipped
        self._start = t  # the step of the block's first batch

    def block(self, t: int) -> tuple[Any, int]:
        """Returns the data of step `t`, and the step up to which it serves."""
        block = self._reach(t)
        batches, epoch = self._batches, np.uint32(block.epoch)
        data = *block.data, epoch, batches.key, np.int32(self._start), self._skipped
        return data, self._start + block.filled

    def state_at(self, t: int) -> dict[str, Any]:
        """Returns the source's state before step `t`, one of the last block's or its end."""
        block = self._block or self._reach(t)
        own = self._blocks.state_at(block.positions[t - self._start])
        return self._batches.joined_state(own)

    def epoch_at(self, t: int) -> float:
        """Returns the epoch of step `t`, with the fraction where the length is known."""
        block, length = self._reach(t), self._batches.epoch_records
        index = self._index + int(block.counts[: t - self._start].sum())
        if self._batches.by_number:  # records that cannot be read do not count, and have a place
            index = block.positions[t - self._start][1]
        # One quotient, rounded once, so that it is the one of eager data to the last bit.
        return block.epoch if length is None else (block.epoch * length + index) / length

    def rows_at(self, t: int) -> int:
        """Returns the number of records that counted in `t` steps; nothing is read for it."""
        if self._block is None:
            return self._rows
        return self._rows + int(self._block.counts[: t - self._start].sum())

    def records(self, t: int) -> np.ndarray:
        """Returns the number of each record of batch `t`; see `Feed.records`."""
        block = self._reach(t)
        return self._batches.numbers(block)[t - self._start]

    def close(self) -> None:
        """Ends the reading."""
        self._blocks.close()

    def _reach(self, t: int) -> Block:
        while self._block is None or t >= self._start + self._block.filled:
            block = self._blocks.take()
            if self._block is not None:
                self._start += self._block.filled
                self._rows += int(self._block.counts[: self._block.filled].sum())
                self._index += int(self._block.counts.sum())
            if block.epoch != self.epoch:
                self.epoch, self._index = block.epoch, 0
            self._block, self._skipped = block, self._batches.skipped_in(block)
        return self._block
