"""Stages that mix the records of a batch, images and labels: MixUp and CutMix."""

import dataclasses

import jax
import jax.numpy as jnp

from datarax.stages.batch import Batch, column_of, images_of
from datarax.stages.images import box_of


@dataclasses.dataclass(frozen=True)
class MixUp:
    """Mixes each image and its label with the next of the batch (https://arxiv.org/abs/1710.09412).

    An image becomes `w * own + (1 - w) * next`, with `w` drawn for each from `Beta(alpha, alpha)`,
    and its label a row of as many floats as there are classes, mixed alike. A `Trainer` that infers
    the loss of a `ClassLabel` takes such rows.

    Args:
        column: The column of images, `(batch, height, width[, channels])`; integers become floats
            with the same range.
        label: The column of class numbers, `(batch,)`, or of rows, `(batch, classes)`.
        classes: Number of classes.
        alpha: The smaller, the less is mixed.

    Example:
        >>> batch = {"image": jnp.ones((2, 4, 4)), "label": jnp.array([0, 1])}
        >>> mixed = MixUp("image", "label", 2)(batch, key=jax.random.split(jax.random.key(0), 2))
        >>> mixed["label"].sum(axis=1).round(3).tolist()
        [1.0, 1.0]
    """

    column: str
    label: str
    classes: int
    alpha: float = 0.2

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        images = images_of(batch, self.column, key)
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        weight = jax.vmap(lambda key: jax.random.beta(key, self.alpha, self.alpha))(key)
        wide = weight.reshape(-1, *[1] * (images.ndim - 1))
        mixed = wide * images.astype(dtype) + (1 - wide) * _next(images).astype(dtype)
        labels = _mixed_labels(batch, self.label, self.classes, weight)
        return {**batch, self.column: mixed.astype(dtype), self.label: labels}


@dataclasses.dataclass(frozen=True)
class CutMix:
    """Pastes a box of the batch's next image into each image (https://arxiv.org/abs/1905.04899).

    The box has the share `1 - w` of the image, with `w` drawn from `Beta(alpha, alpha)`; the part
    of it that lies outside is left out. Labels are mixed by the share of the pixels, as in `MixUp`.

    Args:
        column: The column of images, `(batch, height, width[, channels])`.
        label: The column of class numbers, `(batch,)`, or of rows, `(batch, classes)`.
        classes: Number of classes.
        alpha: At 1 every share is equally likely.

    Example:
        >>> batch = {"image": jnp.ones((2, 4, 4)), "label": jnp.array([0, 1])}
        >>> mixed = CutMix("image", "label", 2)(batch, key=jax.random.split(jax.random.key(0), 2))
        >>> mixed["label"].shape
        (2, 2)
    """

    column: str
    label: str
    classes: int
    alpha: float = 1.0

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        images = images_of(batch, self.column, key)
        keys = jax.vmap(jax.random.split)(key)
        weight = jax.vmap(lambda key: jax.random.beta(key, self.alpha, self.alpha))(keys[:, 0])
        sides = jnp.array(images.shape[1:3], jnp.float32)
        size = jnp.round(jnp.sqrt(1 - weight)[:, None] * sides).astype(jnp.int32)
        inside = box_of(keys[:, 1], images, size)
        own = 1 - inside.reshape(len(inside), -1).mean(axis=1)
        labels = _mixed_labels(batch, self.label, self.classes, own)
        mixed = jnp.where(inside, _next(images), images)
        return {**batch, self.column: mixed, self.label: labels}


def _next(x: jax.Array) -> jax.Array:
    return jnp.roll(x, -1, axis=0)


def _mixed_labels(batch: Batch, name: str, classes: int, weight: jax.Array) -> jax.Array:
    labels = column_of(batch, name)
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, classes)
    elif labels.shape[1:] != (classes,):
        raise ValueError(
            f"column {name!r} has the shape {labels.shape}: expected class numbers, (batch,), or "
            f"rows, (batch, {classes})."
        )
    return weight[:, None] * labels + (1 - weight[:, None]) * _next(labels)
