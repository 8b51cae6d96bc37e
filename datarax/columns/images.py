"""Image columns: encoded files, in Arrow or on disk, become one array of pixels."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa

from datarax.columns import image_cache
from datarax.columns.arrow import Column, Misfit, Rows, blocks, cores, indices, nulls, plain
from datarax.columns.host import object_array
from datarax.columns.image_file import (
    DamagedImage,
    dimensions,
    image_shape,
    open_image,
    pixels,
    widest,
)

Damage = dict[int, str]  # what is wrong with an image, by row
Allocate = Callable[[tuple[int, ...], np.dtype], Any]

_BATCH = 1024  # rows in work at a time, at most
_SHOWN = 64  # rows that show how large the images are
_THREADED = 64 * 64  # handing fewer pixels to a thread costs more than decoding them


def load_images(column: Column, cache: bool = True) -> tuple[np.ndarray, Damage]:
    """Loads images of one size as one array: from the disk if they were decoded before.

    Modes that differ become the smallest that holds them all: `L` and `RGB` become `RGB`.

    Args:
        column: A column of images.
        cache: Whether to look on the disk, and to store them there.

    Returns:
        The pixels, of shape `(n, height, width)` or `(n, height, width, channels)`, and what is
        wrong with damaged images; their rows hold nothing meaningful.

    Raises:
        Misfit: A row is None, of another size, or of a mode that has none in common with the rest.
        ValueError: No image is whole.
    """
    if not image_cache.enabled(estimated_bytes(column)) or not cache:
        return decoded(column)
    key = image_cache.cache_key(column)
    found = image_cache.load(key)
    if found is None:
        found = decoded(column)
        image_cache.store(key, *found)
    return found


def decoded(column: Column, allocate: Allocate = np.empty) -> tuple[Any, Damage]:
    """Decodes images of one size; see `load_images`.

    Args:
        column: A column of images.
        allocate: Makes of a shape and a dtype what the pixels are written into, row by row and on
            several threads.
    """
    mode = None
    while True:
        try:
            return _decode(column, _Canvas(column.rows, mode, allocate))
        except _Wider as wider:  # at most twice: L, then LA or RGB, then RGBA
            mode = wider.mode


def _decode(column: Column, canvas: "_Canvas") -> tuple[Any, Damage]:
    damage = {}

    def draw(row: int, value: dict[str, Any]) -> None:
        try:
            image = open_image(column.feature, value)
        except DamagedImage as error:
            damage[row] = str(error)
        else:
            canvas.draw(row, image)

    with ThreadPoolExecutor(cores()) as pool:
        for batch in encoded(column):
            while canvas.pixels is None and batch:
                draw(*batch.pop(0))
            apply = pool.map if canvas.large else map
            for _ in apply(draw, *zip(*batch, strict=True)) if batch else ():
                pass
    if canvas.pixels is None:
        raise damaged(column, *min(damage.items()))
    return canvas.pixels, damage


class _Wider(Exception):
    """An image of a mode that the array begun does not hold."""

    def __init__(self, mode: str):
        super().__init__(mode)
        self.mode = mode


class _Canvas:
    """The array of a column; the first image drawn decides its size."""

    def __init__(self, rows: Rows, mode: str | None, allocate: Allocate):
        self.rows = rows
        self.mode = mode
        self.allocate = allocate
        self.size = 0, 0
        self.first = 0
        self.pixels: Any = None

    @property
    def large(self) -> bool:
        return self.pixels is not None and self.size[0] * self.size[1] >= _THREADED

    def draw(self, row: int, image: PIL.Image.Image) -> None:
        if self.pixels is None:
            self.first, self.size = row, image.size
            self.mode = widest({self.mode or image.mode, image.mode}) or image.mode
        assert self.mode is not None
        if image.size != self.size:
            raise unlike(self.rows, row, dimensions(image.size), self.first, dimensions(self.size))
        if image.mode != self.mode:
            mode = widest({self.mode, image.mode})
            if mode is None:
                raise unlike(
                    self.rows, row, f"of mode {image.mode}", self.first, f"of mode {self.mode}"
                )
            if mode != self.mode:
                raise _Wider(mode)
            image = image.convert(mode)
        drawn = np.asarray(image)
        if self.pixels is None:
            dtype = drawn.dtype.newbyteorder("=")
            self.pixels = self.allocate((self.rows.length, *drawn.shape), dtype)
        self.pixels[row] = drawn


def unlike(rows: Rows, row: int, found: str, first: int, begun: str) -> Misfit:
    return Misfit(rows.number(row), f"is {found} where row {rows.number(first)} is {begun}")


def estimated_bytes(column: Column) -> int:
    """Returns about what the decoded column takes, from the headers of the first rows.

    No array is begun before, and nothing hashed: photos of many sizes would ask for far too much.
    """
    first = None
    for row, value in next(encoded(column, _SHOWN)):
        shape = image_shape(value)
        if shape and first and sorted(shape[:2]) != sorted(first[1][:2]):  # EXIF data may turn it
            raise unlike(column.rows, row, dimensions(shape), first[0], dimensions(first[1]))
        first = first or (shape and (row, shape))
    return column.rows.length * math.prod(first[1]) if first else 0


def encoded(column: Column, most: int = _BATCH) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yields batches of rows and their encoded images."""
    for where, block in blocks(column.values, column.rows, most):
        rows = indices(where)
        if block.null_count:
            raise Misfit(column.rows.number(rows[nulls(block)].min()), "is None")
        files = zip(block.field("bytes").to_pylist(), block.field("path").to_pylist(), strict=True)
        values = [{"bytes": encoded, "path": path} for encoded, path in files]
        yield list(zip(rows.tolist(), values, strict=True))


def damaged_rows(column: Column) -> Damage:
    """Returns what is wrong with images of many sizes, by decoding each without keeping it."""

    def fault(value: dict[str, Any] | None) -> str | None:
        try:
            pixels(column.feature, value)
        except DamagedImage as error:
            return str(error)

    damage = {}
    with ThreadPoolExecutor(cores()) as pool:
        for where, block in blocks(column.values, column.rows, most=_BATCH):
            found = pool.map(fault, block.to_pylist())
            damage |= {row: f for row, f in zip(indices(where).tolist(), found, strict=True) if f}
    return damage


def damaged(column: Column, row: int, found: str) -> ValueError:
    """Returns the error that names a damaged row of a column."""
    return ValueError(
        f"column {column.name!r}, row {column.rows.number(row)}: the image cannot be decoded "
        f"({found}). Repair it, or leave such rows out with on_bad_rows='skip'."
    )


def image_objects(column: Column, block: pa.Array, rows: Rows) -> np.ndarray:
    """Decodes rows of a host column: to arrays of pixels of any size, and None.

    Args:
        column: The column.
        block: The rows, encoded.
        rows: How the user counts them.

    Returns:
        An object array of shape `(len(block),)`.

    Raises:
        ValueError: An image is damaged; it names column and row.
    """

    def attempt(value: dict[str, Any] | None) -> np.ndarray | DamagedImage | None:
        try:
            return pixels(column.feature, value)
        except DamagedImage as error:
            return error

    with ThreadPoolExecutor(min(cores(), len(block))) as pool:
        found = list(pool.map(attempt, block.to_pylist()))
    for row, item in enumerate(found):
        if isinstance(item, DamagedImage):
            raise damaged(replace(column, rows=rows), row, str(item)) from item
    return object_array(found)


def pictures_a_row(feature: Any, type_: pa.DataType) -> int | None:
    """Returns how many pictures each row of a column holds, None if it declares no such number."""
    if not isinstance(feature, datasets.List) or not pa.types.is_fixed_size_list(type_):
        return None
    inner = feature.feature
    return type_.list_size if isinstance(inner, datasets.Image) and inner.decode else None


def pictures(values: pa.Array) -> pa.Array:
    """Returns the `n * k` pictures of `n` rows that hold `k` each, also of rows that are None."""
    count = values.type.list_size
    return plain(values.values.slice(values.offset * count, len(values) * count))


def one_by_one(column: Column) -> Column:
    """Returns a column of rows that hold `k` pictures each as one with a picture a row.

    Raises:
        Misfit: A row is None.
    """
    for where, block in blocks(column.values, column.rows):
        if block.null_count:
            row = indices(where)[nulls(block)].min()
            raise Misfit(column.rows.number(int(row)), "is None")
    chunks = [plain(chunk) for chunk in column.values.chunks]
    count = chunks[0].type.list_size
    rows, positions = column.rows, column.rows.positions
    if positions is not None:
        positions = (positions[:, None] * count + np.arange(count)).reshape(-1)
    numbers = np.arange(rows.length) if rows.numbers is None else rows.numbers
    items = pa.chunked_array([pictures(chunk) for chunk in chunks])
    expanded = Rows(rows.length * count, positions, np.repeat(numbers, count))
    return Column(column.path, column.feature.feature, items, expanded)
