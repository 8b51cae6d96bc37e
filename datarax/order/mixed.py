"""The order of a mixture of sources, for a span of its draws, inside a compiled program."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.order.order import Order


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["orders", "source", "rank", "epochs", "indices", "epoch", "start"],
    meta_fields=["stride"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class MixedOrder:
    """Which record of which source each draw of a span is of; a pytree of its tables.

    The tables are made on the host (see `datarax.order.draws`), 5 bytes a draw.

    Args:
        orders: The order of each source.
        source: The source of each draw, `uint8` of shape `(draws,)`.
        rank: How many records of that source the span's earlier draws are of, `uint32` `(draws,)`.
        epochs: Where each source stands before the span: its epoch, `uint32` of shape `(sources,)`.
        indices: And the index within it.
        epoch: The mixture's epoch in which the span begins, `uint32`.
        start: And the position within it.
        stride: Draws of an epoch, with those that fill up its last batch; 0 where there is none.
    """

    orders: tuple[Order, ...]
    source: Any
    rank: Any
    epochs: Any
    indices: Any
    epoch: Any
    start: Any
    stride: int

    def window(self, epoch: Any, start: Any, size: int) -> list[tuple[jax.Array, jax.Array]]:
        """Returns, for each source, which of `size` draws are of it, and the records of these.

        Args:
            epoch: The mixture's epoch, traced.
            start: The first draw's position within it, `uint32`.
            size: How many draws, a Python int; all of the span.

        Returns:
            A `bool` array and an `int32` array of shape `(size,)` a source. What is drawn of others
            has any record.
        """
        first = jnp.asarray(epoch).astype(jnp.uint32) - self.epoch
        first = (first * np.uint32(self.stride) + start - self.start).astype(jnp.int32)
        source, rank = (
            jax.lax.dynamic_slice_in_dim(table, first, size) for table in (self.source, self.rank)
        )
        found = []
        for number, order in enumerate(self.orders):
            mine, position = source == number, self.indices[number] + rank
            found.append((mine, _records(order, self.epochs[number], position, mine)))
        return found

    def drawn(self, epoch: Any, positions: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Returns what `window` does for consecutive positions."""
        return self.window(epoch, positions[0], len(positions))


def _records(order: Order, epoch: jax.Array, position: jax.Array, mine: jax.Array) -> jax.Array:
    """Returns the records at positions from an epoch's start on, which may lie in later epochs."""
    length = np.uint32(order.num_records)
    epochs, position = epoch + position // length, position % length
    first = jnp.min(jnp.where(mine, epochs, np.uint32(2**32 - 1)))
    # Permutations of one seed take a fifth of the time of those of a seed each.
    return jax.lax.cond(
        jnp.all((epochs == first) | ~mine),
        lambda: order.records(first, position),
        lambda: order.records(epochs, position),
    )
