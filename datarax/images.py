"""Image columns: encoded files, in Arrow or on disk, become one array of pixels."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
from datasets.utils.file_utils import is_local_path
from PIL.ExifTags import Base as Exif

from datarax.arrow import Column, Misfit, Rows, blocks, indices, nulls
from datarax.host import object_array

# What Pillow raises where a file is no image, cut off, damaged or missing.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, PIL.Image.DecompressionBombError),
)
Damage = dict[int, Exception]  # by row

_BATCH = 1024  # rows in work at a time, at most
_THREADED_PIXELS = 64 * 64  # handing a smaller image to a thread costs more than decoding it
_WIDER = {"L": ("LA", "RGB", "RGBA"), "LA": ("RGBA",), "RGB": ("RGBA",)}  # modes that lose nothing


class _Wider(Exception):
    """An image of a mode that the array begun does not hold."""

    def __init__(self, mode: str):
        super().__init__(mode)
        self.mode = mode


def open_image(feature: datasets.Image, value: dict[str, Any]) -> PIL.Image.Image:
    """Decodes one image as `datasets` does, turned as its EXIF data says.

    `numpy.asarray` of the result is what a column holds: `uint8` of shape `(height, width)` for `L`,
    `(height, width, channels)` for `LA`, `RGB`, `RGBA` and, as they are stored, `CMYK` and `YCbCr`;
    `uint16` for `I;16`, `int32` for `I`, `float32` for `F`. Two modes hold no pixels and are
    converted: palettes to their colours (`RGB`, or `RGBA` if any is transparent), and `1` to `L`,
    0 or 255. Who wants another mode casts: `ds.cast_column("image", Image(mode="RGB"))`.

    Args:
        feature: The column's feature.
        value: `{"bytes": ..., "path": ...}`, one of which may be None.

    Returns:
        A loaded image.
    """
    encoded, path = value["bytes"], value["path"]
    if encoded is None and not (path and is_local_path(path)):
        image = feature.decode_example(value)
    else:
        image = PIL.Image.open(path if encoded is None else BytesIO(encoded))
        image.load()
        # Looking for a rotation takes a fifth of the time of a small PNG; one without text has none.
        if (image.format != "PNG" or image.info) and Exif.Orientation in image.getexif():
            image = PIL.ImageOps.exif_transpose(image)
        if feature.mode and feature.mode != image.mode:
            image = image.convert(feature.mode)
    if image.mode in ("P", "PA"):
        clear = image.mode == "PA" or "transparency" in image.info
        return image.convert("RGBA" if clear else "RGB")
    return image.convert("L") if image.mode == "1" else image


def load_images(column: Column, cache: bool) -> tuple[np.ndarray, Damage]:
    return decode_images(column)


def decode_images(column: Column) -> tuple[np.ndarray, Damage]:
    """Decodes images of one size into one array, in batches, large ones on all cores.

    Modes that differ become the smallest that holds them all: `L` and `RGB` become `RGB`.

    Args:
        column: A column of images.

    Returns:
        The pixels, of shape `(n, height, width)` or `(n, height, width, channels)`, and what was
        raised for damaged images; their rows hold nothing meaningful.

    Raises:
        Misfit: A row is None, of another size, or of a mode that has none in common with the others.
        ValueError: No image is whole.
    """
    mode = None
    while True:
        try:
            return _decode(column, _Canvas(column.rows, mode))
        except _Wider as wider:  # at most twice: L, then LA or RGB, then RGBA
            mode = wider.mode


def _decode(column: Column, canvas: "_Canvas") -> tuple[np.ndarray, Damage]:
    def draw(row: int, value: dict[str, Any]) -> Exception | None:
        try:
            image = open_image(column.feature, value)
        except DAMAGED as error:
            return error
        return canvas.draw(row, image)

    damage = {}
    with ThreadPoolExecutor(_cores()) as pool:
        for rows, values in _encoded(column):
            done = 0
            while canvas.pixels is None and done < len(rows):
                damage[rows[done]] = draw(rows[done], values[done])
                done += 1
            apply = pool.map if canvas.large else map
            damage.update(zip(rows[done:], apply(draw, rows[done:], values[done:]), strict=True))
            damage = {row: error for row, error in damage.items() if error}
    if canvas.pixels is None:
        row, error = next(iter(damage.items()))
        raise damaged(column, column.rows.number(row), error) from error
    return canvas.pixels, damage


class _Canvas:
    """The array of a column; the first image drawn decides its shape."""

    def __init__(self, rows: Rows, mode: str | None):
        self.rows = rows
        self.mode = mode
        self.first = 0
        self.pixels = None

    @property
    def large(self) -> bool:
        return self.pixels is not None and self.pixels[0].size >= _THREADED_PIXELS

    def draw(self, row: int, image: PIL.Image.Image) -> None:
        if self.pixels is None:
            self.mode = _common(self.mode or image.mode, image.mode) or image.mode
            self.first, self.size = row, image.size
        if image.size != self.size:
            raise Misfit(
                self.rows.number(row),
                self._unlike("is {0[0]}x{0[1]} pixels", image.size, self.size),
            )
        if image.mode != self.mode:
            mode = _common(self.mode, image.mode)
            if mode is None:
                raise Misfit(
                    self.rows.number(row), self._unlike("is of mode {}", image.mode, self.mode)
                )
            if mode != self.mode:
                raise _Wider(mode)
            image = image.convert(mode)
        drawn = np.asarray(image)
        if self.pixels is None:
            dtype = drawn.dtype.newbyteorder("=")
            self.pixels = np.empty((self.rows.length, *drawn.shape), dtype)
        self.pixels[row] = drawn

    def _unlike(self, words: str, found: Any, begun: Any) -> str:
        number = self.rows.number(self.first)
        return f"{words.format(found)} where row {number} {words.format(begun)}"


def _common(mode: str, other: str) -> str | None:
    """Returns the smallest mode that holds the pixels of both, or None."""
    others = (other, *_WIDER.get(other, ()))
    return next((wide for wide in (mode, *_WIDER.get(mode, ())) if wide in others), None)


def estimate_bytes(column: Column) -> int:
    """Returns about how many bytes the decoded column takes, from the headers of its first rows.

    Args:
        column: A column of images.

    Raises:
        Misfit: The headers show two sizes, or a row is None.
    """
    rows, values = next(_encoded(column))
    first = None
    for row, value in zip(rows, values, strict=True):
        size = _header(value)
        if size is None:
            continue
        first = first or (row, size)
        if sorted(size) != sorted(first[1]):  # the EXIF data may turn an image by 90 degrees
            begun = f"row {column.rows.number(first[0])} is {first[1][0]}x{first[1][1]} pixels"
            raise Misfit(column.rows.number(row), f"is {size[0]}x{size[1]} pixels where {begun}")
    return column.rows.length * first[1][0] * first[1][1] if first else 0


def _header(value: dict[str, Any]) -> tuple[int, int] | None:
    encoded, path = value["bytes"], value["path"]
    if encoded is None and not (path and is_local_path(path)):
        return None
    try:
        with PIL.Image.open(path if encoded is None else BytesIO(encoded)) as image:
            return image.size
    except DAMAGED:
        return None  # decoding it says what is wrong


def _encoded(column: Column) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Yields batches of rows and their encoded images; the first None is a `Misfit`."""
    for where, block in blocks(column.values, column.rows, most=_BATCH):
        rows = indices(where)
        if block.null_count:
            raise Misfit(column.rows.number(rows[nulls(block)].min()), "is None")
        yield rows.tolist(), block.to_pylist()


def damaged_rows(column: Column) -> Damage:
    """Decodes every image without keeping it, and returns what was raised for damaged ones."""

    def fault(value: dict[str, Any] | None) -> Exception | None:
        found = _attempt(column.feature, value)
        return found if isinstance(found, Exception) else None

    damage = {}
    with ThreadPoolExecutor(_cores()) as pool:
        for where, block in blocks(column.values, column.rows, most=_BATCH):
            damage.update(
                zip(indices(where).tolist(), pool.map(fault, block.to_pylist()), strict=True)
            )
            damage = {row: error for row, error in damage.items() if error}
    return damage


def damaged(column: Column, number: int, error: Exception) -> ValueError:
    """Returns the error that names a damaged row of a column."""
    return ValueError(
        f"column {column.name!r}, row {number}: the image cannot be decoded "
        f"({type(error).__name__}: {error}). Repair it, or leave such rows out with on_bad_rows='skip'."
    )


def image_objects(column: Column) -> Callable[[pa.Array, Rows], np.ndarray]:
    """Returns what decodes rows of a host column: to pixel arrays of any size, and None."""

    def convert(block: pa.Array, rows: Rows) -> np.ndarray:
        with ThreadPoolExecutor(min(_cores(), len(block))) as pool:
            found = list(pool.map(partial(_attempt, column.feature), block.to_pylist()))
        for row, item in enumerate(found):
            if isinstance(item, Exception):
                raise damaged(column, rows.number(row), item) from item
        return object_array(found)

    return convert


def _attempt(
    feature: datasets.Image, value: dict[str, Any] | None
) -> np.ndarray | Exception | None:
    """Returns the pixels, what was raised for a damaged image, or None for None."""
    try:
        return None if value is None else np.array(open_image(feature, value))
    except DAMAGED as error:
        return error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
