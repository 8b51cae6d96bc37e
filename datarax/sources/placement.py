"""Where columns are: in host memory, on the default device, or spread over other devices."""

import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.columns.host import HostColumn

Columns = dict[str, Any]


class Placements:
    """Columns that are on the devices of some sharding, each as long as somebody holds it.

    Static to JAX, and equal only if identical; the copies of a source share it.
    """

    def __init__(self):
        self._arrays: weakref.WeakValueDictionary = weakref.WeakValueDictionary()

    def __deepcopy__(self, memo: dict) -> "Placements":
        return self

    def __reduce__(self):
        return Placements, ()  # the columns themselves are pickled, and can be placed again

    def of(
        self, columns: Columns, sharding: jax.sharding.Sharding, path: tuple[str, ...] = ()
    ) -> tuple[Columns, Columns]:
        """Returns columns on the devices of `sharding`, the same arrays while they are in use.

        Args:
            columns: Nested dict of arrays of shape `(n, ...)` and `HostColumn`s.
            sharding: Where to place them; its devices may belong to several processes.
            path: The names above `columns`.

        Returns:
            The columns there; and the columns to hold in place of those given, which gives up their
            host memory where the default device has all rows of one.
        """
        placed, own = {}, {}
        for name, column in columns.items():
            key = (*path, name)
            if isinstance(column, dict):
                placed[name], own[name] = self.of(column, sharding, key)
            elif isinstance(column, HostColumn):
                placed[name] = own[name] = column
            else:
                array = self._arrays.get((key, sharding))
                if array is None:
                    array = self._arrays[key, sharding] = _placed(column, sharding)
                placed[name], own[name] = array, _whole(array, column)
        return placed, own


def to_default_device(columns: Columns) -> None:
    """Moves the array columns to the default device, in place."""
    for name, column in columns.items():
        if isinstance(column, dict):
            to_default_device(column)
        elif isinstance(column, np.ndarray):
            with jax.ensure_compile_time_eval():  # the source may be closed over by a trace
                columns[name] = jnp.asarray(column)


def _placed(column: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    parts = sharding.addressable_devices_indices_map(column.shape)
    arrays = [_part(column, device, index) for device, index in parts.items()]
    return jax.make_array_from_single_device_arrays(column.shape, sharding, arrays)


def _part(column: Any, device: Any, index: Any) -> jax.Array:
    if isinstance(column, jax.Array) and column.devices() == {device}:
        part = column if column.size == 0 else column[index]
        return column if part.shape == column.shape else part
    return jax.device_put(np.asarray(column)[index], device)


def _whole(array: jax.Array, column: Any) -> Any:
    """Returns the part of a placed column that the default device has, if it has all of it."""
    for shard in array.addressable_shards:
        if shard.device == jax.local_devices()[0] and shard.data.shape == column.shape:
            return shard.data
    return column
