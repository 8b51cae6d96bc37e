"""Rows of columns: a gather for arrays, host columns beside it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.columns.host import HostColumn


class TracedBatch(dict):
    """A dict of the array columns of a traced batch that explains why a host column is missing."""

    def __init__(self, columns: dict[str, Any], host: tuple[HostColumn, ...]):
        super().__init__(columns)
        self.host = host

    def __missing__(self, name):
        for column in self.host:
            if column.name.rpartition(".")[2] == name:
                raise column.error()
        raise KeyError(f"{name!r}: the batch has {', '.join(map(repr, self))}")


def _flatten(batch):
    names = tuple(sorted(batch))  # as JAX has it for a dict
    return tuple(batch[name] for name in names), (names, batch.host)


jax.tree_util.register_pytree_node(
    TracedBatch,
    _flatten,
    lambda static, values: TracedBatch(dict(zip(static[0], values, strict=True)), static[1]),
)


def gather(columns: dict[str, Any], records: jax.Array) -> dict[str, Any]:
    """Returns the rows `records` of the array columns; traceable.

    Args:
        columns: Nested dict of arrays of shape `(n, ...)` and `HostColumn`s.
        records: `int32` array of shape `(size,)` of rows in `[0, n)`.

    Returns:
        Nested dict of arrays of shape `(size, ...)`, without the host columns; asking it for one
        raises that column's error.
    """
    arrays, host = {}, []
    for name, column in columns.items():
        if isinstance(column, HostColumn):
            host.append(column)
        elif isinstance(column, dict):
            arrays[name] = gather(column, records)
        else:
            # Records come from `order`, which never leaves the range: no clamping needed.
            arrays[name] = jnp.asarray(column).at[records].get(mode="promise_in_bounds")
    return TracedBatch(arrays, tuple(host)) if host else arrays


def parted(columns: dict[str, Any], host: tuple[HostColumn, ...]) -> tuple[dict, dict]:
    """Returns a batch of NumPy arrays as two: its array columns, and its host columns.

    Args:
        columns: Nested dict of arrays of shape `(size, ...)`, object arrays among them.
        host: The host columns; asking the first dict for one raises its error.
    """
    arrays, objects = {}, {}
    for name, column in columns.items():
        if isinstance(column, dict):
            arrays[name], inner = parted(column, host)
            objects |= {name: inner} if inner else {}
        else:
            (objects if column.dtype == object else arrays)[name] = column
    return TracedBatch(arrays, host) if host else arrays, objects


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Returns the columns of both, nested ones too; where both have one, the second's."""
    both = {**first, **second}
    for name in first.keys() & second.keys():
        if isinstance(first[name], dict) and isinstance(second[name], dict):
            both[name] = merged(first[name], second[name])
    return both


def with_host_rows(batch: dict, columns: dict[str, Any], records: np.ndarray) -> dict[str, Any]:
    """Returns `batch` with the rows `records` of the host columns, in the order of `columns`."""
    whole = {}
    for name, column in columns.items():
        if isinstance(column, HostColumn):
            whole[name] = column.take(records)
        elif isinstance(column, dict):
            whole[name] = with_host_rows(batch[name], column, records)
        else:
            whole[name] = batch[name]
    return whole


def has_host(columns: dict[str, Any]) -> bool:
    """Returns whether any column, nested ones too, is a host column."""
    return any(
        has_host(column) if isinstance(column, dict) else isinstance(column, HostColumn)
        for column in columns.values()
    )


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns a batch with its arrays on the default device; host columns stay."""
    # One by one: `jax.device_put` of a list takes twice as long where the batches are small.
    return jax.tree.map(lambda x: jnp.asarray(x) if is_array(x) else x, batch)


def is_array(value: Any) -> bool:
    """Returns whether a value of a batch is an array of numbers, not objects of a host column."""
    # No comparison with None: of a dtype it means float64.
    return hasattr(value, "dtype") and value.dtype != np.dtype(object)
