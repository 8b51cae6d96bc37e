"""What to train for: loss, metrics and the model's inputs, inferred from a source's features."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets
import jax
import jax.numpy as jnp
from clu import metrics as clu
from flax import nnx

from datarax.errors import listed
from trainers.task import losses, metrics
from trainers.task.inputs import OWN_LOSS, Columns, Inputs

LABELS = ("label", "labels", "target", "targets", "score")
"""Names under which a label is looked for where no feature declares one."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run trains for.

    Args:
        loss: `(model, batch) -> losses | (losses, outputs)`.
        metrics: Class of the metrics, given `**outputs, loss, labels, mask`.
        predict: `(model, batch) -> outputs`, without need of a label.
        label: Column of the labels, or None.
        classes: Column of the integers that count among the logits, or None.
    """

    loss: Callable[[nnx.Module, dict], Any]
    metrics: type[clu.Collection]
    predict: Inputs
    label: str | None
    classes: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a source must have: the inputs and the label."""
        label = () if self.label is None else (self.label,)
        return *self.predict.positional, *self.predict.named, *label


def infer(model: nnx.Module, columns: Columns, precision: Any = None) -> Task:
    """Infers loss, metrics and inputs.

    Args:
        model: The model, called with the columns that are no label: by position where there is one,
            by name where there are several.
        columns: The columns of the source's batches.
        precision: Dtype in which the inputs reach the model; None for `float32`.

    Returns:
        The task: softmax cross-entropy and accuracy for a `ClassLabel` or an integer label, sigmoid
        cross-entropy for a list of `ClassLabel`, squared error for a float label, next-token
        cross-entropy for `input_ids` without label.

    Raises:
        ValueError: If there is no label, or more than one.
        TypeError: If the label or an input is a host column.
    """
    spec, host, features = columns.spec, columns.host, columns.features
    found = labels(features, spec)
    if len(found) > 1:
        raise ValueError(
            f"Which of {listed(found)} is the label? Leave the others out with exclude_keys, or "
            f"{OWN_LOSS}. The columns are {_described(features, spec)}."
        )
    if not found:
        for name in [*labels(features, host), *host.keys() & {"input_ids"}]:
            raise host[name].error()
        if "input_ids" in spec:
            return _language_model(Inputs(model, columns, None, precision))
        raise ValueError(
            f"There is no label among {_described(features, spec)}: a ClassLabel, or a column "
            f"named {listed(LABELS)}. Rename the column, or {OWN_LOSS}."
        )
    label = found[0]
    call = Inputs(model, columns, label, precision)
    feature, of = features.get(label), spec[label]
    classes = _class_label(feature)
    if classes is not None and of.shape:
        return _supervised(call, label, metrics.MultiLabel, _multi_label(classes, label))
    if classes is not None or jnp.issubdtype(of.dtype, jnp.integer) or of.dtype == bool:
        if of.shape:
            raise ValueError(
                f"Label {label!r} has shape {of.shape} a record and integers of no ClassLabel: "
                f"several classes a record, or a token's each? Then {OWN_LOSS}."
            )
        per_record = _single_label(classes, label)
        return _supervised(call, label, metrics.Classification, per_record, classes=label)
    return _supervised(call, label, metrics.Empty, _regression(label))


def _class_label(feature) -> datasets.ClassLabel | None:
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, datasets.ClassLabel) else None


def labels(features: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Returns which of the columns `names` may be the label: a `ClassLabel`, else by its name."""
    declared = [name for name in names if _class_label(features.get(name)) is not None]
    return declared or [name for name in LABELS if name in names]


def _described(features, spec) -> str:
    return ", ".join(f"{name}: {features.get(name, s)}" for name, s in spec.items())


def bounded(loss: Callable, column: str, extent: tuple[int, int]) -> Callable:
    """Returns `loss`, which now raises, when it is traced, where classes do not fit the logits.

    Args:
        loss: The loss of a task with `classes`.
        column: Column of the classes.
        extent: Its least and its greatest value.
    """

    def checked(model, batch):
        losses, outputs = loss(model, batch)
        width = outputs["logits"].shape[-1]
        if not 0 <= extent[0] <= extent[1] < width:
            raise ValueError(
                f"Column {column!r} holds {extent[0]} to {extent[1]}, but the model's {width} "
                f"logits are of the classes 0 to {width - 1}: give the last layer more outputs, or "
                f"leave those rows out, as in dataset.filter(lambda row: 0 <= row[{column!r}] < "
                f"{width}). -1 usually marks a row without a label."
            )
        return losses, outputs

    return checked


def _supervised(call, label, collection, per_record, *, classes=None) -> Task:
    def loss(model, batch):
        logits, labels = call(model, batch), batch[label]
        losses, logits, labels = per_record(logits, labels)
        return losses, {"logits": logits, "labels": labels}

    return Task(loss, collection, call, label, classes)


def _single_label(classes, label):
    def per_record(logits, labels):
        expected = "(batch, classes)" if classes is None else f"(batch, {classes.num_classes})"
        fits = logits.ndim == 2 and (classes is None or logits.shape[1] == classes.num_classes)
        if not fits:
            raise ValueError(
                f"The model returns logits of shape {_shape(logits)}, but {label!r} needs "
                f"{expected}: give the last layer {_width(classes)} outputs, or {OWN_LOSS}."
            )
        labels = labels.astype(jnp.int32)
        return losses.softmax_cross_entropy(logits, labels), logits, labels

    return per_record


def _multi_label(classes, label):
    def per_record(logits, labels):
        if logits.ndim != 2 or logits.shape[1] not in (classes.num_classes, labels.shape[1]):
            raise ValueError(
                f"The model returns logits of shape {_shape(logits)}, but {label!r} needs (batch, "
                f"{classes.num_classes}): give the last layer {classes.num_classes} outputs, or "
                f"{OWN_LOSS}."
            )
        if logits.shape[1] != classes.num_classes or (labels.shape[1] == classes.num_classes == 2):
            indicators = labels.astype(jnp.float32)  # one yes or no a class
        else:  # the numbers of the classes that hold; -1, as padding, is none
            indicators = jax.nn.one_hot(labels, classes.num_classes).max(axis=1)
        return losses.sigmoid_cross_entropy(logits, indicators), logits, indicators

    return per_record


def _regression(label):
    def per_record(predictions, targets):
        if predictions.shape == (*targets.shape, 1):
            predictions = predictions[..., 0]
        if predictions.shape != targets.shape:
            raise ValueError(
                f"The model returns {_shape(predictions)}, but {label!r} has shape "
                f"{_shape(targets)}: give the last layer as many outputs, or {OWN_LOSS}."
            )
        return losses.squared_error(predictions, targets), predictions, targets

    return per_record


def _language_model(call) -> Task:
    def loss(model, batch):
        logits, tokens = call(model, batch), batch["input_ids"].astype(jnp.int32)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(
                f"The model returns logits of shape {_shape(logits)}, but next-token training "
                f"needs (batch, {tokens.shape[1]}, vocabulary); or {OWN_LOSS}."
            )
        per_token, weight = losses.next_token(logits, tokens, batch.get("attention_mask"))
        return per_token, {"logits": logits[:, :-1], "labels": tokens[:, 1:], "weight": weight}

    return Task(loss, metrics.Classification, call, None, "input_ids")


def _shape(array) -> str:
    return f"(batch, {', '.join(map(str, array.shape[1:]))})" if array.ndim > 1 else "(batch,)"


def _width(classes) -> str:
    return "as many" if classes is None else str(classes.num_classes)
