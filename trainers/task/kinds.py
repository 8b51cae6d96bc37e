"""Kinds of tasks: the loss and the metrics that fit a label, and what they ask of a model."""

import abc
from collections.abc import Mapping
from typing import Any

import datasets
import jax
import jax.numpy as jnp
from clu import metrics as clu

from trainers.task import default_metrics, losses
from trainers.task.inputs import OWN_LOSS, shape_of

Found = tuple[jax.Array, dict[str, jax.Array]]
"""Losses, and the outputs that the metrics are given."""


class Kind(abc.ABC):
    """What a model is trained for.

    Args:
        label: Column of the labels, or None.
        name: What the loss is called, with its column.
        metrics: Class of the metrics.
        classes: Column of the integers that count among the logits, or None.
    """

    outputs = "logits"
    """What the model's outputs are called."""

    by_token = False
    """Whether there is a loss, and logits, of each token."""

    def __init__(
        self,
        label: str | None,
        name: str,
        metrics: type[clu.Collection],
        classes: str | None = None,
    ):
        self.label, self.name, self.metrics, self.classes = label, name, metrics, classes

    @abc.abstractmethod
    def __call__(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Found:
        """Returns the losses and what the metrics are given.

        Args:
            outputs: What the model returns.
            batch: Columns of shape `(batch, ...)`.

        Raises:
            ValueError: If the outputs do not fit the labels.
        """


class SingleLabel(Kind):
    """One class a record: its number, or a row with the share of each class.

    Args:
        label: Column of the labels.
        classes: Its feature, or None.
        dtype: Its dtype.
    """

    def __init__(self, label: str, classes: datasets.ClassLabel | None, dtype: Any):
        name = f"softmax cross-entropy of {label}"
        super().__init__(label, name, default_metrics.Classification, label)
        of_dtype = 2 if jnp.issubdtype(dtype, jnp.bool_) else None
        self._count = of_dtype if classes is None else len(classes.names)

    def __call__(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Found:
        """Returns the losses and what the metrics are given."""
        fits = outputs.ndim == 2 and self._count in (None, outputs.shape[1])
        if not fits:
            count = "classes" if self._count is None else self._count
            width = "as many" if self._count is None else self._count
            raise ValueError(
                f"The model returns logits of shape {_shape(outputs)}, but {self.label!r} needs "
                f"(batch, {count}): give the last layer {width} outputs, or {OWN_LOSS}."
            )
        labels = batch[str(self.label)]
        if labels.ndim == 2:  # soft, as of MixUp: the accuracy counts the likeliest class
            per_record = losses.soft_cross_entropy(outputs, labels)
            labels = labels.argmax(-1).astype(jnp.int32)
        else:
            labels = labels.astype(jnp.int32)
            per_record = losses.softmax_cross_entropy(outputs, labels)
        return per_record, {"logits": outputs, "labels": labels}


class MultiLabel(Kind):
    """One yes or no a class, given so or as the numbers of the classes that hold.

    Args:
        label: Column of the labels.
        classes: The feature of its elements.
    """

    def __init__(self, label: str, classes: datasets.ClassLabel):
        super().__init__(label, f"sigmoid cross-entropy of {label}", default_metrics.MultiLabel)
        self._count = len(classes.names)

    def __call__(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Found:
        """Returns the losses and what the metrics are given."""
        labels, count = batch[str(self.label)], self._count
        if outputs.ndim != 2 or outputs.shape[1] not in (count, labels.shape[1]):
            raise ValueError(
                f"The model returns logits of shape {_shape(outputs)}, but {self.label!r} needs "
                f"(batch, {count}): give the last layer {count} outputs, or {OWN_LOSS}."
            )
        if outputs.shape[1] != count or (labels.shape[1] == count == 2):
            indicators = labels.astype(jnp.float32)  # one yes or no a class
        else:  # the numbers of the classes that hold; -1, as padding, is none
            indicators = jax.nn.one_hot(labels, count).max(axis=1)
        per_record = losses.sigmoid_cross_entropy(outputs, indicators)
        return per_record, {"logits": outputs, "labels": indicators}


class Regression(Kind):
    """Numbers, as the label has them.

    Args:
        label: Column of the targets.
    """

    outputs = "predictions"

    def __init__(self, label: str):
        super().__init__(label, f"squared error of {label}", default_metrics.Empty)

    def __call__(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Found:
        """Returns the losses and what the metrics are given."""
        targets = batch[str(self.label)]
        if outputs.shape == (*targets.shape, 1):
            outputs = outputs[..., 0]
        if outputs.shape != targets.shape:
            raise ValueError(
                f"The model returns {_shape(outputs)}, but {self.label!r} has shape "
                f"{_shape(targets)}: give the last layer as many outputs, or {OWN_LOSS}."
            )
        per_record = losses.squared_error(outputs, targets)
        return per_record, {"logits": outputs, "labels": targets}


class NextToken(Kind):
    """Each token of `input_ids`, given those before it.

    A token counts by `attention_mask` and `weights`, and not where another segment of
    `segment_ids` begins.

    Args:
        spec: Shapes and dtypes of the columns.
    """

    by_token = True

    def __init__(self, spec: Mapping[str, Any]):
        by = [name for name in ("attention_mask", "weights", "segment_ids") if name in spec]
        name = "next-token cross-entropy of input_ids"
        name += f" weighted by {', '.join(by)}" if by else ""
        super().__init__(None, name, default_metrics.Language, "input_ids")

    def __call__(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Found:
        """Returns the losses and what the metrics are given."""
        tokens = batch["input_ids"].astype(jnp.int32)
        if outputs.ndim != 3 or outputs.shape[:2] != tokens.shape:
            raise ValueError(
                f"The model returns logits of shape {_shape(outputs)}, but next-token training "
                f"needs (batch, {tokens.shape[1]}, vocabulary); or {OWN_LOSS}."
            )
        per_token, weight = losses.next_token(outputs, tokens, batch.get("attention_mask"))
        if "weights" in batch:
            weight = weight * batch["weights"][:, 1:]
        if "segment_ids" in batch:
            segments = batch["segment_ids"]
            weight = weight * ((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0))
        return per_token, {"logits": outputs[:, :-1], "labels": tokens[:, 1:], "weight": weight}


def _shape(array: jax.Array) -> str:
    return shape_of(array.shape[1:])
