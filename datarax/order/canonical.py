"""Canonical shards: the records of a source dealt to a fixed number of shards.

Position `p` of an epoch is slot `p // C` of shard `p % C`. The records are dealt to the shards
once, pseudo-randomly, and each shard is permuted anew in every epoch. `C` belongs to the run, not
to its devices: any number of devices that divides `C` gives the same batches, and a device needs
only the rows of its own shards for its part of a batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.errors import listed
from datarax.order.cipher import avalanche
from datarax.order.permutation import index_shuffle
from datarax.order.walk import walk

_ROUNDS = 6
_LEAST_BITS = 8  # of the cipher's block: a smaller one does not mix
_DEAL_SEED = 0  # the deal is the same for every run


@dataclasses.dataclass(frozen=True)
class Deal:
    """How records are dealt to canonical shards, and the order of each shard.

    Args:
        num_records: Number of records, from `shards` to 2**31.
        shards: Number of canonical shards, `C`.
        shuffle: Whether they are dealt pseudo-randomly; otherwise record `r` is dealt to shard
            `r % C`, so that positions in stored order are the records.

    Raises:
        ValueError: If there are fewer records than shards.

    Example:
        >>> deal = Deal(10, 4)
        >>> sorted(int(r) for shard in range(4) for r in deal.rows(shard))
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    num_records: int
    shards: int
    shuffle: bool = True

    def __post_init__(self):
        if self.num_records < self.shards:
            raise ValueError(
                f"shards={self.shards}, but there are {self.num_records} records: a shard needs "
                "one at least. Use fewer shards."
            )

    @property
    def slots(self) -> int:
        """The number of slots of the longest shard, `ceil(num_records / shards)`."""
        return -(-self.num_records // self.shards)

    def size(self, shard: Any) -> jax.Array:
        """Returns the number of records of a shard: they differ by one at most; traceable."""
        least, more = divmod(self.num_records, self.shards)
        return np.uint32(least) + (jnp.asarray(shard) < more).astype(jnp.uint32)

    def rows(self, shard: int) -> np.ndarray:
        """Returns the records of a shard, int64 of shape `(size,)`, in the order it holds them."""
        return self.held([shard])[0, : int(self.size(shard))]

    def held(self, shards: Sequence[int]) -> np.ndarray:
        """Returns the records of some shards, int64 of shape `(len(shards), slots)`.

        The last slot of a shorter shard repeats its first record.
        """
        shard = np.array(shards)[:, None]
        slot = np.arange(self.slots) % np.asarray(self.size(shard))
        return np.asarray(self._dealt(slot * self.shards + shard)).astype(np.int64)

    def index_in_shard(self, shard: Any, slot: Any, seed: Any = None) -> jax.Array:
        """Returns the index, among a shard's records, of the one in a slot; traceable, elementwise.

        Args:
            shard: Shards, integers of any shape.
            slot: Slots, integers that broadcast against `shard`; past the shard's end they wrap.
            seed: The epoch's seed, `uint32` that broadcasts; None: the order that `rows` has.

        Returns:
            `int32` array of indices, each less than the shard's size.
        """
        shard, slot = (jnp.asarray(x).astype(jnp.uint32) for x in (shard, slot))
        size = self.size(shard)
        slot = slot % size
        if seed is None or self.slots == 1:
            return slot.astype(jnp.int32)
        return _permuted(slot, size, _key(seed, shard), self.slots).astype(jnp.int32)

    def record(self, position: Any, seed: Any = None) -> jax.Array:
        """Returns the record at each position of an epoch; traceable, elementwise.

        Args:
            position: Positions, integers; from `num_records` on a shard's first slots come again.
            seed: The epoch's seed, `uint32` that broadcasts; None: the stored order.

        Returns:
            `int32` array of records.
        """
        position = jnp.asarray(position).astype(jnp.uint32)
        count = np.uint32(self.shards)
        shard = position % count
        index = self.index_in_shard(shard, position // count, seed).astype(jnp.uint32)
        return self._dealt(index * count + shard).astype(jnp.int32)

    def _dealt(self, position):
        if not self.shuffle:
            return position
        return index_shuffle(position, num_records=self.num_records, seed=_DEAL_SEED)


def expect_multiple(batch_size: int, shards: int) -> None:
    """Raises `ValueError` unless every batch holds as many records of each shard."""
    if batch_size % shards:
        near = sorted({max(1, batch_size // shards) * shards, -(-batch_size // shards) * shards})
        raise ValueError(
            f"batch_size={batch_size} is no multiple of shards={shards}: each batch holds as many "
            f"records of every shard. Write batch_size={listed(near)}, or another shards."
        )


def row_positions(size: int, shards: int) -> np.ndarray:
    """Returns where the rows of a batch stand in it, `uint32` of shape `(size,)`.

    The rows of a shard lie together, so that each device has those of its own shards.

    Example:
        >>> row_positions(6, 2).tolist()
        [0, 2, 4, 1, 3, 5]
    """
    return np.arange(size, dtype=np.uint32).reshape(-1, shards).T.reshape(-1)


def in_position_order(batch: Any, shards: int) -> Any:
    """Returns a batch whose rows lie as `row_positions` says in the order of their positions."""

    def one(x: Any) -> Any:
        return x.reshape(shards, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    return jax.tree.map(one, batch)


def with_shards(state: dict[str, Any], shards: int) -> dict[str, Any]:
    """Returns a source's state with the canonical shards of its order."""
    if shards == 1 or "streams" in state["order"]:  # a stream's state has their number already
        return state
    return state | {"order": state["order"] | {"shards": shards}}


def without_shards(state: dict[str, Any], shards: int) -> dict[str, Any]:
    """Returns the source's state that `with_shards` was given.

    Raises:
        ValueError: If it is of another number of shards.
    """
    if not isinstance(state, dict) or not isinstance(state.get("order"), dict):
        return state  # the source's set_state names the fault
    rest = {name: value for name, value in state["order"].items() if name != "shards"}
    given = state["order"].get("shards", 1)
    if "streams" not in rest and given != shards:
        raise ValueError(
            f"The state is of an order with shards={given}, this one has shards={shards}: write "
            f"shards={given}, or begin anew with reset()."
        )
    return state | {"order": rest}


def _key(seed, shard):
    """Returns 32 bits that differ for each epoch and shard."""
    seed = avalanche(jnp.asarray(seed).astype(jnp.uint32) ^ np.uint32(0x5BD1E995))
    return avalanche(seed + shard * np.uint32(0x9E3779B1))


def _permuted(slot, size, key, longest):
    """Permutes `slot` within `size`: an alternating Feistel network over the smallest block.

    Unlike Grain's cipher, whose block has 16 bits at least, it is cheap for a short shard: few
    values fall outside and are encrypted again (Black and Rogaway, 2002).
    """
    bits = max((longest - 1).bit_length(), _LEAST_BITS)
    right_bits = bits - bits // 2
    left_mask, right_mask = (np.uint32((1 << n) - 1) for n in (bits // 2, right_bits))

    def encrypted(value, _, key):
        steps = (np.uint32(0x9E3779B9 * (i + 1) % 2**32) for i in range(_ROUNDS))
        keys = [avalanche(key + step) for step in steps]
        left, right = value >> np.uint32(right_bits), value & right_mask
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = left ^ (avalanche((right ^ even) + odd) & left_mask)
            right = right ^ (avalanche((left ^ odd) + even) & right_mask)
        return (left << np.uint32(right_bits)) | right

    shape = jnp.broadcast_shapes(slot.shape, key.shape)
    slot, size, key = (jnp.broadcast_to(x, shape).reshape(-1) for x in (slot, size, key))
    return walk(encrypted, lambda value, size, _: value >= size, slot, size, key).reshape(shape)
