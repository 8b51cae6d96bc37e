"""The train step and the evaluation step: pure functions of (state, data, t).

They know no files, clocks, signals or logs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu
from flax import nnx

from trainers.step.state import State, Window, keep_dtypes

Batch = dict[str, jax.Array]
Rows = Callable[[Any, nnx.State, jax.Array], tuple[Batch, jax.Array, nnx.State]]
"""`(data, stages, t) -> batch, valid, stages`: batch `t` and which of its records count."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step computes of a batch: the weighted losses and the metrics.

    Args:
        loss: `(model, batch) -> losses | (losses, outputs)`.
        metrics: Class of the metrics.
        label: Column of the labels, given to the metrics where the outputs have none.
        precision: Dtype of the computation, or None for the parameters' own. The labels keep
            theirs.
    """

    loss: Callable[[nnx.Module, Batch], Any]
    metrics: type[clu.Collection]
    label: str | None = None
    precision: Any = None

    def __call__(self, model, batch: Batch, valid: jax.Array):
        """Returns the sum of weighted losses, the sum of weights and the metrics.

        Args:
            model: The model.
            batch: Columns of shape `(size, ...)`.
            valid: `(size,)` bool; False for the records that only fill the batch up.
        """
        size = len(valid)
        losses, outputs = _checked(self.loss(model, self._lowered(batch)), size)
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

    def _lowered(self, batch: Batch) -> Batch:
        lowered = lower(batch, self.precision)
        if self.precision is not None and self.label in batch:
            lowered[self.label] = batch[self.label]
        return lowered

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


@dataclasses.dataclass(frozen=True)
class Update:
    """How a step changes the parameters.

    Args:
        optimizer: An optax transformation.
        wrt: Filter of the variables to train.
        accumulate: Number of slices in which the step's batch is computed.
        ema: Decay of the parameters' moving average, or None.
    """

    optimizer: optax.GradientTransformation
    wrt: Any
    accumulate: int
    ema: float | None


def train_step(
    definition: nnx.GraphDef,
    objective: Objective,
    update: Update,
    rows: Rows,
    slices: Callable[[Any, int], Any],
) -> Callable[..., Any]:
    """Returns the function `(state, data, t, unroll=False, gradient=False)` of an optimizer update.

    Gradient and loss are `sum(losses * weight * valid) / sum(weight * valid)` over the whole step,
    however it is sliced. With `unroll` the slices are written out instead of looped over. The
    function returns the next state, with `gradient` that and the gradient.

    Args:
        definition: The model's graph, in training mode.
        objective: The loss and the metrics.
        update: How the parameters change.
        rows: Forms the batch.
        slices: Divides a batch into slices along a new first axis.
    """
    optimizer = optax.with_extra_args_support(update.optimizer)

    def total_loss(params, rest, batch, valid):
        lowered = lower_params(rest, objective.precision)
        model = nnx.merge(definition, lower(params, objective.precision), lowered, copy=True)
        loss, (weight, metrics) = objective(model, batch, valid)
        new = _known(nnx.state(model, update.wrt, ...)[1], rest)
        return loss, (weight, metrics, _carried(new, lowered, rest))

    # Jitted, it is traced once, however often the step around it is.
    differentiate = jax.jit(jax.value_and_grad(total_loss, has_aux=True))

    def sums(params, rest, window, batch, valid, unroll):
        """Returns the sum of gradients over all slices, and what goes along."""

        def one(carry, slice):
            total, rest, window = carry
            (loss, (weight, metrics, rest)), new = differentiate(params, rest, *slice)
            total = new if total is None else jax.tree.map(jnp.add, total, new)
            return (total, rest, keep_dtypes(window.add(loss, weight, metrics), window)), None

        if update.accumulate == 1:
            return one((None, rest, window), (batch, valid))[0]
        start = (jax.tree.map(jnp.zeros_like, params), rest, window)
        sliced = slices((batch, valid), update.accumulate)
        return jax.lax.scan(one, start, sliced, unroll=unroll)[0]

    def step(state: State, data: Any, t: jax.Array, *, unroll=False, gradient=False):
        batch, valid, stages = rows(data, state.stages, t)
        empty = Window.empty(objective.metrics)
        total, rest, sum_ = sums(state.params, state.rest, empty, batch, valid, unroll)
        weight = jnp.where(sum_.weight == 0, 1.0, sum_.weight)
        loss = sum_.loss / weight
        # A product is fused into the optimizer's arithmetic, a quotient is a pass of its own.
        scale = 1 / weight
        gradients = jax.tree.map(lambda g: (g * scale).astype(g.dtype), total)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.params, value=loss
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - update.ema)
        window = state.window.add(sum_.loss, sum_.weight, sum_.metrics)
        new = State(params, rest, optimizer_state, ema, stages, window, loss)
        new = keep_dtypes(new, state)
        return (new, gradients) if gradient else new

    return step


def lower(tree: Any, precision: Any) -> Any:
    """Returns `tree` with its floating-point arrays in `precision`, if that is not None."""
    if precision is None:
        return tree
    return jax.tree.map(
        lambda x: x.astype(precision) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def lower_params(rest: nnx.State, precision: Any) -> nnx.State:
    """Returns `rest` with its parameters, which are not trained, in `precision`.

    Statistics and counters keep their dtype: they are carried on.
    """
    if precision is None:
        return rest
    frozen, other = nnx.split_state(rest, nnx.Param, ...)
    return nnx.merge_state(lower(frozen, precision), other)


def evaluation_step(definition: nnx.GraphDef, objective: Objective, rows: Rows):
    """Returns the function that adds one batch to a window.

    Args:
        definition: The model's graph, in evaluation mode.
        objective: The loss and the metrics.
        rows: As in `train_step`.
    """

    def step(state: tuple[Window, nnx.State], data: Any, t: jax.Array):
        window, stages = state
        params, rest, columns = data
        batch, valid, stages = rows(columns, stages, t)
        lowered = lower(params, objective.precision), lower_params(rest, objective.precision)
        model = nnx.merge(definition, *lowered, copy=True)
        loss, (weight, metrics) = objective(model, batch, valid)
        return keep_dtypes((window.add(loss, weight, metrics), stages), state)

    return step


def _known(new: nnx.State, old: nnx.State) -> nnx.State:
    """Returns the variables of `new` that `old` has: what `sow` added is not carried on."""
    flat = dict(nnx.to_flat_state(new))
    return nnx.from_flat_state([(path, flat[path]) for path, _ in nnx.to_flat_state(old)])


def _carried(new: nnx.State, lowered: nnx.State, old: nnx.State) -> nnx.State:
    """Returns `new` in the dtypes of `old`; what the model left as it was, bit for bit as `old`."""

    def one(path, new, lowered, old):
        if jnp.shape(new) != old.shape:
            raise ValueError(
                f"The model changes {jax.tree_util.keystr(path)} from shape {old.shape} to "
                f"{jnp.shape(new)}: what it keeps from step to step has one shape."
            )
        return old if new is lowered else keep_dtypes(jnp.asarray(new), old)

    return jax.tree.map_with_path(one, new, lowered, old)
