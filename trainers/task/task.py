"""What to train for: loss, metrics and the model's inputs, inferred from a source's features."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets
import jax
import jax.numpy as jnp
from clu import metrics as clu
from flax import nnx

from datarax.errors import listed
from trainers.step.objective import Objective
from trainers.task import default_metrics, kinds
from trainers.task.embedded import embedding, expect_embedded
from trainers.task.inputs import OWN_LOSS, Columns, Inputs, shape_of
from trainers.task.kinds import Kind

logger = logging.getLogger(__name__)

LABELS = ("label", "labels", "target", "targets", "score")
"""Names under which a label is looked for where no feature declares one."""


class Task:
    """A task that is inferred: loss, metrics and inputs.

    Args:
        kind: The loss and the metrics that fit the label.
        call: Calls the model.
        columns: The columns of the training source.
        chosen: Class of the metrics that the user chose, or None.
        precision: Dtype in which the model computes, or None for its parameters' own.

    Attributes:
        label: Column of the labels, or None.
        precision: As given.
        has_tokens: Whether there is a loss a token, not a record; known once the model is traced.
    """

    def __init__(
        self,
        kind: Kind,
        call: Inputs,
        columns: Columns,
        chosen: type[clu.Collection] | None,
        precision: Any,
    ):
        if chosen is not None:
            default_metrics.expect_computable(chosen)
        self.label = kind.label
        self.precision = precision
        self._kind, self._call, self._chosen = kind, call, chosen
        self._inputs = call.described(columns.spec)
        self._outputs = ""  # known once the model is traced
        self.has_tokens = False

    @property
    def name(self) -> str:
        """What the loss is called, with its column."""
        return self._kind.name

    @property
    def inferred(self) -> str:
        """What is inferred, in one line; what the model returns is known once it is traced."""
        told = [f"{self._inputs} -> {self._kind.outputs}{self._outputs}", self._kind.name]
        told += [] if self._chosen else [*default_metrics.names(self._kind.metrics)]
        return "; ".join(told)

    def objective(self, columns: Columns, *, seed: int | None = None) -> Objective:
        """Returns the objective over batches of a source.

        Args:
            columns: The source's columns.
            seed: Seed of the random numbers of training; None: evaluation.

        Raises:
            TypeError: If a column that is needed is a host column.
            ValueError: If it is not there.
        """
        for name in self._needed():
            if name in columns.host:
                raise columns.host[name].error()
            if name not in columns.spec:
                raise ValueError(
                    f"There is no column {name!r}, which the training source has: there are "
                    f"{listed(columns.spec)}. Rename a column, or leave the source out."
                )
        classes, tokens = self._kind.classes, None
        extent = None if classes is None else columns.extent(classes)
        if self._call.embeds and "input_ids" in self._call.given:
            tokens = extent if classes == "input_ids" else columns.extent("input_ids")
        draws = seed if self._call.draws else None

        def loss(model: nnx.Module, batch: dict, key: jax.Array | None = None) -> Any:
            with embedding(model, None if tokens is None else batch["input_ids"]) as sizes:
                outputs = self._call(model, batch, training=seed is not None, key=key)
            self._outputs = f" {shape_of(outputs.shape[1:])}"
            losses, outputs = self._kind(outputs, batch)
            self.has_tokens = losses.ndim == 2
            if classes is not None and extent is not None:
                _expect_within(classes, extent, outputs["logits"].shape[-1])
            if tokens is not None:
                expect_embedded(tokens, sizes)
            return losses, outputs

        collection = self._chosen or self._kind.metrics
        # In evaluation a model that takes random streams is given the same ones at each call.
        by_token = self._kind.by_token and (seed is not None or not self._call.draws)
        return Objective(loss, collection, self.label, self.precision, draws, by_token)

    def predicts(self, model: nnx.Module, columns: Columns) -> Callable[[nnx.Module, dict], Any]:
        """Returns `(model, batch) -> outputs`, for a source that may have no label."""
        label = self.label or next((name for name in LABELS if name in columns.spec), None)
        return Inputs(model, columns, label)

    def _needed(self) -> tuple[str, ...]:
        label = () if self.label is None else (self.label,)
        return *self._call.given, *label


def infer(
    model: nnx.Module,
    columns: Columns,
    chosen: type[clu.Collection] | None = None,
    precision: Any = None,
) -> Task:
    """Infers loss, metrics and inputs.

    Args:
        model: The model, called with the columns that are no label: by position where there is one,
            by name where there are several.
        columns: The columns of the source's batches.
        chosen: Class of the metrics; None: inferred, too.
        precision: Dtype in which the model computes, or None for its parameters' own.

    Returns:
        The task: softmax cross-entropy and accuracy for a `ClassLabel` or an integer label, sigmoid
        cross-entropy for a list of `ClassLabel`, squared error for a float label, next-token
        cross-entropy for `input_ids` without label.

    Raises:
        ValueError: If there is no label, or more than one.
        TypeError: If the label or an input is a host column.
    """
    kind = _kind(columns)
    call = Inputs(model, columns, kind.label)
    if "segment_ids" in columns.spec and "segment_ids" not in call.named:
        logger.warning(
            "The rows have segment_ids, which %s does not take: the documents of a row see each "
            "other in training. Give its __call__ a parameter segment_ids, and attend only where "
            "segment_ids[:, :, None] == segment_ids[:, None, :].",
            type(model).__name__,
        )
    return Task(kind, call, columns, chosen, precision)


def _kind(columns: Columns) -> Kind:
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
            return kinds.NextToken(spec)
        raise ValueError(
            f"There is no label among {_described(features, spec)}: a ClassLabel, or a column "
            f"named {listed(LABELS)}. Rename the column, or {OWN_LOSS}."
        )
    label = found[0]
    classes, of = _class_label(features.get(label)), spec[label]
    is_float, is_one = jnp.issubdtype(of.dtype, jnp.floating), classes is features.get(label)
    if classes is not None and is_one and is_float and of.shape == (len(classes.names),):
        return kinds.SingleLabel(label, classes, of.dtype)  # a stage made shares of it
    if classes is not None and of.shape:
        return kinds.MultiLabel(label, classes)
    if classes is not None or jnp.issubdtype(of.dtype, jnp.integer) or of.dtype == bool:
        if of.shape:
            raise ValueError(
                f"Label {label!r} has shape {of.shape} a record and integers of no ClassLabel: "
                f"several classes a record, or a token's each? Then {OWN_LOSS}."
            )
        return kinds.SingleLabel(label, classes, of.dtype)
    return kinds.Regression(label)


def _class_label(feature: Any) -> datasets.ClassLabel | None:
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, datasets.ClassLabel) else None


def labels(features: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Returns which of the columns `names` may be the label: a `ClassLabel`, else by its name."""
    names = list(names)
    declared = [name for name in names if _class_label(features.get(name)) is not None]
    return declared or [name for name in LABELS if name in names]


def _described(features: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {features.get(name, s)}" for name, s in spec.items())


def _expect_within(column: str, extent: tuple[int, int], width: int) -> None:
    """Raises where the classes of a column are not all among the logits."""
    if not 0 <= extent[0] <= extent[1] < width:
        raise ValueError(
            f"Column {column!r} holds {extent[0]} to {extent[1]}, but the model's {width} "
            f"logits are of the classes 0 to {width - 1}: give the last layer more outputs, or "
            f"leave those rows out, as in dataset.filter(lambda row: 0 <= row[{column!r}] < "
            f"{width}). -1 usually marks a row without a label."
        )
