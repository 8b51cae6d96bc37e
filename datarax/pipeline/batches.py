"""The batches of a pipeline: formed by one compiled step, or read and put through the stages."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.host import is_traced
from datarax.columns.rows import absent_of, has_host, merged, parted, with_host_rows, without_host
from datarax.order.order import Order
from datarax.pipeline import programs
from datarax.pipeline.graph import Graph
from datarax.sources.eager import EagerSourceBase
from datarax.sources.source import Source
from datarax.stream.block import Block


class TracedBatches:
    """Batches of a source whose columns compiled programs index.

    Args:
        source: The source, which moves.
        stages: The stages, whose variables change.
        key: The stages' key.
        size: Records in a batch.
        order: The source's order.
    """

    def __init__(
        self, source: EagerSourceBase, stages: Graph, key: jax.Array, size: int, order: Order
    ):
        self._source, self._stages, self._key = source, stages, key
        self._size, self._order = size, order
        self._absent = absent_of(source.host_columns())

    def epoch(self, drop_remainder: bool) -> Iterator[Any]:
        """Yields the batches of one epoch, the last one short or left out."""
        source, length = self._source, self._source.length
        source.begin_epoch()
        epoch, index = source.position()
        while index < length:
            size = min(self._size, length - index)
            if size < self._size and drop_remainder:
                source.move(epoch + 1, 0)
                return
            batch = self._at(np.int32(epoch), np.int32(index))
            index += size
            source.move(*((epoch, index) if index < length else (epoch + 1, 0)))
            yield batch if size == self._size else _first(size, batch)

    def step(self) -> Any:
        """Returns the next batch, always full; traceable."""
        epoch, index = self._position()
        batch = self._at(epoch, index)
        self._source.move(*self._order.advanced(epoch, index, self._size))
        return batch

    def scan(
        self, step_fn: Callable[..., Any], length: int, modules: tuple[Any, ...], carry: Any
    ) -> Any:
        """Runs `step_fn` over the next batches in one compiled program; see `Pipeline.scan`."""
        definition, state = nnx.split((self._stages, modules))
        static = step_fn, length, carry is not None, self._size, self._absent, definition
        start = (state, *self._position(), carry)
        (state, epoch, index, end), out = programs.scan(static, start, self._data())
        nnx.update((self._stages, modules), state)
        self._source.move(epoch, index)
        return out if carry is None else (end, out)

    def _position(self) -> tuple[jax.Array, jax.Array]:
        # As int32 arrays, whether ints or traced: one dtype means one trace.
        epoch, index = self._source.epoch.get_value(), self._source.index.get_value()
        return jnp.asarray(epoch, jnp.int32), jnp.asarray(index, jnp.int32)

    def _data(self) -> tuple[Any, ...]:
        return without_host(self._source.data), self._order, self._key

    def _at(self, epoch: Any, index: Any) -> Any:
        definition, state = nnx.split(self._stages)
        static = self._size, self._absent, definition
        batch, state, records = programs.step(static, state, epoch, index, self._data())
        nnx.update(self._stages, state)
        if not self._absent or is_traced(records):
            return batch
        if not isinstance(batch, dict):  # without names there is no room for host columns
            return batch
        columns = self._source.data
        rest = {k: v for k, v in columns.items() if k in batch or has_host({k: v})}
        return {**with_host_rows({**batch}, rest, np.asarray(records)), **batch}


class ReadBatches:
    """Batches that a source reads in host memory.

    Args:
        source: The source, which moves.
        stages: The stages, whose variables change.
        key: The stages' key.
        size: Records in a batch.
    """

    def __init__(self, source: Source, stages: Graph, key: jax.Array, size: int):
        self._source, self._stages, self._key, self._size = source, stages, key, size

    def epoch(self, drop_remainder: bool) -> Iterator[Any]:
        """Yields the batches of one epoch, the last one short or left out."""
        for block in self._source.epoch_blocks(self._size):
            if block.full or not drop_remainder:
                yield self._of(block)

    def step(self) -> Any:
        """Returns the next batch, short at the end of an epoch."""
        block = self._source.read_batches(1, self._size)
        if not block.filled:
            self._source.next_epoch()
            block = self._source.read_batches(1, self._size)
        return self._of(block)

    def scan(self, *_: Any) -> Any:
        """Raises `NotImplementedError`: see `Pipeline.scan`."""
        raise NotImplementedError(
            f"{type(self._source).__name__} is a stream, which a compiled loop cannot index: call "
            "step() in a loop of your own, or train with trainers.Trainer."
        )

    def _of(self, block: Block) -> Any:
        """Returns a block's only batch after the stages, the records that count."""
        columns = jax.tree.map(lambda column: column[0], block.columns)
        absent = absent_of(self._source.host_columns())
        epoch, ranks = np.uint32(block.epoch), block.ranks[0]
        batch = staged(self._stages, self._key, columns, absent, epoch, ranks)
        if block.valid.all():
            return batch
        # One canonical stream may end before another, so the records that count have gaps.
        records = np.flatnonzero(block.valid[0])
        return jax.tree.map(lambda x: x[records], batch)


def staged(
    stages: Graph, key: jax.Array, batch: dict[str, Any], absent: Any, epoch: Any, ranks: Any
) -> Any:
    """Returns a batch after the stages, whose variables change; host columns ride along.

    Args:
        stages: The stages.
        key: Their key.
        batch: Nested dict of arrays of shape `(size, ...)`, and of object arrays.
        absent: The host columns that no stage can ask for.
        epoch: The batch's epoch, `uint32`.
        ranks: Position of each record in the epoch, `uint32` of shape `(size,)`.
    """
    arrays, host = parted(batch)
    definition, state = nnx.split(stages)
    batch, state = programs.stage((absent, definition), state, arrays, key, epoch, ranks)
    nnx.update(stages, state)
    return merged(host, batch) if isinstance(batch, dict) else batch


def _first(size: int, batch: Any) -> Any:
    return jax.tree.map(lambda x: x[:size], batch)
