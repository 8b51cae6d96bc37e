"""Checksums of arrays, computed where the arrays are.

Orbax alone restores some damage silently: each array of a checkpoint is guarded by one of these.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksums(tree: Any) -> dict[str, str]:
    """Returns a 64-bit checksum of each array of a pytree, by its path.

    The sum is of integers, so it does not depend on how an array is spread over devices. A change
    of one 32-bit word is always found, any other is missed with a chance of 2**-64.

    Args:
        tree: A pytree of arrays.

    Returns:
        16 hexadecimal digits by path, such as `"linear.kernel"`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = np.asarray(_sums([leaf for _, leaf in leaves]))
    return {
        dotted(path): f"{high:08x}{low:08x}"
        for (path, _), (high, low) in zip(leaves, sums, strict=True)
    }


def dotted(path: tuple) -> str:
    """Returns a path of a pytree as `"linear.kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


@jax.jit
def _sums(arrays):
    return jnp.array([_sum(array) for array in arrays], jnp.uint32).reshape(-1, 2)


def _sum(array):
    words = _words(array)
    place = jax.lax.iota(jnp.uint32, words.size)
    # The scattering is one to one: a changed word always changes its term.
    return [_scatter(words ^ _scatter(place ^ salt)).sum(dtype=jnp.uint32) for salt in _SALTS]


_SALTS = (np.uint32(0x9E3779B9), np.uint32(0x7F4A7C15))


def _words(array) -> jax.Array:
    """Returns an array's bits as a vector of `uint32`."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    bits = array.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{min(bits, 32)}")
    return jax.lax.bitcast_convert_type(array, unsigned).reshape(-1).astype(jnp.uint32)


def _scatter(x):
    """MurmurHash3's 32-bit finalizer (Appleby, 2011)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
