"""Images of one size out of images of any size: resized, or cut out of the middle or at random."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image

from datarax.transforms.pictures import Box, Resizer, Size, cut, cykooz, image_of, size_of

_TRIES = 10  # parts that are drawn until one lies within the image, as in torchvision


@dataclass(frozen=True)
class _Cut:
    size: Size
    _: KW_ONLY
    column: str = "image"
    mode: Literal["RGB", "L"] = "RGB"
    resizer: Resizer = "pillow"

    def __post_init__(self):
        size_of(self.size)
        if self.mode not in ("RGB", "L"):
            raise ValueError(f"mode={self.mode!r}: expected 'RGB' or 'L'.")
        if self.resizer not in ("pillow", "cykooz"):
            raise ValueError(f"resizer={self.resizer!r}: expected 'pillow' or 'cykooz'.")
        if self.resizer == "cykooz":
            cykooz()

    def _image(self, record: Mapping[str, Any]) -> PIL.Image.Image:
        return image_of(record, self.column, type(self).__name__)

    def _with(
        self, record: Mapping[str, Any], image: PIL.Image.Image, box: Box, flip: bool = False
    ) -> dict[str, Any]:
        size = size_of(self.size)
        pixels = cut(image, box, size, self.mode, flip=flip, resizer=self.resizer)
        return {**record, self.column: pixels}


@dataclass(frozen=True)
class resize(_Cut):
    """Resizes an image, whatever its proportions are.

    All transforms of images give `uint8` of shape `(height, width, 3)`, or `(height, width)` for
    `mode="L"`. They take images of any mode: palettes become their colours, transparency is
    dropped, and of 16 bits the upper 8 are kept.

    `resizer="cykooz"` (`pip install datarax[cykooz]`) resizes with cykooz.resizer in a quarter of
    Pillow's time, with the same filter: pixels differ from Pillow's by 1 of 255 at most. By more
    only where an image shrinks four times or further: there, Pillow averages pixels first. No
    library is chosen by itself, so that batches do not depend on what is installed.

    Args:
        size: Height and width in pixels, or one number for both.
        column: The column of the image.
        mode: `"RGB"`, or `"L"` for shades of grey.
        resizer: The library that resizes, `"pillow"` or `"cykooz"`.

    Raises:
        TypeError: If the column holds no image.
        ValueError: If there is no such column, or an argument is out of range.
        ImportError: If the library that resizes is not installed.

    Example:
        >>> record = {"image": PIL.Image.new("RGB", (500, 375)), "label": 1}
        >>> resize(224)(record)["image"].shape
        (224, 224, 3)
    """

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        image = self._image(record)
        return self._with(record, image, (0, 0, *image.size))


@dataclass(frozen=True)
class center_crop(_Cut):
    """Cuts the largest part of the result's proportions out of an image's middle, and resizes it.

    Args:
        size: Height and width in pixels, or one number for both.
        column: The column of the image.
        mode: `"RGB"`, or `"L"` for shades of grey.
        resizer: The library that resizes, `"pillow"` or `"cykooz"`.
        fraction: How much of that part's edges is kept: 0.875 for "resize to 256, crop to 224".

    Raises:
        TypeError: If the column holds no image.
        ValueError: If there is no such column, or an argument is out of range.
        ImportError: If the library that resizes is not installed.

    Example:
        >>> record = {"photo": PIL.Image.new("L", (500, 375))}
        >>> center_crop((64, 96), column="photo")(record)["photo"].shape
        (64, 96, 3)
    """

    fraction: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction}: expected more than 0, up to 1.")

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        image, (height, width) = self._image(record), size_of(self.size)
        scale = self.fraction * min(image.width / width, image.height / height)
        return self._with(record, image, _centered(image.size, width * scale, height * scale))


@dataclass(frozen=True)
class random_resized_crop(_Cut):
    """Cuts a random part out of an image, and resizes it: the usual augmentation of photographs.

    The part's area is a uniform share of the image's, and the logarithm of its proportions is
    uniform, as in Szegedy et al., "Going deeper with convolutions" (2015). Where ten draws lie
    outside the image, the largest part in its middle is taken.

    Args:
        size: Height and width in pixels, or one number for both.
        column: The column of the image.
        mode: `"RGB"`, or `"L"` for shades of grey.
        resizer: The library that resizes, `"pillow"` or `"cykooz"`.
        scale: The least and the largest share of the image's area.
        ratio: The least and the largest width, in heights.
        flip: How probable it is that left and right are exchanged.

    Raises:
        TypeError: If the column holds no image.
        ValueError: If there is no such column, or an argument is out of range.
        ImportError: If the library that resizes is not installed.

    Example:
        >>> record = {"image": PIL.Image.new("RGB", (500, 375))}
        >>> crop = random_resized_crop(224, flip=0.5)
        >>> crop(record, np.random.default_rng(0))["image"].shape
        (224, 224, 3)
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name, (low, high), most in (("scale", self.scale, 1), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= most:
                raise ValueError(
                    f"{name}={(low, high)}: expected (least, largest), more than 0"
                    + (", up to 1." if most == 1 else ".")
                )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip}: expected a probability, 0 to 1.")

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = self._image(record)
        box = self._draw(image.size, rng)
        return self._with(record, image, box, flip=bool(rng.random() < self.flip))

    def _draw(self, size: tuple[int, int], rng: np.random.Generator) -> Box:
        width, height = size
        shares = rng.uniform(*self.scale, size=_TRIES)
        ratios = np.exp(rng.uniform(*map(math.log, self.ratio), size=_TRIES))
        left, top = rng.random(2)
        for share, ratio in zip(shares.tolist(), ratios.tolist(), strict=True):
            across = math.sqrt(share * width * height * ratio)
            # Whole pixels: the last bit of an exponential differs from processor to processor.
            w, h = round(across), round(across / ratio)
            if 0 < w <= width and 0 < h <= height:
                x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
                return x, y, x + w, y + h
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        return _centered(size, min(width, height * ratio), min(height, width / ratio))


def _centered(size: tuple[int, int], width: float, height: float) -> Box:
    x, y = max(0.0, (size[0] - width) / 2), max(0.0, (size[1] - height) / 2)  # rounding
    return x, y, size[0] - x, size[1] - y
