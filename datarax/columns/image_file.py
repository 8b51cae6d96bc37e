"""One encoded image: opened as `datasets` opens it, or found to be damaged."""

import struct
import zlib
from contextlib import nullcontext
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.ExifTags import Base as Exif

from datarax.hub.private import is_local_path
from datarax.hub.secrets import raise_from, redacted

# What Pillow raises where a file is no image, cut off, damaged or missing.
_RAISED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, PIL.Image.DecompressionBombError),
)

_PNG = b"\x89PNG"


class DamagedImage(Exception):
    """An image that cannot be decoded; says what Pillow found."""


def open_image(feature: datasets.Image, value: dict[str, Any]) -> PIL.Image.Image:
    """Decodes one image as `datasets` does, turned as its EXIF data say.

    `numpy.asarray` of the result is what columns hold: `uint8` of shape `(height, width)` for `L`,
    `(height, width, channels)` for `LA`, `RGB`, `RGBA` and, as they are stored, `CMYK` and `YCbCr`;
    `uint16` for `I;16`, `int32` for `I`, `float32` for `F`. Two modes hold no pixels and are
    converted: palettes to their colours (`RGB`, or `RGBA` if any is transparent), and `1` to `L`,
    0 or 255. Who wants another mode casts: `ds.cast_column("image", Image(mode="RGB"))`.

    Args:
        feature: The column's feature.
        value: `{"bytes": ..., "path": ...}`, one of which may be None.

    Returns:
        A loaded image.

    Raises:
        DamagedImage: The image is no image, cut off, damaged or missing.
    """
    encoded, path = value["bytes"], value["path"]
    try:
        if encoded is None and path and not is_local_path(path):
            image = feature.decode_example(value)
        else:
            image = _loaded(encoded, path)
            if feature.mode and feature.mode != image.mode:
                image = image.convert(feature.mode)
        if image.mode in ("P", "PA"):
            clear = image.mode == "PA" or "transparency" in image.info
            return image.convert("RGBA" if clear else "RGB")
        return image.convert("L") if image.mode == "1" else image
    except PIL.UnidentifiedImageError:
        raise DamagedImage("it is no image of a format that Pillow knows") from None
    except _RAISED as error:
        raise_from(DamagedImage(f"{type(error).__name__}: {redacted(error)}"), error)


def _loaded(encoded: bytes | None, path: str | None) -> PIL.Image.Image:
    # Of a small PNG, asking every other format first and looking for a rotation where there is no
    # chunk of text would take a quarter of the time.
    formats = ("PNG",) if encoded and encoded.startswith(_PNG) else None
    with nullcontext(BytesIO(encoded)) if encoded is not None else open(path or "", "rb") as file:
        image = PIL.Image.open(file, formats=formats)
        image.load()
        if (image.format != "PNG" or image.info) and Exif.Orientation in image.getexif():
            return PIL.ImageOps.exif_transpose(image)
        return image


def lazy_image(feature: datasets.Image, value: dict[str, Any]) -> PIL.Image.Image:
    """Returns the image that `datasets` gives for a stored one, where possible not yet decoded.

    Then its pixels are decoded at the first look, and `draft` may say how many of a JPEG's. An
    image that its EXIF data turn, or that is given in another mode, is decoded here.

    Args:
        feature: The column's feature.
        value: `{"bytes": ..., "path": ...}`, one of which may be None.

    Raises:
        DamagedImage: The image is no image, or missing; or it had to be decoded and is damaged.
    """
    encoded, path = value["bytes"], value["path"]
    try:
        if encoded is None and path and not is_local_path(path):
            return feature.decode_example(value)
        if encoded is None:
            with open(path or "", "rb") as file:  # no file stays open until somebody looks
                encoded = file.read()
        image = PIL.Image.open(BytesIO(encoded))
        # Pillow decodes a PNG to find its EXIF chunk, so look for the chunk's name first.
        may_turn = not encoded.startswith(_PNG) or b"eXIf" in encoded
        if may_turn and Exif.Orientation in image.getexif():
            image = PIL.ImageOps.exif_transpose(image)
        if feature.mode and feature.mode != image.mode:
            image = image.convert(feature.mode)
        return image
    except PIL.UnidentifiedImageError:
        raise DamagedImage("it is no image of a format that Pillow knows") from None
    except _RAISED as error:
        raise_from(DamagedImage(f"{type(error).__name__}: {redacted(error)}"), error)


def pixels(feature: datasets.Image, value: dict[str, Any] | None) -> np.ndarray | None:
    """Returns one image as an array, see `open_image`; None for None."""
    return None if value is None else np.array(open_image(feature, value))


def image_shape(value: dict[str, Any]) -> tuple[int, int, int] | None:
    """Returns width, height and channels by an image's header, or None if there is none to read."""
    encoded, path = value["bytes"], value["path"]
    if encoded is None and not (path and is_local_path(path)):
        return None
    try:
        with PIL.Image.open(path if encoded is None else BytesIO(encoded)) as image:
            return *image.size, len(image.getbands())
    except _RAISED:
        return None  # decoding it tells what is wrong


def looked_at(feature: datasets.Image, value: dict[str, Any]) -> tuple[tuple[int, int], str] | None:
    """Returns size and mode of what `open_image` makes of an image, by its header.

    None for an image that is damaged.
    """
    encoded, path = value["bytes"], value["path"]
    try:
        if encoded is None and not (path and is_local_path(path)):
            image = open_image(feature, value)
            return image.size, image.mode
        with PIL.Image.open(path if encoded is None else BytesIO(encoded)) as image:
            # Pillow decodes a PNG to find its EXIF chunk, so look for the chunk's name first.
            may_turn = encoded is None or image.format != "PNG" or b"eXIf" in encoded
            turned = may_turn and image.getexif().get(Exif.Orientation, 1) in (5, 6, 7, 8)
            width, height = image.size
            size = (height, width) if turned else (width, height)
            mode = feature.mode or image.mode
            if mode in ("P", "PA"):
                mode = "RGBA" if mode == "PA" or "transparency" in image.info else "RGB"
            return size, "L" if mode == "1" else mode
    except (DamagedImage, *_RAISED):
        return None  # decoding it tells what is wrong


def dimensions(size: tuple[int, ...] | None) -> str:
    """Returns what an error says of width and height, None for no image."""
    return "None" if size is None else f"{size[0]}x{size[1]} pixels"


def widest(modes: set[str]) -> str | None:
    """Returns the smallest mode that holds the pixels of all, None if there is none."""
    if len(modes) == 1:
        return next(iter(modes))
    if not modes or not modes <= {"L", "LA", "RGB", "RGBA"}:
        return None
    colour = "RGB" if any(mode.startswith("RGB") for mode in modes) else "L"
    return colour + "A" * any(mode.endswith("A") for mode in modes)


def converted(image: Any, mode: str) -> Any:
    """Returns an image in a mode that holds all its pixels, or as it is."""
    if image.mode != mode and widest({image.mode, mode}) == mode:
        return image.convert(mode)
    return image
