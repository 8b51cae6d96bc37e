"""PRNG keys among arrays: most of what places, copies and saves arrays wants plain numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_key(array: Any) -> bool:
    """Returns whether an array, or what stands for one, holds typed PRNG keys."""
    return jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key)


def as_words(do: Callable[..., jax.Array], array: jax.Array, *rest: Any) -> jax.Array:
    """Returns `do(array, *rest)`, which keys pass as the words they are made of."""
    if not is_key(array):
        return do(array, *rest)
    words = do(jax.random.key_data(array), *rest)
    return jax.random.wrap_key_data(words, impl=array.dtype)


def without_keys(tree: Any) -> Any:
    """Returns `tree` with PRNG keys as the words they are made of."""

    def words(x):
        if not is_key(x):
            return x
        abstract = isinstance(x, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, x) if abstract else jax.random.key_data(x)

    return jax.tree.map(words, tree)


def with_keys(tree: Any, like: Any) -> Any:
    """Returns `tree` with PRNG keys where `like` has them; where that is None, as it is."""
    if like is None:
        return tree

    def wrap(x, y):
        return jax.random.wrap_key_data(x, impl=y.dtype) if is_key(y) else x

    return jax.tree.map(wrap, tree, like)


def as_carry(tree: Any) -> Any:
    """Returns a copy of `tree` as JAX arrays whose dtypes are not weak.

    A loop's carry must keep its types, and it is donated: the caller's arrays must not be in it.
    """

    def one(x):
        is_array = isinstance(x, jax.Array) and not isinstance(x, Tracer) and not is_key(x)
        if is_array and x.is_fully_addressable and not x.weak_type:
            # `jnp.array` compiles a program a shape, 12 ms each on the CPU.
            return jax.device_put(x, may_alias=False)
        return jnp.array(x, dtype=jnp.asarray(x).dtype, copy=True)

    return jax.tree.map(one, tree)


def keep_dtypes(tree: Any, like: Any) -> Any:
    """Returns `tree` with the dtypes of `like`."""
    return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, like)


class Snapshot:
    """Copies a pytree of arrays; each process keeps what its own devices hold.

    Args:
        tree: Arrays, keys among them, placed in any way.
    """

    def __init__(self, tree: Any):
        leaves, self._structure = jax.tree.flatten(tree)
        self._leaves = [_Leaf(leaf) for leaf in leaves]

    def restored(self) -> Any:
        """Returns the pytree as it was, on the devices it was on; the snapshot stays."""
        # A device may share the host's buffer: what is handed out is donated, so it is copied.
        leaves = [leaf.restored() for leaf in self._leaves]
        return as_carry(jax.tree.unflatten(self._structure, leaves))


class _Leaf:
    def __init__(self, array: jax.Array):
        self._key = None
        if is_key(array):
            self._key, array = array.dtype, jax.random.key_data(array)
        self._shape, self._sharding = array.shape, array.sharding
        self._copies = {}  # one of what several devices hold
        for part in array.addressable_shards:
            if str(part.index) not in self._copies:
                self._copies[str(part.index)] = np.array(part.data)
        self._parts = [(part.device, str(part.index)) for part in array.addressable_shards]

    def restored(self) -> jax.Array:
        parts = [jax.device_put(self._copies[index], device) for device, index in self._parts]
        array = jax.make_array_from_single_device_arrays(self._shape, self._sharding, parts)
        return array if self._key is None else jax.random.wrap_key_data(array, impl=self._key)
