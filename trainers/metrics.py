"""Metrics for `Trainer(metrics=...)`, beside those of `clu.metrics`.

Each keeps sums, and divides once: the metric of many batches is that of all their rows. They are
computed of the `logits` and `labels` of an inferred loss, or of those that an own loss returns
beside the losses, where the weight is not 0.

Example:
    >>> from clu import metrics as clu
    >>> collection = clu.Collection.create(accuracy=clu.Accuracy, f1=f1(classes=10))
"""

import functools
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu

from datarax.errors import expect_between

# --- of losses and of numbers ------------------------------------------------------------------


@flax.struct.dataclass
class Perplexity(clu.Metric):
    """The exponential of the mean loss, `exp(sum(loss * weight) / sum(weight))`.

    Of a language model it is how many tokens, all equally likely, are as hard to choose from.

    Args:
        total: Sum of the weighted losses, float32, in nats.
        weight: Sum of the weights, float32.

    Example:
        >>> float(Perplexity.from_model_output(jnp.log(jnp.array([2.0, 8.0]))).compute())
        4.0
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def empty(cls) -> "Perplexity":
        """Returns the metric of no losses."""
        return cls(jnp.zeros(()), jnp.zeros(()))

    @classmethod
    def from_model_output(
        cls,
        loss: jax.Array,
        weight: jax.Array | None = None,
        mask: jax.Array | None = None,
        **_: Any,
    ) -> "Perplexity":
        """Returns the metric of a batch's losses, of any shape, each with its weight."""
        weight = jnp.ones(loss.shape) if weight is None else weight.astype(jnp.float32)
        weight = weight if mask is None else weight * mask
        # A loss of weight 0 may be NaN.
        return cls(jnp.where(weight != 0, loss * weight, 0.0).sum(), weight.sum())

    def merge(self, other: "Perplexity") -> "Perplexity":
        """Returns the metric of both."""
        return type(self)(self.total + other.total, self.weight + other.weight)

    def compute(self) -> Any:
        """Returns the perplexity; it is infinite from a mean loss of 89 nats on."""
        total, weight = np.float32(self.total), np.float32(self.weight)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.exp(total / weight)


class _Error(clu.Average):
    """Mean over all numbers of the labels of a function of their errors."""

    @classmethod
    def from_model_output(
        cls, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, **_: Any
    ) -> Any:
        """Returns the metric of predictions `logits` and targets `labels` of the same shape."""
        if logits.shape == (*labels.shape, 1):
            logits = logits[..., 0]
        if logits.shape != labels.shape:
            raise ValueError(f"predictions {logits.shape} and targets {labels.shape} differ")
        error = cls._of(logits.astype(jnp.float32) - labels)
        return super().from_model_output(error, mask=_spread(mask, labels.shape))

    @staticmethod
    def _of(difference: jax.Array) -> jax.Array:
        raise NotImplementedError


@flax.struct.dataclass
class MeanSquaredError(_Error):
    """The mean of `(prediction - target) ** 2`, over all numbers of a target."""

    @staticmethod
    def _of(difference: jax.Array) -> jax.Array:
        return jnp.square(difference)


@flax.struct.dataclass
class MeanAbsoluteError(_Error):
    """The mean of `abs(prediction - target)`, over all numbers of a target."""

    @staticmethod
    def _of(difference: jax.Array) -> jax.Array:
        return jnp.abs(difference)


# --- of classes ----------------------------------------------------------------------------------


@functools.lru_cache
def top_k(k: int) -> type[clu.Metric]:
    """Returns the metric that counts how often the label is among the `k` highest logits.

    Args:
        k: Number of logits.

    Example:
        >>> top2, logits = top_k(2), jnp.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
        >>> float(top2.from_model_output(logits=logits, labels=jnp.array([1, 0])).compute())
        0.5
    """
    expect_between("k", k, 1, 2**31 - 1)

    def is_among(logits, labels, **_):
        own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
        return (logits > own).sum(axis=-1) < k

    return clu.Average.from_fun(is_among)


@flax.struct.dataclass
class _Confusion(clu.Metric):
    """Counts of labels and predictions.

    Args:
        counts: int32 `(classes, classes)`: how often the label of the row was taken for the column.
    """

    counts: jax.Array

    classes: ClassVar[int | None] = None
    """Number of classes; None: two, of which the second is the positive one."""

    @classmethod
    def empty(cls) -> Any:
        """Returns the metric of no rows."""
        return cls(jnp.zeros([cls.classes or 2] * 2, jnp.int32))

    @classmethod
    def from_model_output(
        cls, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, **_: Any
    ) -> Any:
        """Returns the metric of a batch."""
        found = _predicted(logits, labels.shape, cls.classes)
        labels, size = labels.astype(jnp.int32), cls.classes or 2
        counts = (labels >= 0) & (labels < size)
        if mask is not None:
            counts &= _spread(mask, labels.shape)
        place = jnp.where(counts, labels * size + found, size * size)
        counts = jnp.zeros(size * size, jnp.int32).at[place.reshape(-1)].add(1, mode="drop")
        return cls(counts.reshape(size, size))

    def merge(self, other: Any) -> Any:
        """Returns the metric of both."""
        return type(self)(self.counts + other.counts)

    def compute(self) -> Any:
        """Returns the positive class's value, or the mean over the classes that occur."""
        counts = np.asarray(self.counts, np.float64)
        right, labels, found = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        values = self._of(right, labels, found)
        if self.classes is None:
            return values[1]
        occurs = labels + found > 0
        return values[occurs].sum() / max(occurs.sum(), 1)

    @staticmethod
    def _of(right: np.ndarray, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class _Precision(_Confusion):
    @staticmethod
    def _of(right: np.ndarray, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
        return right / np.maximum(found, 1)


class _Recall(_Confusion):
    @staticmethod
    def _of(right: np.ndarray, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
        return right / np.maximum(labels, 1)


class _F1(_Confusion):
    @staticmethod
    def _of(right: np.ndarray, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
        return 2 * right / np.maximum(labels + found, 1)


def precision(classes: int | None = None) -> type[clu.Metric]:
    """Returns the metric that tells how many of the rows taken for a class are of it.

    Args:
        classes: Number of classes, over which the mean is taken (macro; a class that is no row's
            and is never predicted is left out); None: there are two, and it is that of class 1,
            predicted where the single logit is positive or the second of two is the higher.
    """
    return _counted(_Precision, classes)


def recall(classes: int | None = None) -> type[clu.Metric]:
    """Returns the metric that tells how many of a class's rows are taken for it.

    Args:
        classes: As in `precision`.
    """
    return _counted(_Recall, classes)


def f1(classes: int | None = None) -> type[clu.Metric]:
    """Returns the harmonic mean of precision and recall, of a class, as a metric.

    Args:
        classes: As in `precision`.

    Example:
        >>> logits, labels = jnp.array([2.0, 1.0, -1.0, -3.0]), jnp.array([1, 0, 1, 0])
        >>> float(f1().from_model_output(logits=logits, labels=labels).compute())
        0.5
    """
    return _counted(_F1, classes)


@functools.lru_cache  # one class a number: JAX compiles anew for another
def _counted(kind: type[_Confusion], classes: int | None) -> type[clu.Metric]:
    if classes is not None:
        expect_between("classes", classes, 2, 2**15)  # of the square of which int32 counts
    name = f"{kind.__name__.strip('_')}{'' if classes is None else classes}"
    return flax.struct.dataclass(type(name, (kind,), {"classes": classes}))


def confusion_matrix(labels: Any, predictions: Any, classes: int) -> np.ndarray:
    """Returns how often the label of a row of the matrix was taken for the class of a column.

    Args:
        labels: Integers from 0 to `classes - 1`, of any shape; others are left out.
        predictions: Integers of the same shape, such as `trainer.predict(source).argmax(-1)`.
        classes: Number of classes.

    Returns:
        int64 `(classes, classes)`.

    Raises:
        ValueError: If the shapes differ, or a prediction is no class.

    Example:
        >>> confusion_matrix([0, 1, 1, 2], [0, 1, 2, 2], classes=3).tolist()
        [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"The labels have shape {labels.shape}, the predictions {predictions.shape}: write "
            "trainer.predict(source).argmax(-1)."
        )
    if predictions.size and not 0 <= predictions.min() <= predictions.max() < classes:
        raise ValueError(f"The predictions go up to {predictions.max()}: classes={classes}.")
    known = (labels >= 0) & (labels < classes)
    place = labels[known].astype(np.int64) * classes + predictions[known]
    return np.bincount(place, minlength=classes * classes).reshape(classes, classes)


def _predicted(logits: jax.Array, labels: tuple[int, ...], classes: int | None) -> jax.Array:
    """Returns the predicted classes, int32 of the labels' shape."""
    if classes is None and logits.shape in (labels, (*labels, 1)):
        return (logits.reshape(labels) > 0).astype(jnp.int32)
    if logits.shape != (*labels, classes or 2):
        widest = logits.shape[-1] if logits.shape[:-1] == labels else "number of classes"
        raise ValueError(
            f"logits {logits.shape} for labels {labels}, and classes={classes}: write, for "
            f"instance, trainers.metrics.f1(classes={widest})"
        )
    return logits.argmax(axis=-1).astype(jnp.int32)


def _spread(mask: Any, shape: tuple[int, ...]) -> Any:
    """Returns a mask of rows, or of tokens, as one of all numbers of an array of a shape."""
    if mask is None:
        return None
    mask = mask.astype(bool)
    return jnp.broadcast_to(mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim)), shape)
