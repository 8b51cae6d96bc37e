"""Arrow lists as arrays: their shape, the rows that do not have it, their values."""

import numpy as np
import pyarrow as pa

from datarax.columns.arrow import nulls, plain
from datarax.columns.host import object_array


def is_list(type_: pa.DataType) -> bool:
    """Returns whether values of the type are lists, of a fixed size or not."""
    return any(
        check(type_)
        for check in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def is_number(type_: pa.DataType) -> bool:
    """Returns whether values of the type are integers, floats or booleans."""
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)


def is_text(type_: pa.DataType) -> bool:
    """Returns whether values of the type are strings, whatever their layout."""
    return (
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    )


def is_binary(type_: pa.DataType) -> bool:
    """Returns whether values of the type are bytes, whatever their layout."""
    return any(
        check(type_)
        for check in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )


def leaf_type(type_: pa.DataType) -> pa.DataType:
    """Returns the type of what is in the lists, however deep."""
    while True:
        if isinstance(type_, pa.BaseExtensionType):
            type_ = type_.storage_type
        elif pa.types.is_dictionary(type_) or is_list(type_):
            type_ = type_.value_type
        else:
            return type_


def flatten(array: pa.Array) -> pa.Array:
    """Returns what the lists hold, joined; lists that are None count as empty."""
    return plain(array.flatten())


def list_lengths(array: pa.Array) -> np.ndarray:
    """Returns how many values each list holds, int64 of shape `(len(array),)`; None holds none."""
    if pa.types.is_fixed_size_list(array.type):
        lengths = np.broadcast_to(array.type.list_size, len(array))
    else:
        lengths = np.diff(array.offsets.to_numpy())
    return np.where(nulls(array), 0, lengths) if array.null_count else lengths


def row_shape(row: pa.Array) -> tuple[int, ...]:
    """Returns the shape that an array of one row would have if it is not ragged."""
    shape, count = [], 1
    while is_list(row.type):
        row = flatten(row)
        shape.append(len(row) // count if count else 0)
        count = len(row)
    return tuple(shape)


def fits(array: pa.Array, shape: tuple[int, ...]) -> bool:
    """Returns whether every row is an array of a shape: quicker than asking which are not."""
    return flat(array, shape) is not None


def flat(array: pa.Array, shape: tuple[int, ...]) -> pa.Array | None:
    """Returns what rows of a shape hold, joined; None if a row has another, is or holds None."""
    for size in shape:
        if array.null_count or (list_lengths(array) != size).any():
            return None
        array = flatten(array)
    return None if array.null_count else array


def misfits(array: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Returns which rows are no arrays of a shape.

    Args:
        array: Values, or lists of them, of `n` rows.
        shape: The shape of one row.

    Returns:
        A bool array of shape `(n,)`, true where a row is None, holds None or has another shape.
    """
    bad = nulls(array) if array.null_count else np.zeros(len(array), bool)
    if not shape:
        return bad
    bad |= list_lengths(array) != shape[0]
    whole = array.filter(pa.array(~bad)) if bad.any() else array
    inner = misfits(flatten(whole), shape[1:])
    if inner.any():
        bad[~bad] = inner.reshape(len(whole), shape[0]).any(axis=1)
    return bad


def values(array: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """Returns `n` rows that all have a shape as one array of shape `(n, *shape)`."""
    count = len(array)
    while is_list(array.type):
        array = flatten(array)
    return array.to_numpy(zero_copy_only=False).reshape(count, *shape)


def ragged(array: pa.Array, inner: tuple[int, ...]) -> np.ndarray:
    """Returns lists of many lengths as arrays, one a row.

    Args:
        array: `n` lists, or None, of items that all have the shape `inner`.
        inner: The shape of one item.

    Returns:
        An object array of shape `(n,)`: arrays of shape `(length of the row, *inner)`, and None.
    """
    ends = np.cumsum(list_lengths(array))
    items = values(flatten(array), inner).copy()  # Arrow's own are read-only
    parts = np.split(items, ends[:-1])
    return object_array(
        [None if gone else part for gone, part in zip(nulls(array), parts, strict=True)]
    )
