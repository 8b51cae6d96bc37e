"""Batches of a stream by step number: read ahead in blocks while the loop runs through the last."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax import MixedSource, Pipeline
from datarax.columns.rows import parted
from datarax.order.epochs import steps_per_epoch
from datarax.sources.streaming import merge_states
from trainers.data.blocks import Block, Blocks
from trainers.data.eager import Batches, formed_spec
from trainers.devices import agreement
from trainers.devices.layout import Layout

_BYTES = 32 << 20  # of a block at most
_BATCHES = 32  # in a block at most


class StreamBatches:
    """What the compiled loop reads of a pipeline over a stream: `Batches` for a source that cannot
    be indexed.

    The data is a block of a few batches, stacked; batch `t` is a row of it. Of several processes
    each reads the canonical streams whose records its devices hold; where the processes hold no
    equal shares, or there is one stream only, each reads all.

    Args:
        pipeline: The pipeline; clones of its source are read, so the caller's does not move.
        layout: The devices.
        stored_order: Whether to read in stored order, whatever the source's `shuffle`.

    Attributes:
        stages: Variables of the stages, carried through the loop.
        key: The pipeline's key, of which the stages' are folded.
        length: Number of records in an epoch, None where it is not known.
        steps_per_epoch: `ceil(length / batch_size)`, or None.
        capacity: Number of batches in a block; the last of them may be empty.
        readers: How many shares of the streams the processes read; 1: each reads all.
        spec: Shape and dtype of one record after the stages, by column, without host columns.
        host: The source's host columns, by name, that no stage replaced.
    """

    def __init__(self, pipeline: Pipeline, layout: Layout, *, stored_order: bool = False):
        self.source = pipeline.source.clone()
        self.source.reset()
        self.batch_size = pipeline.batch_size
        self._layout, self.readers, self._first = layout, 1, 0
        reader, readers = layout.reader(self.batch_size)
        if pipeline.shards > 1 and readers > 1:
            self.source = self.source.split(pipeline.shards, reader, readers)
            self.readers, self._first = readers, reader * self.batch_size // readers
        if stored_order:
            self.source.set_random_order(False)
        self.length = self.source.length
        self.steps_per_epoch = None
        if self.length is not None:
            self.steps_per_epoch = steps_per_epoch(self.length, self.batch_size)
        self.key = layout.replicate(pipeline.key.get_value())
        self._graph, self.stages = nnx.split(pipeline.stages)
        self._host = self.source.host_columns()
        zeros = jax.tree.map(
            lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), self.source.element_spec()
        )
        self._record, _ = parted(zeros, self._host)
        row_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._record))
        most = _BYTES // max(1, row_bytes * self.batch_size)
        self.capacity = max(1, min(_BATCHES, most))
        self.spec, _ = formed_spec(self)
        self.host = {column.name: column for column in self._host if column.name not in self.spec}

    @property
    def features(self) -> Mapping[str, Any]:
        """The source's features, as far as it knows them."""
        return getattr(self.source, "features", None) or {}

    @property
    def data(self) -> Any:
        """Shapes and dtypes of a block's data, to trace the program with."""
        shape, rows = (self.capacity, self.batch_size), self._layout.batch_sharding(axis=1)

        def stacked(x):
            return jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype, sharding=rows)

        record = self._record, np.zeros((), bool), np.uint32(0)
        return *jax.tree.map(stacked, record), np.uint32(0), self.key, np.int32(0)

    def rows(self, data: Any, stages: nnx.State, t: jax.Array):
        """Returns batch `t`, which of its records count, and the stages' variables; traceable."""
        _, batch, valid, stages = self.form(data, stages, t)
        return batch, valid, stages

    def form(self, data: Any, stages: nnx.State, t: jax.Array):
        """Returns the batch before the stages, and what `rows` returns."""
        columns, valid, places, epoch, key, start = data
        stored, valid, places = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, t - start, keepdims=False),
            (columns, valid, places),
        )
        graph = nnx.merge(self._graph, stages, copy=True)
        batch = graph(stored, key, jnp.full(len(places), epoch), places)
        return stored, batch, valid, nnx.state(graph)

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions, which they have."""
        return batch

    def extent(self, name: str) -> None:
        """Returns None: of a stream's values nothing is known beforehand."""

    def check(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` unless `state` is of this data in this order."""
        self.source.clone().set_state(state)

    def feed(self, t: int = 0, first: int = 0, state: dict[str, Any] | None = None) -> "StreamFeed":
        """Returns what gives a run its data.

        Args:
            t: The next step.
            first: The step that began with batch 0.
            state: The source's state before step `t`; None: the start of epoch 0.
        """
        return StreamFeed(self, t, state)

    def epoch_blocks(self) -> Iterator[tuple[Any, int, int]]:
        """Yields data, and the first step and the end of the steps that it serves, of one epoch."""
        feed, t = self.feed(), 0
        try:
            while True:
                data, stop = feed.block(t)
                if feed.epoch > 0:
                    return
                yield data, t, stop
                t = stop
        finally:
            feed.close()

    def place(self, columns: Any, *rest: Any) -> Any:
        """Returns a block's arrays on the devices, filled up to `capacity` batches."""
        columns, _ = parted(columns, self._host)
        sharding = self._layout.batch_sharding(axis=1)

        def filled_up(column):
            missing = self.capacity - len(column)
            if not missing:  # nothing writes to a block's arrays, so a copy would be for nothing
                return column
            return np.concatenate([column, np.zeros((missing, *column.shape[1:]), column.dtype)])

        def spread(column):
            def part(index):
                start, stop, _ = index[1].indices(self.batch_size)
                return column[:, start - self._first : stop - self._first]

            shape = self.capacity, self.batch_size, *column.shape[2:]
            return jax.make_array_from_callback(shape, sharding, part)

        arrays = jax.tree.map(filled_up, (columns, *rest))
        return jax.device_put(arrays) if sharding is None else jax.tree.map(spread, arrays)

    def whole(self, array: jax.Array) -> np.ndarray:
        """Returns an array that may be spread over processes; all of them ask for it."""
        return np.asarray(self._layout.replicate(array))


class StreamFeed:
    """Gives a run its data: blocks of a stream, read ahead of the loop.

    Args:
        batches: The batches.
        t: The next step.
        state: The source's state before it; None: the start of epoch 0.

    Attributes:
        epoch: The epoch of the block that was handed over last.
    """

    def __init__(self, batches: StreamBatches, t: int, state: dict[str, Any] | None):
        self._batches = batches
        self._source = batches.source.clone()
        if state is not None:
            self._source.set_state(state)
        self.epoch, self._index = (0, 0) if state is None else (state["epoch"], state["index"])
        size = batches.batch_size // batches.readers
        self._blocks = Blocks(self._source, size, batches.capacity, batches.readers, batches.place)
        self._block: Block | None = None
        self._start = t  # the step of the block's first batch

    def block(self, t: int) -> tuple[Any, int]:
        """Returns the data of step `t`, and the step up to which it serves."""
        block = self._reach(t)
        return (
            (*block.data, np.uint32(block.epoch), self._batches.key, np.int32(self._start)),
            self._start + block.filled,
        )

    def state_at(self, t: int) -> dict[str, Any]:
        """Returns the source's state before step `t`, one of the last block's or its end."""
        block = self._block or self._reach(t)
        own = self._source.state_at(block.positions[t - self._start])
        if self._batches.readers == 1:
            return own
        states = {tuple(state["streams"]): state for state in agreement.collected(own)}
        return merge_states(list(states.values()))

    def epoch_at(self, t: int) -> float:
        """Returns the epoch of step `t`, with the fraction where the length is known."""
        block, length = self._reach(t), self._batches.length
        index = self._index + int(block.counts[: t - self._start].sum())
        return block.epoch + (0 if length is None else index / length)

    def records(self, t: int) -> np.ndarray:
        """Returns the place in its epoch of each record of batch `t`, of shape `(batch_size,)`."""
        return self._batches.whole(self._reach(t).data[2])[t - self._start]

    def close(self) -> None:
        """Ends the reading."""
        self._blocks.close()
        self._source.close()

    def _reach(self, t: int) -> Block:
        while self._block is None or t >= self._start + self._block.filled:
            block = self._blocks.take()
            if self._block is not None:
                self._start += self._block.filled
                self._index += int(self._block.counts.sum())
            if block.epoch != self.epoch:
                self.epoch, self._index = block.epoch, 0
            self._block = block
        return self._block


def as_batches(
    pipeline: Pipeline, layout: Layout, *, stored_order: bool = False
) -> Batches | StreamBatches:
    """Returns the batches of a pipeline, whether its source can be indexed or not.

    Raises:
        ValueError: If every record of a mixture is asked for, in stored order: it never ends.
    """
    if stored_order and isinstance(pipeline.source, MixedSource):
        raise ValueError(
            "A mixture never ends, so it cannot be evaluated: give its sources, each by itself, as "
            'in eval_source={"a": a, "b": b}.'
        )
    kind = StreamBatches if pipeline.is_stream else Batches
    return kind(pipeline, layout, stored_order=stored_order)
