"""The train step and the evaluation step: pure functions of (state, data, t).

They know no files, clocks, signals or logs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from trainers.devices.arrays import keep_dtypes
from trainers.step.objective import Batch, Objective
from trainers.step.precision import lower, lower_params
from trainers.step.state import State, Window

Rows = Callable[[Any, nnx.State, jax.Array], tuple[Batch, jax.Array, nnx.State]]
"""`(data, stages, t) -> batch, valid, stages`: batch `t` and which of its records count."""


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
