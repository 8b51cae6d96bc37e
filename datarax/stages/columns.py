"""Stages for any column: a function, scaling, normalising, classes as rows."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from datarax.stages.batch import Batch, column_of


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
        return {**batch, self.column: self.function(column_of(batch, self.column))}


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
        values = column_of(batch, self.column)
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
        values = column_of(batch, self.column).astype(jnp.float32)
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
        labels = column_of(batch, self.column)
        return {**batch, self.column: jax.nn.one_hot(labels, self.num_classes)}
