"""Ready stages: the usual first steps between a source and a model.

Each is a function from batch to batch in pure JAX, usable under `jit`, in a `Pipeline` or alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.errors import listed

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Map:
    """Applies a function to one column.

    Args:
        column: The column.
        function: From an array of shape `(batch, ...)` to one of shape `(batch, ...)`.

    Example:
        >>> Map("x", jnp.square)({"x": jnp.array([2.0, 3.0])})["x"].tolist()
        [4.0, 9.0]
    """

    column: str
    function: Callable[[jax.Array], jax.Array]

    def __call__(self, batch: Batch) -> Batch:
        return {**batch, self.column: self.function(_column(batch, self.column))}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Brings integers to `float32` in [0, 1]: divides by their dtype's largest value.

    Args:
        column: The column, such as `uint8` images.

    Example:
        >>> Scale("image")({"image": jnp.array([0, 255], jnp.uint8)})["image"].tolist()
        [0.0, 1.0]
    """

    column: str

    def __call__(self, batch: Batch) -> Batch:
        values = _column(batch, self.column)
        if not jnp.issubdtype(values.dtype, jnp.integer):
            raise TypeError(
                f"column {self.column!r} is {values.dtype}: Scale divides integers by their "
                "largest value. Write Map for a factor of your own, or Normalize."
            )
        largest = np.float32(jnp.iinfo(values.dtype).max)
        return {**batch, self.column: values.astype(jnp.float32) / largest}


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Subtracts a mean and divides by a standard deviation.

    Args:
        column: The column.
        mean: A number, or one a channel (the last axis).
        std: Likewise.

    Example:
        >>> Normalize("x", mean=1.0, std=2.0)({"x": jnp.array([1.0, 5.0])})["x"].tolist()
        [0.0, 2.0]
    """

    column: str
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __call__(self, batch: Batch) -> Batch:
        values = _column(batch, self.column).astype(jnp.float32)
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return {**batch, self.column: (values - mean) / std}


@dataclasses.dataclass(frozen=True)
class OneHot:
    """Turns class numbers into one-hot rows.

    Args:
        column: The column of class numbers.
        num_classes: Number of classes.

    Example:
        >>> OneHot("label", 3)({"label": jnp.array([2])})["label"].tolist()
        [[0.0, 0.0, 1.0]]
    """

    column: str
    num_classes: int

    def __call__(self, batch: Batch) -> Batch:
        labels = _column(batch, self.column)
        return {**batch, self.column: jax.nn.one_hot(labels, self.num_classes)}


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
        images = _images(batch, self.column, key)
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

        return {**batch, self.column: jax.vmap(crop)(_images(batch, self.column, key), key)}


def _column(batch: Batch, name: str) -> jax.Array:
    try:
        return batch[name]
    except KeyError:
        raise KeyError(f"{name!r}: the batch has {listed(batch)}") from None


def _images(batch: Batch, name: str, key: jax.Array) -> jax.Array:
    images = _column(batch, name)
    if images.ndim < 3:
        raise ValueError(
            f"column {name!r} has the shape {images.shape}: expected images of the shape "
            "(batch, height, width) or (batch, height, width, channels)."
        )
    if key.shape[:1] != images.shape[:1]:
        raise ValueError(
            f"key has the shape {key.shape}: expected a key an image. A Pipeline gives them; "
            f"alone, write key=jax.random.split(key, {len(images)})."
        )
    return images
