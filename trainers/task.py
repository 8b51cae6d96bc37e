"""What to train for: loss, metrics and the model's inputs, inferred from a source's features."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu
from flax import nnx

from datarax.errors import listed
from trainers import losses, metrics

LABELS = ("label", "labels", "target", "targets", "score")
"""Names under which a label is looked for where no feature declares one."""

OWN_LOSS = (
    "write loss=my_loss, where my_loss(model, batch) returns the losses of shape (batch,), or "
    'them and a dict of outputs such as {"logits": logits, "labels": batch["label"]}'
)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run trains for.

    Args:
        loss: `(model, batch) -> losses | (losses, outputs)`.
        metrics: Class of the metrics, given `**outputs, loss, labels, mask`.
        predict: `(model, batch) -> outputs`, without need of a label.
        label: Column of the labels, or None.
    """

    loss: Callable[[nnx.Module, dict], Any]
    metrics: type[clu.Collection]
    predict: Callable[[nnx.Module, dict], Any]
    label: str | None


def infer(
    model: nnx.Module, features: Mapping[str, Any] | None, spec: Mapping[str, jax.ShapeDtypeStruct]
) -> Task:
    """Infers loss, metrics and inputs.

    Args:
        model: The model, called with the columns that are no label: by position where there is one,
            by name where there are several.
        features: The features of the source, where it has some.
        spec: Shape and dtype of one record's array columns, after the stages.

    Returns:
        The task: softmax cross-entropy and accuracy for a `ClassLabel` or an integer label, sigmoid
        cross-entropy for a list of `ClassLabel`, squared error for a float label, next-token
        cross-entropy for `input_ids` without label.

    Raises:
        ValueError: If there is no label, or more than one.
    """
    features = features or {}
    label = _label(features, spec)
    if label is None:
        if "input_ids" in spec:
            return _language_model(model, spec)
        raise ValueError(
            f"There is no label among {_described(features, spec)}: a ClassLabel, or a column "
            f"named {listed(LABELS)}. Rename the column, or {OWN_LOSS}."
        )
    call = Inputs(model, {name: s for name, s in spec.items() if name != label}, features, label)
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
        return _supervised(call, label, metrics.Classification, _single_label(classes, label))
    return _supervised(call, label, metrics.Empty, _regression(label))


class Inputs:
    """Calls a model with the columns of a batch that are its inputs.

    Images of `uint8` are given as `float32` in [0, 1], of shape `(batch, height, width, channels)`.
    """

    def __init__(self, model, spec, features, label=None):
        if not spec:
            raise ValueError(f"There is no input beside the label {label!r}; {OWN_LOSS}.")
        self.images = {name for name, s in spec.items() if _is_image(s, features.get(name))}
        parameters = inspect.signature(type(model).__call__).parameters
        named = [name for name in spec if name in parameters]
        if len(spec) == 1 and not named:
            self.positional, self.named = tuple(spec), ()
            return
        required = [
            p.name
            for p in list(parameters.values())[1:]
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if missing := [name for name in required if name not in spec]:
            if "input_ids" in spec and len(required) == 1:
                self.positional = ("input_ids",)
                self.named = tuple(name for name in named if name != "input_ids")
                return
            raise ValueError(
                f"{type(model).__name__} takes {listed(required)}, but among the inputs "
                f"{listed(spec)} there is no {listed(missing)}: name the columns as the model's "
                f"parameters, choose them with include_keys, or {OWN_LOSS}."
            )
        self.positional, self.named = (), tuple(named)

    def __call__(self, model: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
        arguments = [self._input(batch, name) for name in self.positional]
        named = {name: self._input(batch, name) for name in self.named}
        return model(*arguments, **named)

    def _input(self, batch, name):
        column = batch[name]
        if name not in self.images:
            return column
        column = column[..., None] if column.ndim == 3 else column
        return column.astype(jnp.float32) / np.float32(jnp.iinfo(column.dtype).max)


def _is_image(spec, feature) -> bool:
    declared = isinstance(feature, datasets.Image) and jnp.issubdtype(spec.dtype, jnp.integer)
    return declared or (spec.dtype == jnp.uint8 and len(spec.shape) in (2, 3))


def _class_label(feature) -> datasets.ClassLabel | None:
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, datasets.ClassLabel) else None


def _label(features, spec) -> str | None:
    declared = [name for name in spec if _class_label(features.get(name)) is not None]
    named = [name for name in LABELS if name in spec]
    found = declared or named
    if len(found) > 1:
        raise ValueError(
            f"Which of {listed(found)} is the label? Leave the others out with exclude_keys, or "
            f"{OWN_LOSS}. The columns are {_described(features, spec)}."
        )
    return found[0] if found else None


def _described(features, spec) -> str:
    return ", ".join(f"{name}: {features.get(name, s)}" for name, s in spec.items())


def _supervised(call, label, collection, per_record) -> Task:
    def loss(model, batch):
        logits, labels = call(model, batch), batch[label]
        losses, logits, labels = per_record(logits, labels)
        return losses, {"logits": logits, "labels": labels}

    return Task(loss, collection, call, label)


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


def _language_model(model, spec) -> Task:
    call = Inputs(model, spec, {})

    def loss(model, batch):
        logits, tokens = call(model, batch), batch["input_ids"]
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(
                f"The model returns logits of shape {_shape(logits)}, but next-token training "
                f"needs (batch, {tokens.shape[1]}, vocabulary); or {OWN_LOSS}."
            )
        per_token, weight = losses.next_token(logits, tokens, batch.get("attention_mask"))
        return per_token, {"logits": logits[:, :-1], "labels": tokens[:, 1:], "weight": weight}

    return Task(loss, metrics.Classification, call, None)


def _shape(array) -> str:
    return f"(batch, {', '.join(map(str, array.shape[1:]))})" if array.ndim > 1 else "(batch,)"


def _width(classes) -> str:
    return "as many" if classes is None else str(classes.num_classes)
