"""The order of records: batch `t` is a pure function of (data, seed, `t`).

Order is arithmetic, not state. Epoch `e` of a source with seed `s` visits its records in the
permutation that `index_shuffle` gives for seed `(s + e) % 2**32`, evaluated at any position in O(1)
memory, inside a compiled program. `datarax.order.order.Order` is the value that does.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.order.cipher import avalanche


def epoch_seed(seed: Any, epoch: Any) -> jax.Array:
    """Returns the seed of an epoch's order, `(seed + epoch) % 2**32`, as `uint32`."""
    if isinstance(seed, (int, np.integer)):
        seed = np.uint32(seed)
    return jnp.asarray(seed).astype(jnp.uint32) + jnp.asarray(epoch).astype(jnp.uint32)


def key_seed(key: Any) -> jax.Array:
    """Mixes a key's words to one `uint32` seed: that of `jax.random.key(s)` is `s`.

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


def steps_per_epoch(num_records: int, batch_size: int, *, drop_remainder: bool = False) -> int:
    """Returns the number of batches in an epoch; the last one may be partly filled.

    Args:
        num_records: Records in an epoch.
        batch_size: Records in a batch.
        drop_remainder: Whether a batch that is not full is left out: floor instead of ceil.
    """
    return num_records // batch_size if drop_remainder else -(-num_records // batch_size)
