"""PRNG keys among arrays: most of what places, copies and saves arrays wants plain numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def is_key(array: Any) -> bool:
    """Returns whether an array holds typed PRNG keys."""
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def as_words(do: Callable[..., jax.Array], array: jax.Array, *rest: Any) -> jax.Array:
    """Returns `do(array, *rest)`, which keys pass as the words they are made of."""
    if not is_key(array):
        return do(array, *rest)
    words = do(jax.random.key_data(array), *rest)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(array))


def without_keys(tree: Any) -> Any:
    """Returns `tree` with PRNG keys as the words they are made of."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def with_keys(tree: Any, like: Any) -> Any:
    """Returns `tree` with PRNG keys where `like` has them; where that is None, as it is."""
    if like is None:
        return tree

    def wrap(x, y):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(y)) if is_key(y) else x

    return jax.tree.map(wrap, tree, like)
