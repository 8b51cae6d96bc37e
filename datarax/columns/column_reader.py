"""One column whose rows are read by their number, from mapped Arrow files or memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from datarax.columns.arrow import ArrowCells, Column, Misfit, Rows, blocks, indices, plain
from datarax.columns.host import HostColumn
from datarax.columns.images import Damage
from datarax.columns.lists import flat, is_list, is_number, is_text, leaf_type, values
from datarax.columns.numbers import array_dtype, expect_range, expect_shape, first_shape
from datarax.columns.objects import host_column, needs_decoding, objects
from datarax.columns.opened import OpenedFiles
from datarax.columns.scattered import Scattered, memory_between

_PART = 256 << 10  # bytes that are converted at a time
_ASKED = 8 << 10  # bytes that are copied while the system finds a row in a file: 0.8 us


class ColumnReader:
    """Reads rows of one column, whichever are asked for, into an array that is given.

    Attributes:
        empty: The column without rows: an array of shape `(0, ...)`, or a `HostColumn`.
        row_bytes: About what reading a row costs, in bytes that are copied.
        maps: Whether reading maps files.
    """

    empty: np.ndarray | HostColumn
    row_bytes: int = 0
    maps: bool = True

    def read_from(self, files: OpenedFiles) -> None:
        """Reads from files, where they hold the column's memory, and does not map them."""

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        """Reads rows into `out`, on whatever thread.

        Args:
            rows: The rows, with positions and numbers.
            out: An array of shape `(rows.length, ...)` and of the column's dtype.

        Returns:
            What is wrong with damaged images, by their place in `rows`.
        """
        raise NotImplementedError


def column_reader(column: Column) -> ColumnReader:
    """Returns the reader of a column that holds no images, as what eager sources make of it.

    Args:
        column: The column, and the rows that count.

    Raises:
        ValueError: Text is stored as no text, or a row cannot be looked at.
    """
    try:
        return NumberReader(column)
    except Misfit as misfit:
        host = host_column(column, objects(column), misfit)
        pieces = _offset_pieces(column)
        if pieces is None:
            return ObjectReader(host)
        type_ = column.values.type
        if is_text(type_) or pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
            return TextReader(host, pieces)
        ragged = is_list(type_) and is_number(leaf_type(type_)) and not is_list(type_.value_type)
        return RaggedReader(host, pieces) if ragged else ObjectReader(host)


class NumberReader(ColumnReader):
    """Numbers, or arrays of them that all have one shape.

    Raises:
        Misfit: A row that counts is None, holds None, holds no numbers or has another shape.
    """

    def __init__(self, column: Column):
        self._column = column
        shape = first_shape(column)
        pieces = _number_pieces(column.values, shape)
        if pieces is None:
            expect_shape(column, shape)
        stored = values(column.row(0), shape).dtype
        self._items = Scattered(pieces) if pieces else None
        self.empty = np.empty((0, *shape), array_dtype(column.feature, stored))
        self.row_bytes = stored.itemsize * int(np.prod(shape, dtype=int))

    def read_from(self, files: OpenedFiles) -> None:
        self.maps = self._items is None or not self._items.read_from(files)
        self.row_bytes += 0 if self.maps else _ASKED

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        items, positions = self._items, rows.positions
        assert positions is not None
        if items is None:
            for where, block in blocks(self._column.values, rows):
                self._convert(rows, indices(where), values(block, out.shape[1:]), out)
        elif items.dtype == out.dtype:
            items.read(positions, out)
        else:
            step = max(1, _PART // max(1, self.row_bytes))
            for start in range(0, rows.length, step):
                where = np.arange(start, min(start + step, rows.length))
                self._convert(rows, where, items.take(positions[where]), out)
        return {}

    def _convert(self, rows: Rows, where: np.ndarray, stored: np.ndarray, out: np.ndarray) -> None:
        expect_range(replace(self._column, rows=rows), stored, out.dtype, where)
        with np.errstate(over="ignore"):  # a float64 out of range rounds to infinity
            out[where] = stored


class ObjectReader(ColumnReader):
    """Rows that become Python objects in blocks of Arrow, whatever they are.

    Args:
        column: The host column.
    """

    def __init__(self, column: HostColumn):
        cells: Any = column.cells
        self._values, self._objects = cells.column, cells.convert
        self.empty = column.over(np.empty(0, object))

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        cells = ArrowCells(self._values, rows, self._objects)
        out[:] = cells[np.arange(rows.length)]
        return {}


class SpanReader(ObjectReader):
    """Rows of many lengths, none of which is None, that lie somewhere in one span of memory.

    Args:
        column: The host column.
        pieces: Where each row begins and ends, and the memory in which they lie.
        dtype: The dtype of an item.
    """

    def __init__(self, column: HostColumn, pieces: tuple[Scattered, np.ndarray], dtype: np.dtype):
        super().__init__(column)
        self._bounds, origins = pieces
        low = int(origins[:, 0].min())
        self._origins = (origins[:, 0] - low) // dtype.itemsize
        span = memory_between(low, int(origins.sum(axis=1).max()), 1)
        size = len(span) // dtype.itemsize * dtype.itemsize
        self._memory = span[:size].view(dtype)

    def read_from(self, files: OpenedFiles) -> None:
        self._bounds.read_from(files)  # the rows themselves are mapped

    def _spans(self, rows: Rows) -> Iterator[tuple[int, int]]:
        """Returns where rows begin and end, in items of the memory."""
        assert rows.positions is not None
        within = self._bounds.take(rows.positions).astype(np.int64)
        within += self._origins[self._bounds.piece(rows.positions)][:, None]
        return zip(within[:, 0].tolist(), within[:, 1].tolist(), strict=True)


class TextReader(SpanReader):
    """Text or bytes, none of which is None.

    Args:
        column: The host column.
        pieces: Where each text begins and ends, and the memory in which they lie.
    """

    def __init__(self, column: HostColumn, pieces: tuple[Scattered, np.ndarray]):
        super().__init__(column, pieces, np.dtype(np.uint8))
        self._is_text = is_text(self._values.type)

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        memory: Any = memoryview(self._memory.data)
        try:
            if self._is_text:
                out[:] = [str(memory[start:stop], "utf-8") for start, stop in self._spans(rows)]
            else:
                out[:] = [bytes(memory[start:stop]) for start, stop in self._spans(rows)]
        except UnicodeDecodeError:
            return super().read(rows, out)  # it names the row
        return {}


class RaggedReader(SpanReader):
    """Lists of numbers of many lengths, none of which is None or holds None.

    Args:
        column: The host column.
        pieces: Where each list begins and ends, and the memory in which they lie.
    """

    def __init__(self, column: HostColumn, pieces: tuple[Scattered, np.ndarray]):
        values: Any = column.cells
        item = leaf_type(values.column.type)
        super().__init__(column, pieces, np.dtype(item.to_pandas_dtype()))

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        for row, (start, stop) in enumerate(self._spans(rows)):
            out[row] = self._memory[start:stop].copy()
        return {}


def _number_pieces(column: pa.ChunkedArray, shape: tuple[int, ...]) -> list[np.ndarray] | None:
    """Returns a column's memory as arrays of shape `(n, *shape)`.

    None where some rows have another shape, or Arrow stores them in another way than NumPy.
    """
    type_ = column.type
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    if pa.types.is_dictionary(type_) or pa.types.is_boolean(leaf_type(type_)):
        return None
    pieces = []
    for chunk in filter(len, column.chunks):
        found = flat(plain(chunk), shape)
        if found is None:
            return None
        pieces.append(found.to_numpy().reshape(len(chunk), *shape))
    return pieces


def _offset_pieces(column: Column) -> tuple[Scattered, np.ndarray] | None:
    """Returns where rows of many lengths begin and end within the memory that holds them.

    Returns:
        The bounds of each row, in items; and the address and the length in bytes of the memory of
        each piece, int64 of shape `(pieces, 2)`. None where there is no such memory.
    """
    type_ = column.values.type
    wide = pa.types.is_large_string(type_) or pa.types.is_large_binary(type_)
    wide |= pa.types.is_large_list(type_)
    lists = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    narrow = pa.types.is_string(type_) or pa.types.is_binary(type_) or pa.types.is_list(type_)
    if not (wide or narrow) or needs_decoding(column.feature):
        return None
    if lists and (not is_number(type_.value_type) or pa.types.is_boolean(type_.value_type)):
        return None
    pieces, origins = [], []
    chunks: list[Any] = [chunk for chunk in column.values.chunks if len(chunk)]
    for chunk in chunks:
        if chunk.null_count:
            return None
        _, offsets, *held = chunk.buffers()
        data = held[-1] if lists else held[0]
        if lists and chunk.values.null_count:
            return None
        dtype = np.dtype(np.int64 if wide else np.int32)
        ends = np.frombuffer(offsets, dtype)[chunk.offset : chunk.offset + len(chunk) + 1]
        each = dtype.itemsize
        pieces.append(np.lib.stride_tricks.as_strided(ends, (len(chunk), 2), (each, each)))
        skipped = chunk.values.offset * (type_.value_type.bit_width // 8) if lists else 0
        if not data or not data.size:  # nothing but empty rows
            data, skipped = offsets, 0
        origins.append((data.address + skipped, data.size - skipped))
    return (Scattered(pieces), np.array(origins, np.int64)) if pieces else None
