"""Where columns are: in host memory, on the default device, or spread over other devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.columns.host import HostColumn

Columns = dict[str, Any]


class Placements(dict):
    """Columns by the sharding they are placed by; static to JAX, and equal only if identical."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return Placements, ()  # the columns themselves are pickled, and can be placed again

    def of(self, columns: Columns, sharding: jax.sharding.Sharding) -> Columns:
        """Returns columns on the devices of `sharding`, the same ones in each call.

        `columns` gives up its host memory where a device of this process holds all rows: what that
        device holds serves in its place from then on.

        Args:
            columns: Nested dict of arrays of shape `(n, ...)` and `HostColumn`s.
            sharding: Where to place them; its devices may belong to several processes.
        """
        if sharding not in self:
            self[sharding] = _placed(columns, sharding)
        return self[sharding]


def place(columns: Columns) -> None:
    """Moves the array columns to the default device, in place."""
    for name, column in columns.items():
        if isinstance(column, dict):
            place(column)
        elif isinstance(column, np.ndarray):
            with jax.ensure_compile_time_eval():  # the source may be closed over by a trace
                columns[name] = jnp.asarray(column)


def without_host(columns: Columns) -> Columns:
    """Returns the array columns."""
    return {
        name: without_host(column) if isinstance(column, dict) else column
        for name, column in columns.items()
        if not isinstance(column, HostColumn)
    }


def _placed(columns, sharding):
    placed = {}
    for name, column in columns.items():
        if isinstance(column, dict):
            placed[name] = _placed(column, sharding)
        elif isinstance(column, HostColumn):
            placed[name] = column
        else:
            parts = sharding.addressable_devices_indices_map(column.shape)
            arrays = [_part(column, device, index) for device, index in parts.items()]
            placed[name] = jax.make_array_from_single_device_arrays(column.shape, sharding, arrays)
            own = jax.local_devices()[0]
            whole = [a for a in arrays if a.devices() == {own} and a.shape == column.shape]
            columns[name] = whole[0] if whole else column
    return placed


def _part(column, device, index):
    if isinstance(column, jax.Array) and column.devices() == {device}:
        part = column if column.size == 0 else column[index]
        return column if part.shape == column.shape else part
    return jax.device_put(np.asarray(column)[index], device)
