"""Columns of numbers, and of lists of them that all have one shape, become one array."""

import datasets
import jax
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import Column, Misfit, Rows, blocks, indices, plain, shown
from datarax.columns.lists import (
    fits,
    flatten,
    is_list,
    is_number,
    leaf_type,
    misfits,
    row_shape,
    values,
)


def dense(column: Column, scope: Rows) -> np.ndarray:
    """Reads a column of numbers into one array.

    Args:
        column: Numbers or booleans, or lists of them, nested or not.
        scope: All rows of the dataset. They decide whether the column is an array, so that every
            process that reads some of them decides alike.

    Returns:
        An array of shape `(n, *shape of a row)`, in the dtype that `array_dtype` gives. It is
        read-only where it is Arrow's own memory, as of a column in one piece that fits as it is.

    Raises:
        Misfit: A row is None, holds None, holds no numbers or has another shape than row 0.
        ValueError: A 64-bit integer does not fit into 32 bits.
    """
    whole = Column(column.path, column.feature, column.values, scope)
    shape = first_shape(whole)
    if column.rows is not scope:
        expect_shape(whole, shape)

    if column.rows.positions is None and column.values.num_chunks == 1:
        block = plain(column.values.chunk(0))
        _expect(whole, block, shape)
        read = values(block, shape)
        if read.dtype == array_dtype(column.feature, read.dtype):
            return read  # Arrow's own memory, or, of booleans, a fresh array

    out = None
    for where, block in blocks(column.values, column.rows):
        _expect(whole, block, shape)
        read = values(block, shape)
        if out is None:  # not before a block is known to fit: one long row would ask for too much
            dtype = array_dtype(column.feature, read.dtype)
            out = np.empty((column.rows.length, *shape), dtype)
        expect_range(column, read, dtype, indices(where))
        with np.errstate(over="ignore"):  # a float64 out of range rounds to infinity
            out[where] = read
    assert out is not None  # there are rows
    return out


def first_shape(column: Column) -> tuple[int, ...]:
    """Returns the shape of a column's first row; a `Misfit` where it holds no numbers."""
    if not is_number(leaf_type(column.values.type)):
        raise Misfit(0, f"is {shown(column.row(0)[0])}")
    return row_shape(column.row(0))


def expect_shape(column: Column, shape: tuple[int, ...]) -> None:
    """Raises a `Misfit` for the first row that is None, holds None or has another shape."""
    every = Rows(len(column.values))
    if column.rows.positions is not None and all(
        fits(block, shape) for _, block in blocks(column.values, every)
    ):
        return  # so do some of them: to take these from Arrow would copy all that they hold
    for _, block in blocks(column.values, column.rows):
        _expect(column, block, shape)


def array_dtype(feature: object, stored: np.dtype) -> np.dtype:
    """Returns the dtype of an array column: as stored, but in 32 bits where JAX has no 64.

    Args:
        feature: The column's feature; class labels, in lists or not, are `int32` in any case.
        stored: The dtype that Arrow holds.
    """
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    if isinstance(feature, datasets.ClassLabel):
        return np.dtype(np.int32)
    return np.dtype(jax.dtypes.canonicalize_dtype(stored))


def _expect(whole: Column, block: pa.Array, shape: tuple[int, ...]) -> None:
    """Raises a `Misfit` for the first row of the column if any of a block has another shape."""
    if fits(block, shape):
        return
    found = []
    for where, other in blocks(whole.values, whole.rows):
        found.extend(indices(where)[misfits(other, shape)].tolist())
    raise Misfit(min(found), _unlike(whole.row(min(found)), shape))


def _unlike(row: pa.Array, shape: tuple[int, ...]) -> str:
    if row.null_count:
        return "is None"
    other, inner = row_shape(row), row
    while is_list(inner.type):
        inner = flatten(inner)
        if inner.null_count:
            return f"holds None, {shown(row[0])}"
    if len(inner) != np.prod(other, dtype=int) or other == shape:
        return f"is ragged, {shown(row[0])}"
    return f"has shape {other} where row 0 has {shape}"


def expect_range(column: Column, read: np.ndarray, dtype: np.dtype, rows: np.ndarray) -> None:
    """Raises `ValueError` for the first stored integer that does not fit into a dtype.

    Args:
        column: The column.
        read: Some of its rows as they are stored, shape `(k, ...)`.
        dtype: The dtype, as `array_dtype` gives it.
        rows: Which rows of the column they are, int64 of shape `(k,)`.
    """
    if dtype.kind not in "iu" or dtype.itemsize == read.dtype.itemsize or not read.size:
        return
    limits = np.iinfo(dtype)
    if limits.min <= read.min() and read.max() <= limits.max:
        return
    outside = (read < limits.min) | (read > limits.max)
    block_row = np.argwhere(outside)[0]
    raise ValueError(
        f"column {column.name!r}, row {column.rows.number(int(rows[block_row[0]]))}: "
        f"{read[tuple(block_row)]} does not fit into {dtype.name}, and JAX has 64-bit integers "
        "only after jax.config.update('jax_enable_x64', True). Write that, store smaller numbers, "
        f"or leave the column out: exclude_keys={{{column.path[0]!r}}}"
    )
