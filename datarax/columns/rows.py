"""Rows of columns: a gather for arrays, host columns beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.columns.host import Absent, HostColumn, is_host, object_array


@dataclass(frozen=True)
class ReadRows:
    """Some rows of a source, in host memory.

    Args:
        columns: Nested dict of NumPy arrays of shape `(k, ...)`; object arrays for host columns.
        whole: Which rows could be read, bool of shape `(k,)`. The others do not count: the image of
            another row, or a black one or None, stands in the place of a damaged one.
        decoding: Seconds of reading them that went into decoding and transforming.
    """

    columns: dict[str, Any]
    whole: np.ndarray
    decoding: float = 0.0


def joined(parts: Sequence[ReadRows]) -> ReadRows:
    """Returns the rows of all parts, one part after the other."""
    columns = jax.tree.map(lambda *columns: np.concatenate(columns), *(p.columns for p in parts))
    whole = np.concatenate([part.whole for part in parts])
    return ReadRows(columns, whole, sum(part.decoding for part in parts))


class TracedBatch(dict):
    """A dict of the array columns of a traced batch that explains why a host column is missing."""

    def __init__(self, columns: dict[str, Any], absent: tuple[Absent, ...]):
        super().__init__(columns)
        self.absent = absent

    def __missing__(self, name):
        for column in self.absent:
            if column.name.rpartition(".")[2] == name:
                raise column.error()
        raise KeyError(f"{name!r}: the batch has {', '.join(map(repr, self))}")


def _flatten(batch):
    names = tuple(sorted(batch))  # as JAX has it for a dict
    return tuple(batch[name] for name in names), (names, batch.absent)


jax.tree_util.register_pytree_node(
    TracedBatch,
    _flatten,
    lambda static, values: TracedBatch(dict(zip(static[0], values, strict=True)), static[1]),
)


def gather(
    columns: dict[str, Any], records: jax.Array, absent: tuple[Absent, ...] = ()
) -> dict[str, Any]:
    """Returns the rows `records` of array columns; traceable.

    Args:
        columns: Nested dict of arrays of shape `(n, ...)`.
        records: `int32` array of shape `(size,)` of rows in `[0, n)`.
        absent: The host columns; asking the result for one raises its error.

    Returns:
        Nested dict of arrays of shape `(size, ...)`.
    """
    # Records come from `order`, which never leaves the range: no clamping needed.
    rows = jax.tree.map(
        lambda column: jnp.asarray(column).at[records].get(mode="promise_in_bounds"), columns
    )
    return explained(rows, absent)


def explained(batch: dict[str, Any], absent: tuple[Absent, ...]) -> dict[str, Any]:
    """Returns a batch that raises a host column's error where it is asked for it."""
    if not absent:
        return batch
    return TracedBatch(
        {n: explained(c, absent) if isinstance(c, dict) else c for n, c in batch.items()}, absent
    )


def absent_of(columns: tuple[HostColumn, ...]) -> tuple[Absent, ...]:
    """Returns what stands for host columns in a compiled program."""
    return tuple(column.absent for column in columns)


def host_of(columns: dict[str, Any]) -> tuple[HostColumn, ...]:
    """Returns the host columns, nested ones too."""
    return tuple(node for node in jax.tree.leaves(columns, is_leaf=is_host) if is_host(node))


def without_host(columns: dict[str, Any]) -> dict[str, Any]:
    """Returns the array columns."""
    return {
        name: without_host(column) if isinstance(column, dict) else column
        for name, column in columns.items()
        if not isinstance(column, HostColumn)
    }


def parted(columns: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a batch of NumPy arrays as two: its array columns, and its host columns.

    Args:
        columns: Nested dict of arrays of shape `(size, ...)`, object arrays among them.
    """
    arrays, objects = {}, {}
    for name, column in columns.items():
        if isinstance(column, dict):
            arrays[name], inner = parted(column)
            objects |= {name: inner} if inner else {}
        else:
            (objects if column.dtype == object else arrays)[name] = column
    return arrays, objects


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


def each_row(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a batch one by one."""
    leaves, structure = jax.tree.flatten(batch)
    for values in zip(*(list(leaf) for leaf in leaves), strict=True):
        yield jax.tree.unflatten(structure, values)


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns a batch with its arrays on the default device; host columns stay."""
    # One by one: `jax.device_put` of a list takes twice as long where the batches are small.
    return jax.tree.map(lambda x: jnp.asarray(x) if is_array(x) else x, batch)


def is_array(value: Any) -> bool:
    """Returns whether a value of a batch is an array of numbers, not objects of a host column."""
    # No comparison with None: of a dtype it means float64.
    return hasattr(value, "dtype") and value.dtype != np.dtype(object)


def as_columns(values: Any) -> Any:
    """Returns a batch's values as arrays of numbers, or as object arrays of what is no number."""
    if isinstance(values, dict):
        return {name: as_columns(inner) for name, inner in values.items()}
    array = values if hasattr(values, "dtype") else np.asarray(values)
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufcV":
        return object_array(list(values))
    return array


def common_length(data: dict[str, Any]) -> int:
    """Returns the number of rows of all columns.

    Raises:
        ValueError: If there are none, or the columns differ in length.
    """
    columns = jax.tree.leaves_with_path(data, is_leaf=is_host)
    lengths = {jax.tree_util.keystr(path): len(column) for path, column in columns}
    if not lengths or not all(lengths.values()):
        raise ValueError(
            f"There are no records: the columns are {lengths or 'none'}. A source needs at least "
            "one record; check the split, the filter or include_keys."
        )
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns differ in length: {lengths}. Every record needs each.")
    return next(iter(lengths.values()))
