"""The order of records: batch `t` is a pure function of (data, seed, `t`).

Order is arithmetic, not state. Epoch `e` of a source with seed `s` visits its records in the
permutation that `index_shuffle` gives for seed `(s + e) % 2**32`, evaluated at any position in O(1)
memory, inside a compiled program. Everything that hands out records goes through this module.
"""

import jax
import jax.numpy as jnp
import numpy as np

from datarax.order.cipher import avalanche
from datarax.order.permutation import index_shuffle, integers


def epoch_seed(seed, epoch) -> jax.Array:
    """Returns the seed of an epoch's order, `(seed + epoch) % 2**32`, as `uint32`."""
    if isinstance(seed, (int, np.integer)):
        seed = np.uint32(seed)
    return jnp.asarray(seed).astype(jnp.uint32) + jnp.asarray(epoch).astype(jnp.uint32)


def epoch_key(seed, epoch) -> jax.Array:
    """Returns the key that names an epoch's order to `get_batch_at`."""
    return jax.random.key(epoch_seed(seed, epoch))


def key_seed(key) -> jax.Array:
    """Mixes a key's words to one `uint32` seed, such that `jax.random.key(s)` gives `s`.

    Args:
        key: A typed key, or a raw `uint32` array of shape `(2,)` or `(4,)`; may be traced.

    Returns:
        `uint32` scalar. It depends on every word of the key.

    Raises:
        TypeError: If `key` is not one PRNG key.
    """
    key = jnp.asarray(key)
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if words.dtype != jnp.uint32 or words.shape not in ((2,), (4,)):
        raise TypeError(
            f"key={key}: expected one PRNG key. Write key=jax.random.key(0), or "
            "key=jax.random.fold_in(key, epoch) for an epoch of its own."
        )
    # threefry's key(s) is [0, s] and rbg's is [0, s, 0, s]: the other terms vanish there.
    seed = words[1] ^ avalanche(words[0])
    if words.shape == (4,):
        seed = seed ^ avalanche(avalanche(words[2] ^ words[0]) + (words[3] ^ words[1]))
    return seed


def window(start, size: int, *, num_records: int, seed=None) -> jax.Array:
    """Returns the records at `size` positions of one epoch, from `start` on, wrapping at its end.

    Args:
        start: First position, an integer, concrete or traced.
        size: How many positions, a Python int.
        num_records: Records in an epoch.
        seed: The epoch's seed, or None for the stored order.

    Returns:
        `int32` array of shape `(size,)`.
    """
    position = (_modulo(start, num_records) + _arange(size)) % np.uint32(num_records)
    if seed is None:
        return position.astype(jnp.int32)
    return index_shuffle(position, num_records=num_records, seed=seed)


def run_on(epoch, index, size: int, *, num_records: int, seed=None) -> jax.Array:
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
    position = jnp.asarray(index).astype(jnp.uint32) + _arange(size)
    within = position % np.uint32(num_records)
    if seed is None:
        return within.astype(jnp.int32)
    epochs = jnp.asarray(epoch).astype(jnp.uint32) + position // np.uint32(num_records)
    return index_shuffle(within, num_records=num_records, seed=epoch_seed(seed, epochs))


def _modulo(start, num_records):
    if isinstance(start, (int, np.integer)):
        return np.uint32(int(start) % num_records)
    start = integers("start", start)
    if num_records > np.iinfo(start.dtype).max:  # 2**31 divides 2**32: wrapping does no harm
        start = start.astype(jnp.uint32)
    return (start % np.asarray(num_records, start.dtype)).astype(jnp.uint32)


def _arange(size):
    return jnp.arange(size, dtype=jnp.uint32)


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Returns `ceil(num_records / batch_size)`: the last batch of an epoch may be partly filled."""
    return -(-num_records // batch_size)
