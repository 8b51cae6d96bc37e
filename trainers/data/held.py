"""The rows of an eager source on the devices of a run, and those of a batch among them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax import EagerSourceBase
from datarax.columns.host import is_host
from datarax.columns.rows import absent_of, gather, host_of, without_host
from datarax.order.canonical import Deal, in_position_order, row_positions
from datarax.order.epochs import epoch_seed
from trainers.devices.layout import Layout


class ReplicatedRows:
    """Every device holds all rows, and gathers its part of a batch by the source's order.

    Args:
        source: The source.
        shards: Number of canonical shards: 1.
        layout: The devices.

    Attributes:
        columns: The source's columns, placed.
        data: The arrays among them, which `read` reads.
        order: The source's order, which `read` reads, placed.
    """

    def __init__(self, source: EagerSourceBase, shards: int, layout: Layout):
        self._source, self._layout = source, layout
        self._order = dataclasses.replace(source.order, shards=shards)
        if layout.replicated is not None:
            source = source.placed_on(layout.replicated)
        self.columns = source.data
        self.data = without_host(self.columns)
        # A view's tables are data, too: closed over, they would be compiled into the program.
        self.order = layout.replicate(jax.tree.map(jnp.asarray, self._order))
        self.host = {column.name: column for column in source.host_columns()}
        self._absent = absent_of(source.host_columns())

    def span(self, t: int) -> tuple[Any, int]:
        """Returns the order of batch `t`, and the end of the batches of which it is."""
        return self.order, 2**31 - 1

    def values(self, name: str) -> list[np.ndarray]:
        """Returns the values of a column that this process holds, in parts."""
        (part, *_) = self.columns[name].addressable_shards
        column = np.asarray(part.data)
        if self._source.view is None:
            return [column]
        # Labels that a view leaves out may lie outside the model's classes.
        return [column[np.unique(self._source.stored_records(np.arange(self._source.length)))]]

    def read(
        self, data: Any, order: Any, epoch: jax.Array, start: jax.Array, size: int
    ) -> tuple[Any, jax.Array]:
        """Returns the rows at `size` positions from `start` on, and these positions; traceable.

        Past the epoch's end its first records come again.
        """
        share = size // self._layout.parts

        def part(number, data, epoch, start):
            columns, order = data
            first = start + jnp.uint32(number * share)
            return gather(columns, order.window(epoch, first, share), self._absent)

        rows = self._layout.each(part, (data, order), epoch, start)
        return rows, start + jnp.arange(size, dtype=jnp.uint32)

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions."""
        return batch

    def records(self, epoch: int, start: int, size: int) -> np.ndarray:
        """Returns the numbers of the records that `read` gives, int32 of shape `(size,)`."""
        return np.asarray(self._order.window(epoch, start, size))


class ShardedRows:
    """Each device holds the rows of its canonical shards, and its part of a batch is of them.

    A batch's rows are in the order of their shards, so that each device has its own together.

    Args:
        source: The source.
        shards: Number of canonical shards.
        layout: The devices, whose number divides `shards`.

    Attributes:
        columns: The columns, arrays of shape `(shards, slots, ...)`, placed.
        data: The arrays among them, which `read` reads.
    """

    def __init__(self, source: EagerSourceBase, shards: int, layout: Layout):
        self._layout, self._order = layout, dataclasses.replace(source.order, shards=shards)
        self._deal = Deal(source.length, shards, shuffle=source.is_random_order)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self.columns = deal_out(source, self._deal, layout.batch_sharding() or here)
        self.data = without_host(self.columns)
        # Of the columns that were read: asking the source would read the rows of all shards.
        self.host = {column.name: column for column in host_of(self.columns)}
        self._absent = absent_of(host_of(self.columns))

    def span(self, t: int) -> tuple[Any, int]:
        """Returns None, since the deal is no data, and the end of the batches of which it is."""
        return None, 2**31 - 1

    def values(self, name: str) -> list[np.ndarray]:
        """Returns the values of a column that this process holds, in parts."""
        return [np.asarray(part.data) for part in self.columns[name].addressable_shards]

    def read(
        self, data: Any, order: Any, epoch: jax.Array, start: jax.Array, size: int
    ) -> tuple[Any, jax.Array]:
        """Returns the rows at `size` positions from `start` on, and these positions; traceable.

        Past the epoch's end the first records of each shard come again.
        """
        deal, parts = self._deal, self._layout.parts
        own, share = deal.shards // parts, size // deal.shards

        def part(number, columns, epoch, start):
            shard = jnp.arange(own)[:, None]
            slot = start // np.uint32(deal.shards) + jnp.arange(share, dtype=jnp.uint32)
            index = deal.index_in_shard(number * own + shard, slot, self._epoch_seed(epoch))
            flat = jax.tree.map(lambda column: column.reshape(-1, *column.shape[2:]), columns)
            return gather(flat, (shard * deal.slots + index).reshape(-1), self._absent)

        rows = self._layout.each(part, data, epoch, start, spread=True)
        return rows, self._positions(start, size)

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions."""
        return in_position_order(batch, self._deal.shards)

    def records(self, epoch: int, start: int, size: int) -> np.ndarray:
        """Returns the numbers of the records that `read` gives, int32 of shape `(size,)`."""
        positions = self._positions(jnp.uint32(start), size)
        return np.asarray(self._order.stored(self._deal.record(positions, self._epoch_seed(epoch))))

    def _positions(self, start: jax.Array, size: int) -> jax.Array:
        return start + row_positions(size, self._deal.shards)

    def _epoch_seed(self, epoch: Any) -> jax.Array | None:
        return epoch_seed(self._order.seed, epoch) if self._order.shuffle else None


def deal_out(
    source: EagerSourceBase, deal: Deal, sharding: jax.sharding.Sharding
) -> dict[str, Any]:
    """Returns a source's columns dealt to canonical shards, on the devices of `sharding`.

    A process reads only the rows of the shards that its devices hold.

    Args:
        source: The source.
        deal: The deal.
        sharding: Spreads the first axis, the shards, over devices.

    Returns:
        Nested dict of arrays of shape `(shards, slots, ...)`, and host columns as the source has
        them. The last slot of a shorter shard repeats its first record.
    """
    parts: Mapping[Any, Any] = sharding.addressable_devices_indices_map((deal.shards,))
    own = sorted({n for (part,) in parts.values() for n in range(deal.shards)[part]})

    def placed(column):
        if is_host(column):
            return column
        column = column.reshape(len(own), deal.slots, *column.shape[1:])

        def part(index):  # of consecutive shards
            shards = range(deal.shards)[index[0]]
            first = own.index(shards[0])
            return column[first : first + len(shards)]

        shape = (deal.shards, *column.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    columns = source.host_rows(source.stored_records(deal.held(own).reshape(-1)))
    return jax.tree.map(placed, columns, is_leaf=is_host)
