"""Metrics: what the trainer reports where the caller names none."""

import logging
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu

from trainers.metrics import Perplexity

logger = logging.getLogger(__name__)


@flax.struct.dataclass
class Empty(clu.Collection):
    """No metric beside the loss."""


@flax.struct.dataclass
class Classification(clu.Collection):
    """Fraction of records, or tokens, whose highest logit is the label's."""

    accuracy: clu.Accuracy


@flax.struct.dataclass
class Language(clu.Collection):
    """Fraction of tokens whose highest logit is theirs, and the perplexity of all that count."""

    accuracy: clu.Accuracy
    perplexity: Perplexity


def names(metrics: type[clu.Collection]) -> list[str]:
    """Returns what the metrics of a class are called."""
    return [name for name in metrics.__annotations__ if not name.startswith("_")]


def expect_computable(metrics: type[clu.Collection]) -> None:
    """Raises `ValueError` where metrics cannot be logged, as far as they tell without data.

    Args:
        metrics: Their class.
    """
    if "loss" in names(metrics):
        logger.warning(
            "metrics has a metric 'loss', which is the name of the trainer's own, the weighted one "
            "that is minimised: that is logged. Call the metric mean_loss, or leave it out."
        )
    empty = vars(metrics.empty())
    for name in names(metrics):
        metric = empty[name]
        try:
            metric.compute()
        except (AttributeError, ImportError, NotImplementedError, TypeError) as error:
            raise ValueError(
                f"Metric {name!r}, a {type(metric).__name__}, cannot be computed: {error}. Leave "
                "it out, or write a metric with another compute()."
            ) from error


def _agreement(logits, labels, **_):
    return jnp.mean((logits > 0) == (labels > 0.5), axis=-1)


@flax.struct.dataclass
class MultiLabel(clu.Collection):
    """Fraction of right yes-or-no decisions."""

    accuracy: clu.Average.from_fun(_agreement)  # pyright: ignore[reportInvalidTypeForm]


@flax.struct.dataclass
class Found(clu.Collection):
    """The accuracy of an own loss, where its outputs are logits and integer labels; else nothing.

    That shows when the loss is traced, after the metrics' state is made: so there is always one,
    and where nothing was added to it, nothing is told.
    """

    accuracy: clu.Accuracy

    @staticmethod
    def fits(outputs: Any) -> bool:
        """Returns whether what a loss returns beside the losses has an accuracy."""
        if not isinstance(outputs, Mapping) or not {"logits", "labels"} <= outputs.keys():
            return False
        logits, labels = outputs["logits"], outputs["labels"]
        return (
            jnp.issubdtype(jnp.result_type(labels), jnp.integer)
            and jnp.shape(logits)[:-1] == jnp.shape(labels)
            and jnp.ndim(labels) > 0
        )

    @classmethod
    def single_from_model_output(cls, **given: jax.Array) -> "Found":
        """Returns the metrics of one batch."""
        if not cls.fits(given) or given["labels"].shape != given["loss"].shape:
            return cls.empty()
        given["labels"] = given["labels"].astype(jnp.int32)  # the only dtype that clu takes
        return super().single_from_model_output(**given)

    def compute(self) -> dict[str, Any]:
        """Returns the accuracy, if there is one."""
        return super().compute() if self.accuracy.count else {}
