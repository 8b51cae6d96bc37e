"""The objective: the weighted losses and the metrics of a batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu
from flax import nnx

from trainers.step.precision import entered_in

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step computes of a batch: the weighted losses and the metrics.

    Args:
        loss: `(model, batch) -> losses | (losses, outputs)`.
        metrics: Class of the metrics.
        label: Column of the labels, given to the metrics where the outputs have none.
        precision: Dtype in which the model computes, or None for its parameters' own. Columns,
            losses and metrics keep theirs.
        seed: Seed of the random numbers of a step; then the loss takes a third argument, the key of
            the step. None: it takes none.
        by_token: Whether the outputs have `logits` of each token, of rows that a language model may
            be given one by one.
    """

    loss: Callable[..., Any]
    metrics: type[clu.Collection]
    label: str | None = None
    precision: Any = None
    seed: int | None = None
    by_token: bool = False

    def key(self, t: Any) -> jax.Array | None:
        """Returns the key of step `t`, None where the loss takes none."""
        return None if self.seed is None else jax.random.fold_in(jax.random.key(self.seed), t)

    def __call__(
        self, model: nnx.Module, batch: Batch, valid: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, clu.Collection]]:
        """Returns the sum of weighted losses, the sum of weights and the metrics.

        Args:
            model: The model, in the parameters' precision that it is to compute in.
            batch: Columns of shape `(size, ...)`.
            valid: `(size,)` bool; False for the records that only fill the batch up.
            key: The step's key, where the loss takes one.
        """
        size = len(valid)
        losses, outputs = _checked(self.outputs(model, batch, key), size)
        if losses.shape == (size, size):
            self._expect_tokens(model, batch, key)
        mask = jnp.broadcast_to(valid.reshape(size, *[1] * (losses.ndim - 1)), losses.shape)
        weight = mask.astype(jnp.float32)
        if "weight" in outputs:
            if outputs["weight"].shape != losses.shape:
                raise ValueError(
                    f"outputs['weight'] has shape {outputs['weight'].shape}, the losses "
                    f"{losses.shape}: expected one weight a loss."
                )
            weight = weight * jax.lax.stop_gradient(outputs["weight"]).astype(jnp.float32)
            mask = weight != 0
        # Where the weight is 0 the loss may be anything, NaN too: 0 * NaN would spoil the sum.
        weighted = jnp.where(weight != 0, losses.astype(jnp.float32) * weight, 0.0)
        given = {**outputs, "loss": losses, "mask": mask}
        if self.label is not None and "labels" not in given:
            given["labels"] = batch[self.label]
        return weighted.sum(), (weight.sum(), self._measured(jax.lax.stop_gradient(given)))

    def outputs(self, model: nnx.Module, batch: Batch, key: jax.Array | None = None) -> Any:
        """Returns what the loss returns."""
        model = entered_in(model, self.precision)
        return self.loss(model, batch, *([] if self.seed is None else [key]))

    def _expect_tokens(self, model: nnx.Module, batch: Batch, key: jax.Array | None) -> None:
        """Raises where losses of shape `(size, size)` are no tokens' but broadcast by accident.

        Of twice the records, tokens' are of shape `(2 * size, size)`.
        """
        definition, state = nnx.split(model)

        def twice(x):
            return jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype)

        def losses(state, batch):
            result = self.outputs(nnx.merge(definition, state, copy=True), batch, key)
            return result[0] if isinstance(result, tuple) else result

        try:
            shape = jax.eval_shape(losses, state, jax.tree.map(twice, batch)).shape
        except Exception:  # code that is made for this size raises what it likes, and tells nothing
            return
        size = shape[0] // 2
        if shape == (2 * size, 2 * size):
            raise ValueError(
                f"The loss has shape ({size}, {size}), (batch, batch): (batch, 1) and (batch,) "
                "broadcast to it, as in predictions - targets. Expected one loss a record, of "
                'shape (batch,): write predictions[:, 0], or batch["target"][:, None] and then '
                "losses[:, 0]. Losses of pairs are summed over the second axis."
            )

    def _measured(self, given: dict[str, jax.Array]) -> clu.Collection:
        try:
            metrics = self.metrics.single_from_model_output(**given)
        except (KeyError, TypeError, ValueError) as error:  # clu's ways to miss an input
            shapes = ", ".join(f"{name!r} {jnp.shape(value)}" for name, value in given.items())
            raise ValueError(
                f"{self.metrics.__name__} cannot be computed of {shapes}: {error}. The metrics are "
                "given what the loss returns beside the losses, with the losses' mask: write "
                'return losses, {"logits": logits, "labels": batch["label"]}.'
            ) from error
        for name, metric in vars(metrics).items():
            if _shapes(metric) != _shapes(getattr(self.metrics.empty(), name)):
                raise ValueError(
                    f"Metric {name!r} is a {type(metric).__name__}, which grows from batch to "
                    "batch: expected sums, such as clu.metrics.Average. What each record gives, "
                    "predict(source) returns."
                )
        return metrics


def _checked(result: Any, size: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns what a loss returned as losses and outputs, or raises what is wrong with it."""
    losses, outputs = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(losses, jax.Array) or not isinstance(outputs, Mapping):
        raise TypeError(
            f"The loss returns {_kind(result)}: expected the losses, an array of shape (batch,) or "
            '(batch, tokens), or them and a dict, as in return losses, {"logits": logits}.'
        )
    if losses.ndim not in (1, 2) or losses.shape[0] != size:
        raise ValueError(
            f"The loss has shape {losses.shape}: expected one loss a record, of shape "
            f"(batch,) = ({size},), or a token, of shape (batch, tokens). The trainer does the "
            "averaging: leave out .mean()."
        )
    return losses, dict(outputs)


def _shapes(metric: clu.Metric) -> Any:
    return jax.tree.map(jnp.shape, jax.tree.leaves(metric)), jax.tree.structure(metric)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_kind, value))})"
    return type(value).__name__ if not isinstance(value, jax.Array) else f"array{value.shape}"
