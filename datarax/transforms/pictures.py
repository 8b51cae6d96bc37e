"""A part of an image as pixels of one size; of a JPEG, no more is decoded than that takes."""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import PIL.Image

from datarax.errors import expect_between
from datarax.transforms.column import value_of

Size = int | tuple[int, int]
"""Height and width in pixels, or one number for both."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in pixels."""

Resizer = Literal["pillow", "cykooz"]
"""The library that resizes."""

_SCALES = 8, 4, 2  # by which libjpeg can shrink while it decodes
_PILLOW = 13  # the newest major version whose images cykooz.resizer is known to read
_LARGEST = 2**15  # pixels an edge
_REDUCED = 2.0  # Pillow averages whole pixels first where it shrinks by twice as much or more


def size_of(size: Size) -> tuple[int, int]:
    """Returns height and width in pixels.

    Raises:
        ValueError: If `size` is neither an integer nor two, or one of them is out of range.
    """
    edges = (size, size) if isinstance(size, int) else tuple(size)
    if len(edges) != 2:
        raise ValueError(f"size={size!r}: expected a number of pixels, or (height, width).")
    for edge in edges:
        expect_between("size", edge, 1, _LARGEST)
    return edges[0], edges[1]


def image_of(record: Mapping[str, Any], column: str, transform: str) -> PIL.Image.Image:
    """Returns the image of a record's column; an array of pixels counts as one.

    Raises:
        TypeError: If the column holds something else.
        ValueError: If there is no such column.
    """
    value = value_of(record, column, transform)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        return PIL.Image.fromarray(value)
    if not isinstance(value, PIL.Image.Image):
        raise TypeError(
            f"{transform}: column {column!r} holds {type(value).__name__}, expected an image. "
            "Choose another with column=, or filter such rows out: ds = ds.filter(...)."
        )
    return value


def cykooz() -> Any:
    """Returns the module `cykooz_resizer`.

    Raises:
        ImportError: It is not installed, or Pillow is newer than it knows.
    """
    install = "pip install datarax[cykooz]"
    # It finds an image's rows by the layout of Pillow's memory, and asks for no newer version.
    if int(PIL.__version__.partition(".")[0]) > _PILLOW:
        raise ImportError(
            f"resizer='cykooz' works with Pillow up to version {_PILLOW}, and this is "
            f"{PIL.__version__}: {install}"
        )
    try:
        return importlib.import_module("cykooz_resizer")
    except ImportError as error:
        raise ImportError(f"resizer='cykooz' needs cykooz.resizer: {install}") from error


def cut(
    image: PIL.Image.Image,
    box: Box,
    size: tuple[int, int],
    mode: str,
    *,
    flip: bool = False,
    resizer: Resizer = "pillow",
) -> np.ndarray:
    """Returns a part of an image, resized with an antialiased bilinear filter.

    A JPEG that nobody has decoded yet is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8)
    that leaves the part as large as the result. On photographs that differs from decoding it whole
    by 0.2 of 255 on average, and by up to 30 at sharp edges.

    Args:
        image: An image of any mode.
        box: The part.
        size: Height and width of the result.
        mode: The mode of the result, `"RGB"` or `"L"`.
        flip: Whether to exchange left and right.
        resizer: The library that resizes.

    Returns:
        `uint8` of shape `(height, width, 3)`, or `(height, width)` for `"L"`.
    """
    height, width = size
    shrinks = min((box[2] - box[0]) / width, (box[3] - box[1]) / height)
    scale = next((scale for scale in _SCALES if scale <= shrinks), 1)
    if scale > 1:
        whole = image.size
        # None for what is no JPEG, or decoded already; else the whole image's box at the new scale.
        drafted = image.draft(None, (whole[0] // scale, whole[1] // scale))
        if drafted is not None:
            across, down = drafted[1][2] / whole[0], drafted[1][3] / whole[1]
            box = box[0] * across, box[1] * down, box[2] * across, box[3] * down
    resized = _resized_by_cykooz if resizer == "cykooz" else _resized_by_pillow
    image = resized(_converted(image, mode), box, (width, height))
    if flip:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def _converted(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if image.mode.startswith("I"):  # Pillow cuts 16 bits off at 255
        image = PIL.Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def _resized_by_pillow(image: PIL.Image.Image, box: Box, size: tuple[int, int]) -> PIL.Image.Image:
    return image.resize(size, PIL.Image.Resampling.BILINEAR, box=box, reducing_gap=_REDUCED)


def _resized_by_cykooz(image: PIL.Image.Image, box: Box, size: tuple[int, int]) -> PIL.Image.Image:
    library, (left, top, right, bottom) = cykooz(), box
    options = library.ResizeOptions(
        library.ResizeAlg.convolution(library.FilterType.bilinear),
        crop_box=library.CropBox(left, top, right - left, bottom - top),
    )
    made = PIL.Image.new(image.mode, size)
    library.Resizer().resize_pil(image, made, options)  # a shared one lets in one thread at a time
    return made
