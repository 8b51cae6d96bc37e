"""What stages ask of a batch, with errors that help."""

from typing import Any

import jax

from datarax.errors import listed

Batch = dict[str, Any]


def column_of(batch: Batch, name: str) -> jax.Array:
    """Returns a column of a batch; raises `KeyError` that names those there are."""
    try:
        return batch[name]
    except KeyError:
        raise KeyError(f"{name!r}: the batch has {listed(batch)}") from None


def images_of(batch: Batch, name: str, key: jax.Array) -> jax.Array:
    """Returns a column of images, of which each has a key.

    Raises:
        ValueError: If the column holds no images, or there is no key for each.
    """
    images = column_of(batch, name)
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
