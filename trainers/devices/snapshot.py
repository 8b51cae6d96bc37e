"""A snapshot: a copy of a state in host memory, which no donation reaches."""

from typing import Any

import jax
import numpy as np

from trainers.devices.arrays import is_key
from trainers.step.state import strong


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
        return strong(jax.tree.unflatten(self._structure, leaves))


class _Leaf:
    def __init__(self, array: jax.Array):
        self._key = None
        if is_key(array):
            self._key, array = jax.random.key_impl(array), jax.random.key_data(array)
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
