"""Checksums of arrays, computed where the arrays are.

Orbax alone restores some damage silently: each array of a checkpoint is guarded by one of these.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.order.cipher import avalanche


def checksums(tree: Any) -> dict[str, str]:
    """Returns dtype, shape and a 64-bit checksum of each array of a pytree, by its path.

    The sum is of integers, so it does not depend on how an array is spread over devices. A change
    of one 32-bit word is always found, any other is missed with a chance of 2**-64.

    Args:
        tree: A pytree of arrays.

    Returns:
        `"float32(2, 3) 0123456789abcdef"` by path, such as `"linear.kernel"`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One by one: on the CPU, several programs with collectives at once may wait for each other.
    sums = [jax.device_get(_sum(_narrow(leaf))) for _, leaf in leaves]
    return {
        dotted(path): f"{kind(leaf)} {high:08x}{low:08x}"
        for (path, leaf), (high, low) in zip(leaves, sums, strict=True)
    }


def kind(array: Any) -> str:
    """Returns an array's dtype and shape as `"float32(2, 3)"`."""
    return f"{array.dtype}{array.shape}"


def dotted(path: tuple) -> str:
    """Returns a path of a pytree as `"linear.kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _narrow(array):
    """Returns NumPy's 64-bit numbers as pairs of 32-bit words: JAX might round them."""
    is_wide = isinstance(array, np.ndarray) and array.dtype.kind in "iuf" and array.itemsize == 8
    return np.atleast_1d(array).view(np.uint32) if is_wide else array


@jax.jit  # of one array: layers of the same shape are compiled once
def _sum(array):
    words = _words(array)
    place = avalanche(jax.lax.iota(jnp.uint32, words.size))
    # The scattering is one to one: a changed word always changes its term and so the first sum.
    terms = avalanche(words ^ place)
    return terms.sum(dtype=jnp.uint32), (terms * (place | 1)).sum(dtype=jnp.uint32)


def _words(array) -> jax.Array:
    """Returns an array's bits as a vector of `uint32`."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag])
    if array.dtype == bool or (
        jnp.issubdtype(array.dtype, jnp.integer) and jnp.iinfo(array.dtype).bits < 8
    ):
        array = array.astype(jnp.int8)
    bits = array.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{min(bits, 32)}")
    return jax.lax.bitcast_convert_type(array, unsigned).reshape(-1).astype(jnp.uint32)
