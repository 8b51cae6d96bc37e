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
from jax.extend import core

from trainers.devices.arrays import keep_dtypes
from trainers.step.average import Average, moved
from trainers.step.objective import Batch, Objective
from trainers.step.optimizer import rate_of
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
        ema: Decay of a moving average of the parameters, or what makes one of the optimizer's
            state; None: there is no average.
        gradient_norm: Whether the window sums up the gradients' norms.
    """

    optimizer: optax.GradientTransformation
    wrt: Any
    accumulate: int
    ema: Average | None
    gradient_norm: bool = False

    @property
    def decay(self) -> float | None:
        """The moving average's decay, None where there is no moving average."""
        return None if self.ema is None or callable(self.ema) else self.ema


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

    def mean(params, rest, batch, valid, key):
        """Returns the loss over the number of losses, so that a `float16` gradient does not
        overflow, and what goes along."""
        lowered = lower_params(rest, objective.precision)
        model = nnx.merge(definition, lower(params, objective.precision), lowered, copy=True)
        loss, (weight, metrics) = objective(model, batch, valid, key)
        new = _known(nnx.state(model, update.wrt, ...)[1], rest)
        return loss / len(valid), (loss, weight, metrics, _carried(new, lowered, rest))

    # Jitted, it is traced once, however often the step around it is.
    differentiate = jax.jit(jax.value_and_grad(mean, has_aux=True))

    def sums(params, rest, window, batch, valid, key, unroll):
        """Returns the sum over the slices of the gradients of `mean`, and what goes along."""

        def one(carry, slice):
            total, rest, window = carry
            _expect_gradient(differentiate.trace(params, rest, *slice).jaxpr.jaxpr, params)
            (_, (loss, weight, metrics, rest)), new = differentiate(params, rest, *slice)
            total = new if total is None else jax.tree.map(jnp.add, total, new)
            return (total, rest, keep_dtypes(window.add(loss, weight, metrics), window)), None

        if update.accumulate == 1:
            return one((None, rest, window), (batch, valid, key))[0]
        keys = None if key is None else jax.random.split(key, update.accumulate)
        # Summed up in float32: in bfloat16 a sum of 512 ones is 256.
        wide = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
        )
        sliced = (*slices((batch, valid), update.accumulate), keys)
        return jax.lax.scan(one, (wide, rest, window), sliced, unroll=unroll)[0]

    def step(state: State, data: Any, t: jax.Array, *, unroll=False, gradient=False):
        batch, valid, stages = rows(data, state.stages, t)
        empty, key = Window.empty(objective.metrics), objective.key(t)
        total, rest, sum_ = sums(state.params, state.rest, empty, batch, valid, key, unroll)
        weight = jnp.where(sum_.weight == 0, 1.0, sum_.weight)
        loss = sum_.loss / weight
        # A product is fused into the optimizer's arithmetic, a quotient is a pass of its own.
        scale = len(valid) // update.accumulate / weight
        # JAX's gradient of a complex parameter is the conjugate of the direction of ascent.
        gradients = keep_dtypes(jax.tree.map(lambda g: (g * scale).conj(), total), state.params)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.params, value=loss
        )
        params: Any = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None and update.decay is not None:
            ema = moved(ema, params, rest, t, update.decay)
        window = state.window.add(sum_.loss, sum_.weight, sum_.metrics)
        rate, trend = rate_of(update.optimizer, optimizer_state, t), state.trend
        window = window.add_update(gradients, rate, trend.deviations(loss), t)
        trend = trend.moved(loss)
        new = State(params, rest, optimizer_state, ema, stages, window, loss, trend)
        new = keep_dtypes(new, state)
        return (new, gradients) if gradient else new

    return step


def _expect_gradient(jaxpr: core.Jaxpr, params: nnx.State) -> None:
    """Raises where a program's last outputs, the gradients, are zeros that nothing is computed of.

    Args:
        jaxpr: The program.
        params: The trained parameters.
    """
    made_by = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    ahead = set(jaxpr.outvars[-len(jax.tree.leaves(params)) :])
    seen = set()
    while ahead:
        variable = ahead.pop()
        if variable in jaxpr.invars:
            return
        seen.add(variable)
        inputs = made_by[variable].invars if variable in made_by else ()
        ahead |= {one for one in inputs if not isinstance(one, core.Literal)} - seen
    raise ValueError(
        "The loss depends on none of the parameters that are trained, so their gradient is zero: "
        "compute it of the model that loss(model, batch) is given, not of one from outside, and "
        "with operations that have a gradient (argmax, round and comparisons have none)."
    )


def evaluation_step(
    definition: nnx.GraphDef,
    objective: Objective,
    rows: Rows,
    slices: Callable[[Any, int], Any],
    count: int = 1,
) -> Callable[..., Any]:
    """Returns the function that adds one batch to a window.

    Args:
        definition: The model's graph, in evaluation mode.
        objective: The loss and the metrics.
        rows: As in `train_step`.
        slices: As in `train_step`.
        count: Number of slices in which the batch is computed.
    """

    def step(state: tuple[Window, nnx.State], data: Any, t: jax.Array):
        window, stages = state
        params, rest, columns = data
        batch, valid, stages = rows(columns, stages, t)
        lowered = lower(params, objective.precision), lower_params(rest, objective.precision)

        def one(window, slice):
            batch, valid = slice
            model = nnx.merge(definition, *lowered, copy=True)
            loss, (weight, metrics) = objective(model, batch, valid, objective.key(t))
            return keep_dtypes(window.add(loss, weight, metrics), window), None

        if count == 1:
            window, _ = one(window, (batch, valid))
        else:
            window, _ = jax.lax.scan(one, window, slices((batch, valid), count))
        return keep_dtypes((window, stages), state)

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
