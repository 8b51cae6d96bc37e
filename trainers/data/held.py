"""The rows of an eager source on the devices of a run, and those of a batch among them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.rows import gather
from datarax.order import epochs
from datarax.order.canonical import Deal, deal_out
from datarax.sources import EagerSourceBase
from trainers.devices.layout import Layout
from trainers.devices.placement import placed


class WholeRows:
    """Every device holds all rows, and gathers its part of a batch by the source's own order.

    Args:
        source: The source.
        layout: The devices.

    Attributes:
        data: What `read` reads, placed.
        columns: The source's columns.
    """

    def __init__(self, source: EagerSourceBase, layout: Layout):
        self._layout = layout
        if layout.mesh is not None:
            source = source.placed_on(layout.replicated)
        self.columns = source.data
        self._source = source
        self._graph, arrays = nnx.split(source)
        self.data = jax.tree.map(self._held, arrays)

    def _held(self, array):
        sharding = self._layout.replicated
        if sharding is None or getattr(array, "sharding", None) == sharding:
            return array
        return placed(array, sharding)

    def read(self, data: Any, epoch: jax.Array, start: jax.Array, size: int):
        """Returns the rows at `size` positions from `start` on, and these positions; traceable.

        Past the epoch's end its first records come again.
        """
        share = size // self._layout.parts

        def part(number, data, epoch, start):
            source = nnx.merge(self._graph, data)
            first = start + jnp.uint32(number * share)
            return source.get_batch_at(first, share, epochs.epoch_key(source.seed, epoch))

        rows = self._layout.each(part, data, epoch, start)
        return rows, start + jnp.arange(size, dtype=jnp.uint32)

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions."""
        return batch

    def records(self, epoch: int, start: int, size: int) -> np.ndarray:
        """Returns the numbers of the records that `read` gives, int32 of shape `(size,)`."""
        seed = self._source.order_seed()
        seed = None if seed is None else epochs.epoch_seed(seed, epoch)
        length = self._source.length
        return np.asarray(epochs.window(start, size, num_records=length, seed=seed))


class DealtRows:
    """Each device holds the rows of its canonical shards, and its part of a batch is of them.

    A batch's rows are in the order of their shards, so that each device has its own together.

    Args:
        source: The source.
        shards: Number of canonical shards.
        layout: The devices, whose number divides `shards`.

    Attributes:
        data: What `read` reads, placed.
        columns: The columns, arrays of shape `(shards, slots, ...)`.
    """

    def __init__(self, source: EagerSourceBase, shards: int, layout: Layout):
        self._layout = layout
        self._deal = Deal(source.length, shards, shuffle=source.is_random_order)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self.columns = deal_out(source, self._deal, layout.batch_sharding() or here)
        self._seed = source.order_seed()
        self.data = self.columns

    def read(self, data: Any, epoch: jax.Array, start: jax.Array, size: int):
        """Returns the rows at `size` positions from `start` on, and these positions; traceable.

        Past the epoch's end the first records of each shard come again.
        """
        deal, parts = self._deal, self._layout.parts
        own, share = deal.shards // parts, size // deal.shards

        def part(number, columns, epoch, start):
            shard = jnp.arange(own)[:, None]
            slot = start // np.uint32(deal.shards) + jnp.arange(share, dtype=jnp.uint32)
            place = deal.place(number * own + shard, slot, self._epoch_seed(epoch))
            flat = jax.tree.map(lambda column: column.reshape(-1, *column.shape[2:]), columns)
            return gather(flat, (shard * deal.slots + place).reshape(-1))

        rows = self._layout.each(part, data, epoch, start, spread=True)
        return rows, self._positions(start, size)

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions."""
        shards = self._deal.shards

        def one(x):
            return x.reshape(shards, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

        return jax.tree.map(one, batch)

    def records(self, epoch: int, start: int, size: int) -> np.ndarray:
        """Returns the numbers of the records that `read` gives, int32 of shape `(size,)`."""
        positions = self._positions(jnp.uint32(start), size)
        return np.asarray(self._deal.record(positions, self._epoch_seed(epoch)))

    def _positions(self, start, size):
        shards, share = self._deal.shards, size // self._deal.shards
        row = jnp.arange(size, dtype=jnp.uint32)
        slot = start // np.uint32(shards) + row % np.uint32(share)
        return slot * np.uint32(shards) + row // np.uint32(share)

    def _epoch_seed(self, epoch):
        return None if self._seed is None else epochs.epoch_seed(self._seed, epoch)
