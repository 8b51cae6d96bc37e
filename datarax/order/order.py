"""One value that answers which record stands at which position of which epoch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.order.canonical import Deal
from datarax.order.epochs import epoch_seed
from datarax.order.host import host_index_shuffle
from datarax.order.permutation import index_shuffle, integers
from datarax.order.views import View


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of a source's records; it is a pytree of the seed and of a view's tables.

    All that hand out records ask it: one method, `records`, decides, and the others put positions
    together. It has no state, and every method traces in epoch, position and seed.

    Args:
        num_records: Records in an epoch, a Python int.
        seed: Seed of the order, from 0 to 2**32 - 1, concrete or traced; epoch `e` follows
            `(seed + e) % 2**32`.
        shuffle: Whether each epoch has its own random order; otherwise it is the stored order.
        shards: Number of canonical shards (see `datarax.order.canonical`); 1: none. A view that
            draws records has an order of its own, which is not dealt to shards.
        view: Which records there are, `num_records` positions of them; None: records 0 to
            `num_records - 1`.

    Raises:
        ValueError: If there are fewer records than shards.

    Example:
        >>> Order(5, seed=42).records(0, jnp.arange(5)).tolist()
        [1, 0, 2, 4, 3]
    """

    num_records: int
    seed: Any = 0
    shuffle: bool = True
    shards: int = 1
    view: View | None = None

    def __post_init__(self):
        _ = self.deal

    @property
    def deal(self) -> Deal | None:
        """How the records are dealt to canonical shards; None where they are not."""
        if self.shards == 1 or (self.view is not None and self.view.is_drawn):
            return None
        return Deal(self.num_records, self.shards, self.shuffle)

    def records(self, epoch: Any, position: Any) -> jax.Array:
        """Returns the records at positions of epochs.

        Args:
            epoch: Epochs, integers that broadcast against `position`.
            position: Positions within them, integers, taken modulo `num_records`; of a deal past
                the end, each shard's first records come again.

        Returns:
            `int32` array.
        """
        position = jnp.asarray(position).astype(jnp.uint32)
        seed = epoch_seed(self.seed, epoch) if self.shuffle else None
        if self.deal is not None:
            return self.stored(self.deal.record(position, seed))
        position = position % np.uint32(self.num_records)
        if self.view is not None:
            return self.view.records(position, seed)
        if seed is None:
            return position.astype(jnp.int32)
        return index_shuffle(position, num_records=self.num_records, seed=seed)

    def drawn(self, epoch: Any, positions: jax.Array) -> list[tuple[Any, jax.Array]]:
        """Returns that the records of a batch are of one source, and which; as `MixedOrder.drawn`.

        Args:
            epoch: The epoch.
            positions: Positions within it; past its end is what fills up its last batch.
        """
        if self.deal is None:
            return [(True, self.records(epoch, positions))]
        seed = epoch_seed(self.seed, epoch) if self.shuffle else None
        return [(True, self.stored(self.deal.record(positions, seed)))]  # its shards' first records

    def stored(self, index: Any) -> jax.Array:
        """Returns the records at positions of the stored order, `int32`; traceable."""
        return jnp.asarray(index) if self.view is None else self.view.records(index, None)

    def host_records(self, epoch: int, position: np.ndarray) -> np.ndarray:
        """Returns what `records` does, as a NumPy array; nothing is compiled for a plain order.

        Args:
            epoch: The epoch.
            position: Positions within it, integers of shape `(size,)`, as `records` takes them.

        Returns:
            `int64` array of shape `(size,)`.
        """
        position = position if self.deal is not None else position % self.num_records
        is_drawn = self.view is not None and self.view.is_drawn
        if self.deal is not None or is_drawn:
            size = 1 << (max(len(position), 1) - 1).bit_length()  # few lengths are compiled
            padded = np.resize(position, size).astype(np.uint32)
            return np.asarray(_records(self, np.uint32(epoch), padded))[: len(position)]
        if self.shuffle:
            seed = (int(self.seed) + epoch) % 2**32
            position = host_index_shuffle(position, num_records=self.num_records, seed=seed)
        return position if self.view is None else self.view.stored(position)

    def window(self, epoch: Any, start: Any, size: int) -> jax.Array:
        """Returns the records at `size` positions of one epoch, wrapping at its end.

        Args:
            epoch: The epoch.
            start: The first position, any integer.
            size: How many positions, a Python int.

        Returns:
            `int32` array of shape `(size,)`.
        """
        return self.records(epoch, self._modulo(start) + jnp.arange(size, dtype=jnp.uint32))

    def run_on(self, epoch: Any, index: Any, size: int) -> jax.Array:
        """Returns the `size` records from position `index` of `epoch` on, into the next epochs.

        Args:
            epoch: The epoch.
            index: Position within it, from 0 to `num_records`.
            size: How many records, a Python int.

        Returns:
            `int32` array of shape `(size,)`.
        """
        return self.records(*self.positions(epoch, index, size))

    def positions(self, epoch: Any, index: Any, size: int) -> tuple[jax.Array, jax.Array]:
        """Returns the epochs and positions of the records that `run_on` returns.

        Returns:
            Two `uint32` arrays of shape `(size,)`.
        """
        position = jnp.asarray(index).astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)
        length = np.uint32(self.num_records)
        return jnp.asarray(epoch).astype(jnp.uint32) + position // length, position % length

    def advanced(self, epoch: Any, index: Any, size: int) -> tuple[jax.Array, jax.Array]:
        """Returns the epoch and index `size` records on, both `int32`."""
        # The sum may pass 2**31 - 1 near the largest length; as uint32 it does not overflow.
        index = jnp.asarray(index).astype(jnp.uint32) + np.uint32(size)
        length = np.uint32(self.num_records)
        epoch = jnp.asarray(epoch, jnp.int32) + (index // length).astype(jnp.int32)
        return epoch, (index % length).astype(jnp.int32)

    def to_state(self) -> dict[str, Any]:
        """Returns what a source's state says of its order: JSON-able."""
        state = {"shuffle": self.shuffle, "seed": int(self.seed)}
        return state if self.shards == 1 else state | {"shards": self.shards}

    def _modulo(self, start: Any) -> Any:
        if isinstance(start, (int, np.integer)):
            return np.uint32(int(start) % self.num_records)
        start = integers("start", start)
        if self.num_records > np.iinfo(start.dtype).max:  # 2**31 divides 2**32: wrapping is exact
            start = start.astype(jnp.uint32)
        return (start % np.asarray(self.num_records, start.dtype)).astype(jnp.uint32)


def _flatten(order: Order) -> tuple[tuple[Any, Any], tuple[int, bool, int]]:
    # One dtype is one trace; a Python int above 2**31 - 1 would overflow as int32.
    seed = np.uint32(order.seed) if isinstance(order.seed, (int, np.integer)) else order.seed
    return (seed, order.view), (order.num_records, order.shuffle, order.shards)


jax.tree_util.register_pytree_node(
    Order,
    _flatten,
    lambda static, leaves: Order(static[0], leaves[0], *static[1:], view=leaves[1]),
)


@jax.jit
def _records(order: Order, epoch: Any, position: Any) -> jax.Array:
    return order.records(epoch, position)


def window(start: Any, size: int, *, num_records: int, seed: Any = None) -> jax.Array:
    """Returns the records at `size` positions of one epoch, from `start` on, wrapping at its end.

    Args:
        start: First position, an integer, concrete or traced.
        size: How many positions, a Python int.
        num_records: Records in an epoch.
        seed: The epoch's seed, or None for the stored order.

    Returns:
        `int32` array of shape `(size,)`.
    """
    return _order(num_records, seed).window(0, start, size)


def run_on(epoch: Any, index: Any, size: int, *, num_records: int, seed: Any = None) -> jax.Array:
    """Returns the `size` records that follow position `index` of `epoch`, on into the next epochs.

    Args:
        epoch: The epoch, an integer, concrete or traced.
        index: Position within it, from 0 to `num_records`.
        size: How many records, a Python int.
        num_records: Records in an epoch.
        seed: The source's seed, or None for the stored order.

    Returns:
        `int32` array of shape `(size,)`.
    """
    return _order(num_records, seed).run_on(epoch, index, size)


def _order(num_records: int, seed: Any) -> Order:
    return Order(num_records, 0 if seed is None else seed, shuffle=seed is not None)
