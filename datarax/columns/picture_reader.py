"""A column of images whose rows are read by their number: from decoded pixels, or decoded then."""

from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np
import PIL.Image

from datarax.columns import image_cache
from datarax.columns.arrow import Column, Misfit, Rows, blocks, cores, indices
from datarax.columns.column_reader import ColumnReader, ObjectReader
from datarax.columns.image_file import DamagedImage, dimensions, looked_at, open_image, widest
from datarax.columns.images import (
    Damage,
    damaged,
    decoded,
    encoded,
    estimated_bytes,
    image_objects,
    load_images,
    one_by_one,
    pictures_a_row,
    unlike,
)
from datarax.columns.objects import host_column, objects
from datarax.columns.opened import OpenedFiles
from datarax.columns.scattered import Scattered

_LOOKED_AT = 2 << 20  # bytes that decoding an image counts for, at least


def picture_reader(column: Column) -> ColumnReader:
    """Returns the reader of a column of images, as what eager sources make of it.

    Images of one size are decoded once into the file of decoded images, and mapped from there.
    Where it has no room for them, they are decoded when they are asked for.

    Args:
        column: A column of images, or of rows that hold a number of them each; all rows.

    Raises:
        ValueError: No image is whole.
    """
    count = pictures_a_row(column.feature, column.values.type)
    try:
        return _array_reader(column if count is None else one_by_one(column), count)
    except Misfit as misfit:
        if count is not None:
            return ObjectReader(host_column(column, objects(column), misfit))

        def convert(block: Any, rows: Rows) -> np.ndarray:
            return image_objects(column, block, rows)

        return EncodedReader(column, host_column(column, convert, misfit))


def _array_reader(column: Column, count: int | None) -> ColumnReader:
    size = estimated_bytes(column)
    if not image_cache.worth(size):
        return PixelReader(*load_images(column, cache=False), count)
    if image_cache.enabled(size):
        key = image_cache.cache_key(column)
        found = image_cache.load(key)
        if found is None:

            def write(file: IO[bytes]) -> image_cache.Stored:
                pixels, damage = decoded(
                    column, lambda shape, dtype: image_cache.PixelFile(file, shape, dtype)
                )
                return pixels.mapped(), damage

            found = image_cache.stored(key, size, write)
        if found is not None:
            return PixelReader(*found, count)
    return EncodedArrayReader(column, *_common_kind(column), count)


class PixelReader(ColumnReader):
    """Images that are decoded.

    Args:
        pixels: Those of all rows, of shape `(n, ...)`.
        damage: What is wrong with images, by row.
        count: How many images a row of the column holds, if it declares a number.

    Attributes:
        damage: What is wrong with the rows of the column.
        address: Where the pixels begin in memory, which may map their file.
    """

    def __init__(self, pixels: np.ndarray, damage: Damage, count: int | None = None):
        if count is not None:
            pixels = pixels.reshape(-1, count, *pixels.shape[1:])
        self.damage = {item // (count or 1): said for item, said in damage.items()}
        self._bad = np.array(sorted(self.damage), np.int64)
        whole = (row for row in range(len(pixels)) if row not in self.damage)
        self._stand_in = next(whole, 0)  # zeros would bend the statistics of a batch
        self._items, self.address = Scattered([pixels]), pixels.ctypes.data
        self.empty = np.empty((0, *pixels.shape[1:]), pixels.dtype)
        self.row_bytes = pixels[:1].nbytes

    def read_from(self, files: OpenedFiles) -> None:
        self.maps = not self._items.read_from(files)

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        assert rows.numbers is not None
        self._items.read(rows.numbers, out)
        bad = np.flatnonzero(np.isin(rows.numbers, self._bad)) if len(self._bad) else ()
        if len(bad):
            out[bad] = self._items.take(np.array([self._stand_in]))
        return {int(row): self.damage[int(rows.numbers[row])] for row in bad}


class EncodedReader(ColumnReader):
    """Images of many sizes, decoded when they are asked for.

    Args:
        column: The column.
        empty: What it is without rows.
    """

    def __init__(self, column: Column, empty: Any):
        self._column, self._stand_in = column, None
        self.empty = empty if isinstance(empty, np.ndarray) else empty.over(np.empty(0, object))
        self.row_bytes = max(_LOOKED_AT, self.empty.dtype.itemsize)

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        damage = {}
        for where, block in blocks(self._column.values, rows):
            for row, value in zip(indices(where).tolist(), block.to_pylist(), strict=True):
                try:
                    out[row] = None if value is None else self._pixels(rows, row, value)
                except DamagedImage as error:
                    damage[row] = str(error)
                    out[row] = self._stand_in
        return damage

    def _pixels(self, rows: Rows, row: int, value: dict[str, Any]) -> np.ndarray:
        return np.array(open_image(self._column.feature, value))


class EncodedArrayReader(EncodedReader):
    """Images of one size, decoded when they are asked for.

    Args:
        column: A column of one image a row.
        size: Their width and height.
        mode: The mode that holds the pixels of all.
        count: How many of them make a row of what is read, if it declares a number.
    """

    def __init__(self, column: Column, size: tuple[int, int], mode: str, count: int | None):
        drawn = np.asarray(PIL.Image.new(mode, size))
        shape = drawn.shape if count is None else (count, *drawn.shape)
        super().__init__(column, np.empty((0, *shape), drawn.dtype.newbyteorder("=")))
        self._image_shape, self._mode, self._count = drawn.shape, mode, count
        self._stand_in = np.zeros(drawn.shape, drawn.dtype)

    def read(self, rows: Rows, out: np.ndarray) -> Damage:
        count = self._count
        if count is None:
            return super().read(rows, out)
        assert rows.positions is not None
        assert rows.numbers is not None
        each = (rows.positions[:, None] * count + np.arange(count)).reshape(-1)
        images = Rows(len(each), each, np.repeat(rows.numbers, count))
        damage = super().read(images, out.reshape(-1, *self._image_shape))
        return {item // count: said for item, said in damage.items()}

    def _pixels(self, rows: Rows, row: int, value: dict[str, Any]) -> np.ndarray:
        image = open_image(self._column.feature, value)
        return np.asarray(image if image.mode == self._mode else image.convert(self._mode))


def _common_kind(column: Column) -> tuple[tuple[int, int], str]:
    """Returns the size of all images, and the mode that holds their pixels, by their headers.

    Raises:
        Misfit: A row is None, or of another size or mode.
    """
    first, size, mode = 0, None, None
    with ThreadPoolExecutor(cores()) as pool:
        for batch in encoded(column):
            found = pool.map(lambda item: looked_at(column.feature, item[1]), batch)
            for (row, _), kind in zip(batch, found, strict=True):
                if kind is None:
                    continue
                if size is None or mode is None:
                    first, (size, mode) = row, kind
                if kind[0] != size:
                    raise unlike(column.rows, row, dimensions(kind[0]), first, dimensions(size))
                wider = widest({mode, kind[1]})
                if wider is None:
                    raise unlike(column.rows, row, f"of mode {kind[1]}", first, f"of mode {mode}")
                mode = wider
    if size is None or mode is None:
        raise damaged(column, 0, "no image of the column can be opened")
    return size, mode
