"""Columns of an Arrow table, read in blocks of rows."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from datarax.hub.private import positions_of

BLOCK_BYTES = 4 << 20  # what a block may hold: large enough for vectors, small beside any column

_SORTED_ROWS = 1 << 20  # as many selected rows are sorted at a time, to read chunk by chunk

Where = slice | np.ndarray


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of a table, in which order.

    Args:
        length: The number of rows.
        positions: Rows of the table, int64 of shape `(length,)`; None for all, as they are stored.
        numbers: The same rows as the user of the dataset counts them; None for `0 ... length - 1`.
    """

    length: int
    positions: np.ndarray | None = None
    numbers: np.ndarray | None = None

    def take(self, indices: np.ndarray) -> "Rows":
        """Returns the rows at `indices` (int64, shape `(k,)`) of these rows."""
        positions = indices if self.positions is None else self.positions[indices]
        numbers = indices if self.numbers is None else self.numbers[indices]
        return Rows(len(indices), positions, numbers)

    @property
    def begin(self) -> int | None:
        """The first row's position if the others follow it one by one, else None."""
        if self.positions is None or not self.length:
            return 0
        first, last = self.positions[[0, -1]]
        in_line = last - first == self.length - 1 and (np.diff(self.positions) == 1).all()
        return int(first) if in_line else None

    def number(self, index: int) -> int:
        """Returns how the user counts row `index` of these."""
        return int(index if self.numbers is None else self.numbers[index])


def expect_no_transform(dataset: datasets.Dataset) -> None:
    """Raises `ValueError` if the dataset runs a function when rows are read."""
    if dataset.format["type"] == "custom":
        raise ValueError(
            "The dataset has a transform that runs when rows are read (set_transform, "
            "with_transform), so its columns are not known. Give the source the function, "
            "from_dataset(ds.with_format(None), transform=...), or store its rows with ds.map(...)."
        )


def rows_of(dataset: datasets.Dataset) -> Rows:
    """Returns the rows of a dataset's table that are its own, in its order."""
    return Rows(len(dataset), positions_of(dataset))


@dataclass(frozen=True, eq=False)
class Column:
    """A column as it is stored.

    Args:
        path: Its name, and the names within it if it is nested.
        feature: Its feature, or part of one.
        values: The values of all rows of the table.
        rows: The rows of the table that count.
    """

    path: tuple[str, ...]
    feature: Any
    values: pa.ChunkedArray
    rows: Rows

    @property
    def name(self) -> str:
        """The name that errors and host columns use: `"answers.text"`."""
        return ".".join(self.path)

    def row(self, index: int) -> pa.Array:
        """Returns one of the rows, an Arrow array of length 1."""
        rows = self.rows
        position = index if rows.positions is None else rows.positions[index]
        return plain(pa.concat_arrays(self.values.slice(position, 1).chunks))


class Misfit(Exception):
    """A row that keeps a column from being one array.

    Args:
        row: The row, as the user counts it.
        found: What was found there, in words.
    """

    def __init__(self, row: int, found: str):
        super().__init__(row, found)
        self.row = row
        self.found = found


def blocks(
    column: pa.ChunkedArray, rows: Rows, most: int | None = None
) -> Iterator[tuple[Where, pa.Array]]:
    """Yields rows of a column, a few megabytes at a time, whatever its chunks are.

    Args:
        column: The column of the whole table.
        rows: The rows to read.
        most: The most rows of a block, if there is a limit.

    Yields:
        Where the block belongs among `rows` (a slice or int64 indices), and its values.
    """
    for where, part in _stored(column, rows, min(_block_rows(column), most or BLOCK_BYTES)):
        yield where, plain(part)


def _stored(column: pa.ChunkedArray, rows: Rows, step: int) -> Iterator[tuple[Where, pa.Array]]:
    begin = rows.begin
    if begin is not None:
        for start in range(0, rows.length, step):
            part = column.slice(begin + start, min(step, rows.length - start))
            joined = part.chunk(0) if part.num_chunks == 1 else pa.concat_arrays(part.chunks)
            yield slice(start, start + len(part)), joined
        return
    assert rows.positions is not None  # only rows that are not in line come here
    edges = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])
    for first in range(0, rows.length, _SORTED_ROWS):
        positions = rows.positions[first : first + _SORTED_ROWS]
        order, cuts = None, [0, len(positions)]
        if column.num_chunks > 1:  # chunk by chunk: to take from all at once, Arrow would join them
            order = np.argsort(positions)
            positions = positions[order]
            cuts = np.searchsorted(positions, edges)
        for chunk, edge, start, stop in zip(column.chunks, edges, cuts, cuts[1:], strict=False):
            for low in range(start, stop, step):
                high = min(low + step, stop)
                part = chunk.take(pa.array(positions[low:high] - edge))
                where = (
                    slice(first + low, first + high) if order is None else first + order[low:high]
                )
                yield where, part


def _block_rows(column: pa.ChunkedArray) -> int:
    if pa.types.is_primitive(
        column.type
    ):  # asking thousands of chunks takes longer than reading them
        return BLOCK_BYTES * 8 // column.type.bit_width
    return max(1, BLOCK_BYTES * len(column) // max(column.nbytes, 1))


def read(column: pa.ChunkedArray, rows: Rows) -> pa.Array:
    """Returns a few rows of a column as one array, in their order."""
    return plain(_in_order(column, rows))


def _in_order(column: pa.ChunkedArray, rows: Rows) -> pa.Array:
    wheres, parts = zip(*_stored(column, rows, _block_rows(column)), strict=True)
    order = np.argsort(np.concatenate([indices(where) for where in wheres]))
    return pa.concat_arrays(parts).take(pa.array(order))


def gathered(table: pa.Table, positions: np.ndarray) -> pa.Table:
    """Returns some rows of a table, in any order.

    `pa.Table.take` joins all chunks of a column first, which fails where they hold 2 GB of text.

    Args:
        table: A table without views, see `without_views`.
        positions: Its rows, int64 of shape `(n,)`, at least one.
    """
    rows = Rows(len(positions), positions)
    columns = [_in_order(column, rows) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


def without_views(table: pa.Table) -> pa.Table:
    """Returns a table whose text and bytes are no views, which Arrow cannot take rows of."""
    fields = [field.with_type(_viewless(field.type)) for field in table.schema]
    schema = pa.schema(fields, table.schema.metadata)
    return table if schema.equals(table.schema) else table.cast(schema)


def _viewless(type_: pa.DataType) -> pa.DataType:
    if type_ == pa.string_view():
        return pa.large_string()
    if type_ == pa.binary_view():
        return pa.large_binary()
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_viewless(field.type)) for field in type_])
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_viewless(type_.value_type)))
    if pa.types.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(_viewless(type_.value_type)))
    if pa.types.is_fixed_size_list(type_):
        field = type_.value_field.with_type(_viewless(type_.value_type))
        return pa.list_(field, type_.list_size)
    return type_


def indices(where: Where) -> np.ndarray:
    """Returns the place of a block's rows, int64 of shape `(rows,)`."""
    return np.arange(where.start, where.stop) if isinstance(where, slice) else where


def plain(array: pa.Array) -> pa.Array:
    """Returns the values without the wrapping: no extension type, dictionary or list view."""
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        # Arrow 26 casts a view of text to a list of a negative length.
        lengths = np.where(nulls(array), 0, array.value_lengths().fill_null(0))
        ends = np.concatenate([[0], np.cumsum(lengths)])
        mask = pa.array(nulls(array)) if array.null_count else None
        return pa.LargeListArray.from_arrays(ends, array.flatten(), mask=mask)
    return array


def as_python(value: pa.Scalar) -> Any:
    """Returns a value as a Python object; a date beyond Python's years is a `numpy.datetime64`.

    Raises:
        UnicodeDecodeError: Text in it is no UTF-8.
    """
    try:
        return value.as_py()
    except OverflowError:  # `datetime` knows the years 1 to 9999
        if isinstance(value, pa.StructScalar):
            return {key: as_python(part) for key, part in value.items()}
        if isinstance(value, pa.ListScalar):
            return [as_python(value.values[index]) for index in range(len(value.values))]
        return pa.array([value]).to_numpy(zero_copy_only=False)[0]


def shown(value: pa.Scalar) -> str:
    """Returns a value for a message, cut to 60 characters."""
    try:
        text = repr(as_python(value))
    except UnicodeDecodeError as error:
        text = f"text that is no UTF-8, {error.object!r}"
    return text if len(text) < 60 else f"{text[:56]} ..."


def nulls(array: pa.Array) -> np.ndarray:
    """Returns which values are None, bool of shape `(len(array),)`."""
    return array.is_null().to_numpy(zero_copy_only=False)


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ArrowCells:
    """Rows of an Arrow column that become Python objects when they are asked for.

    Args:
        column: The column of the whole table.
        rows: The rows of it that count.
        convert: What makes an object array of shape `(k,)` of `k` Arrow values, given also `Rows`
            that tell how the user counts them.
    """

    def __init__(
        self,
        column: pa.ChunkedArray,
        rows: Rows,
        convert: Callable[[pa.Array, Rows], np.ndarray],
    ):
        self.column = column
        self.rows = rows
        self.convert = convert

    def __len__(self) -> int:
        return self.rows.length

    def __getitem__(self, wanted: np.ndarray) -> np.ndarray:
        rows = self.rows.take(wanted)
        out = np.empty(rows.length, object)
        for where, block in blocks(self.column, rows):
            out[where] = self.convert(block, rows.take(indices(where)))
        return out

    def select(self, wanted: np.ndarray) -> "ArrowCells":
        """Returns the cells at `wanted`, int64 of shape `(k,)`, still unread."""
        return ArrowCells(self.column, self.rows.take(wanted), self.convert)
