"""Pillow images in a stream's rows: decoded when somebody looks, never encoded with a loss."""

from io import BytesIO
from typing import Any

import datasets
import PIL.Image
from PIL.ExifTags import Base as Exif

from datarax.hub.private import is_local_path

_STORED = "_datarax_stored"
_LOSSLESS = {"L": "PPM", "RGB": "PPM", "P": "PNG"}  # TIFF of 224x224 RGB takes 88 us, PPM 37
_PNG = b"\x89PNG"

Stored = dict[str, Any]  # {"bytes": ..., "path": ...}, as `datasets` stores a file


def opened(feature: datasets.Image, stored: Stored, tokens: dict[str, Any]) -> PIL.Image.Image:
    """Returns the image that `datasets` gives for a stored one.

    Its pixels are decoded at the first look, and `stored_of` gives the very file back until then. A
    file that is no image gives an image that raises at the first look: rows that nobody looks at
    stay whole, and their decoder names them.

    Args:
        feature: The column's feature.
        stored: The file.
        tokens: The Hub's tokens, by repository, for a file behind a URL.
    """
    encoded, path = stored["bytes"], stored["path"]
    if encoded is None and not (path and is_local_path(path)):
        return feature.decode_example(stored, token_per_repo_id=tokens)
    try:
        if encoded is None:
            with open(path, "rb") as file:
                encoded = file.read()
        image = PIL.Image.open(BytesIO(encoded))
    except (OSError, SyntaxError, ValueError) as error:
        image = _Undecodable(error)
    else:
        # Pillow decodes a PNG to find its EXIF chunk, so look for the chunk's name first.
        turned = not encoded.startswith(_PNG) or b"eXIf" in encoded
        turned = turned and Exif.Orientation in image.getexif()
        if turned or (feature.mode and feature.mode != image.mode):
            return feature.decode_example(stored, token_per_repo_id=tokens)
    image.draft = _no_draft  # a decoded image has none, and `thumbnail` would use it
    setattr(image, _STORED, (stored, _look(image)))
    return image


def stored_of(image: PIL.Image.Image) -> Stored:
    """Returns an image as a file with exactly its pixels: its own, where nobody has decoded it."""
    stored, look = vars(image).get(_STORED, (None, None))
    if look is not None and look == _look(image):
        return stored
    file = BytesIO()
    image.save(file, _LOSSLESS.get(image.mode, "TIFF"))
    return {"bytes": file.getvalue(), "path": None}


def _no_draft(mode: str | None, size: tuple[int, int] | None) -> None:
    """Does what `Image.draft` does for a decoded image: nothing."""


class _Undecodable(PIL.Image.Image):
    """An image of a file that Pillow cannot open; it raises what Pillow raised."""

    def __init__(self, error: Exception):
        super().__init__()
        self._error = error

    def load(self) -> Any:
        raise self._error


def _look(image: PIL.Image.Image) -> Any:
    """Returns what decoding, `draft`, `seek` and `thumbnail` change; None of a decoded image.

    `tile` lists the parts of a file that are to be decoded, and is empty afterwards. (WebP's is
    empty from the start: its images count as decoded.)
    """
    if isinstance(image, _Undecodable):
        return "undecodable"
    tile = vars(image).get("tile")
    return (image.size, list(tile), image.tell()) if tile else None
