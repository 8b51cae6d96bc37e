"""Random stages for images: each is drawn from the record's key, which depends on nothing else."""

import dataclasses

import jax
import jax.numpy as jnp

from datarax.stages.batch import Batch, images_of


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors each image left to right with probability one half.

    Args:
        column: The column of images, `(batch, height, width[, channels])`.

    Example:
        >>> image = jnp.arange(4).reshape(1, 2, 2)
        >>> RandomFlip("image")({"image": image}, key=jax.random.split(jax.random.key(0), 1))[
        ...     "image"
        ... ].shape
        (1, 2, 2)
    """

    column: str

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        images = images_of(batch, self.column, key)
        flip = jax.vmap(jax.random.bernoulli)(key).reshape(-1, *[1] * (images.ndim - 1))
        return {**batch, self.column: jnp.where(flip, jnp.flip(images, axis=2), images)}


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Pads each image with zeros and cuts its own size out of it at a random place.

    Args:
        column: The column of images, `(batch, height, width[, channels])`.
        padding: Pixels to pad on each side: the image moves by at most that much.

    Example:
        >>> image = jnp.ones((1, 4, 4))
        >>> RandomCrop("image", 1)({"image": image}, key=jax.random.split(jax.random.key(0), 1))[
        ...     "image"
        ... ].shape
        (1, 4, 4)
    """

    column: str
    padding: int

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        by = self.padding

        def crop(image, key):
            corner = jax.random.randint(key, (2,), 0, 2 * by + 1)
            corner = (*corner, *[0] * (image.ndim - 2))
            padded = jnp.pad(image, [(by, by), (by, by), *[(0, 0)] * (image.ndim - 2)])
            return jax.lax.dynamic_slice(padded, corner, image.shape)

        return {**batch, self.column: jax.vmap(crop)(images_of(batch, self.column, key), key)}


@dataclasses.dataclass(frozen=True)
class RandomTranslate:
    """Moves each image by a few pixels, and fills what comes in from the edge.

    Args:
        column: The column of images, `(batch, height, width[, channels])`.
        most: The most pixels to move by, in either direction of each axis.
        fill: What comes in: `"edge"`, the nearest pixel, `"reflect"`, or a number.

    Raises:
        ValueError: If `fill` is another text.

    Example:
        >>> image = jnp.arange(9.0).reshape(1, 3, 3)
        >>> key = jax.random.split(jax.random.key(0), 1)
        >>> RandomTranslate("image", 1)({"image": image}, key=key)["image"].shape
        (1, 3, 3)
    """

    column: str
    most: int
    fill: str | float = "edge"

    def __post_init__(self):
        if isinstance(self.fill, str) and self.fill not in ("edge", "reflect"):
            raise ValueError(f'fill={self.fill!r}: expected "edge", "reflect" or a number.')

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        by, fill = self.most, self.fill

        def move(image, key):
            corner = jax.random.randint(key, (2,), 0, 2 * by + 1)
            width = [(by, by), (by, by), *[(0, 0)] * (image.ndim - 2)]
            if isinstance(fill, str):
                padded = jnp.pad(image, width, mode=fill)
            else:
                padded = jnp.pad(image, width, constant_values=fill)
            return jax.lax.dynamic_slice(padded, (*corner, *[0] * (image.ndim - 2)), image.shape)

        return {**batch, self.column: jax.vmap(move)(images_of(batch, self.column, key), key)}


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Paints a square of each image at a random place (https://arxiv.org/abs/1708.04552).

    Args:
        column: The column of images, `(batch, height, width[, channels])`.
        size: Pixels of the square's side; its middle is anywhere in the image, so that part of it
            may lie outside.
        fill: The square's value.

    Example:
        >>> image = jnp.ones((1, 4, 4))
        >>> cut = Cutout("image", 2)({"image": image}, key=jax.random.split(jax.random.key(0), 1))
        >>> bool(cut["image"].min() == 0)
        True
    """

    column: str
    size: int
    fill: float = 0.0

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        images = images_of(batch, self.column, key)
        inside = box_of(key, images, jnp.full(2, self.size))
        fill = jnp.asarray(self.fill, images.dtype)
        return {**batch, self.column: jnp.where(inside, fill, images)}


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast and saturation of each image, in this order.

    Each by a factor drawn evenly from `[1 - x, 1 + x]`: of the values, of their distance from the
    image's mean grey, and of each channel's from the pixel's grey, which is `0.299 R + 0.587 G +
    0.114 B` (ITU-R BT.601). Values are cut to the range of the dtype, floats to [0, 1].

    Args:
        column: The column of images, `(batch, height, width[, channels])`; saturation needs three
            channels.
        brightness: The most that the factor differs from 1.
        contrast: Likewise.
        saturation: Likewise.

    Raises:
        ValueError: If the images have no colours, and `saturation` is not 0.

    Example:
        >>> image = jnp.full((1, 2, 2, 3), 0.5)
        >>> ColorJitter("image", 0.4)({"image": image}, key=jax.random.split(jax.random.key(0), 1))[
        ...     "image"
        ... ].dtype
        dtype('float32')
    """

    column: str
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        images = images_of(batch, self.column, key)
        has_colours = images.ndim == 4 and images.shape[-1] == 3
        if self.saturation and not has_colours:
            raise ValueError(
                f"column {self.column!r} has the shape {images.shape}: saturation needs "
                "(batch, height, width, 3). Write saturation=0."
            )
        is_float = jnp.issubdtype(images.dtype, jnp.floating)
        top = 1.0 if is_float else float(jnp.iinfo(images.dtype).max)
        weights = jnp.array([0.299, 0.587, 0.114])

        def change(image, key):
            spread = jnp.array([self.brightness, self.contrast, self.saturation])
            factors = 1 + spread * jax.random.uniform(key, (3,), minval=-1.0)
            x = image.astype(jnp.float32) * factors[0]
            mean = (x @ weights if has_colours else x).mean()
            x = mean + factors[1] * (x - mean)
            if has_colours:
                grey = (x @ weights)[..., None]
                x = grey + factors[2] * (x - grey)
            x = jnp.clip(x, 0.0, top)
            return (x if is_float else jnp.round(x)).astype(image.dtype)

        return {**batch, self.column: jax.vmap(change)(images, key)}


def box_of(key: jax.Array, images: jax.Array, size: jax.Array) -> jax.Array:
    """Returns which pixels lie in a box at a random place of each image, for `jnp.where`.

    Args:
        key: A key an image.
        images: `(batch, height, width[, channels])`.
        size: Height and width of the boxes, `(2,)` or `(batch, 2)`.

    Returns:
        `(batch, height, width[, 1])` bool. The middle is any pixel, so a part may lie outside.
    """
    sides = images.shape[1:3]
    middle = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, jnp.array(sides)))(key)
    first = middle - jnp.broadcast_to(size, middle.shape) // 2
    last = first + size
    rows, columns = (
        (jnp.arange(sides[i]) >= first[:, i, None]) & (jnp.arange(sides[i]) < last[:, i, None])
        for i in range(2)
    )
    inside = rows[:, :, None] & columns[:, None, :]
    return inside.reshape(*inside.shape, *[1] * (images.ndim - 3))
