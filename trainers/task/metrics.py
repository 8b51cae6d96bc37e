"""Metrics: what the trainer reports where the caller names none."""

import flax.struct
import jax.numpy as jnp
from clu import metrics as clu


@flax.struct.dataclass
class Empty(clu.Collection):
    """No metric beside the loss."""


@flax.struct.dataclass
class Classification(clu.Collection):
    """Fraction of records, or tokens, whose highest logit is the label's."""

    accuracy: clu.Accuracy


def _agreement(logits, labels, **_):
    return jnp.mean((logits > 0) == (labels > 0.5), axis=-1)


@flax.struct.dataclass
class MultiLabel(clu.Collection):
    """Fraction of right yes-or-no decisions."""

    accuracy: clu.Average.from_fun(_agreement)  # pyright: ignore[reportInvalidTypeForm]
