"""Numbers of Arrow as arrays of a known shape and dtype; rows that would change are found."""

import numpy as np
import pyarrow as pa

from datarax.columns.lists import (
    flat,
    flatten,
    is_list,
    is_number,
    leaf_type,
    list_lengths,
    misfits,
)


def read_numbers(
    block: pa.Array, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Reads rows into an array that holds each of them exactly.

    A float64 may round to float32, and an integer to a float. Nothing else changes.

    Args:
        block: `n` rows of any type.
        shape: The shape of one row.
        dtype: The array's dtype.

    Returns:
        An array of shape `(n, *shape)`, without a copy where `block` holds it as it is; and the
        numbers of the rows that it cannot hold, ascending. Those rows are 0.
    """
    if not is_number(leaf_type(block.type)) or _depth(block.type) != len(shape):
        return np.zeros((len(block), *shape), dtype), np.arange(len(block))
    inner = flat(block, shape)
    if inner is not None:
        read = inner.to_numpy(zero_copy_only=False).reshape(len(block), *shape)
        return (read, _NONE) if read.dtype == dtype else _converted(read, dtype)
    unlike = misfits(block, shape)
    like = np.flatnonzero(~unlike)
    found, bad = read_numbers(block.take(pa.array(like)), shape, dtype)
    out = np.zeros((len(block), *shape), dtype)
    out[like] = found
    return out, np.union1d(np.flatnonzero(unlike), like[bad])


def read_lists(
    block: pa.Array, items: tuple[int, ...], dtype: np.dtype
) -> tuple[list[np.ndarray | None], np.ndarray]:
    """Reads lists of many lengths as arrays, one a row.

    Args:
        block: `n` lists, or None, of any type.
        items: The shape of one item.
        dtype: The arrays' dtype.

    Returns:
        `n` arrays of shape `(length, *items)`, or None; and the numbers of the rows that are no
        such arrays, ascending.
    """
    missing = block.is_null().to_numpy(zero_copy_only=False)
    if not is_list(block.type):
        return [None] * len(block), np.flatnonzero(~missing)
    ends = np.cumsum(list_lengths(block))
    inner = flatten(block)
    read, bad = read_numbers(inner, items, dtype) if len(inner) else (_empty(items, dtype), _NONE)
    parts = np.split(read.copy(), ends[:-1])  # Arrow's own memory is read-only
    rows = [None if gone else part for gone, part in zip(missing, parts, strict=True)]
    return rows, np.unique(np.searchsorted(ends, bad, side="right"))


_NONE = np.empty(0, np.int64)


def _empty(items: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.empty((0, *items), dtype)


def _depth(type_: pa.DataType) -> int:
    depth = 0
    while is_list(type_):
        type_, depth = type_.value_type, depth + 1
    return depth


def _converted(read: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    kinds = read.dtype.kind, dtype.kind
    with np.errstate(over="ignore", invalid="ignore"):  # out of range: infinity, or found below
        out = read.astype(dtype)
        if dtype.kind == "f" and "b" not in kinds:
            return out, _NONE
        changed = (out.astype(read.dtype) != read) | ((out < 0) != (read < 0))
    if "b" in kinds:
        changed[:] = True
    out[changed] = 0
    return out, np.flatnonzero(changed.any(axis=tuple(range(1, changed.ndim))))
