"""The average of a run's parameters: what evaluation, checkpoints and exports mean by the model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainers.devices.arrays import keep_dtypes
from trainers.devices.variables import named, with_leaves
from trainers.step.state import State

Average = float | Callable[[Any, nnx.State], nnx.State]
"""A moving average's decay, or `(optimizer's state, parameters) -> parameters` of an optimizer that
keeps an average itself, such as `optax.contrib.schedule_free_eval_params`."""


def begun(params: nnx.State, rest: nnx.State) -> nnx.State:
    """Returns the moving average before the first step.

    Args:
        params: The trained parameters.
        rest: The other variables; of them BatchNorm's statistics belong to the average.

    Returns:
        The parameters and statistics, floats in `float32`.
    """
    statistics, _ = nnx.split_state(rest, nnx.BatchStat, ...)

    def raised(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if is_float else x

    return jax.tree.map(raised, nnx.merge_state(params, statistics))


def moved(
    average: nnx.State, params: nnx.State, rest: nnx.State, t: jax.Array, decay: float
) -> nnx.State:
    """Returns the moving average after step `t + 1`.

    Its decay is `min(decay, (1 + t) / (10 + t))`, so that the first parameters, which are random,
    do not weigh for thousands of steps (as TensorFlow's `ExponentialMovingAverage` has it).

    Args:
        average: The average before.
        params: The trained parameters after the step.
        rest: The other variables after the step.
        t: The number of the batch, int32.
        decay: The largest decay.
    """
    t = t.astype(jnp.float32)
    share = 1 - jnp.minimum(decay, (1 + t) / (10 + t))

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + share * (new - old) if jnp.issubdtype(new.dtype, jnp.inexact) else new

    return jax.tree.map(one, average, begun(params, rest))


def of(state: State, average: Average | None) -> nnx.State | None:
    """Returns the average of a state, None where there is none."""
    return average(state.optimizer, state.params) if callable(average) else state.ema


def replaced(
    average: nnx.State | None, params: nnx.State, rest: nnx.State
) -> tuple[nnx.State, nnx.State]:
    """Returns parameters and other variables, with the average's values where it has some."""
    if average is None:
        return params, rest
    values = named(average)

    def one(name: str, own: Any) -> Any:
        return keep_dtypes(values[name], own) if name in values else own

    return with_leaves(params, one), with_leaves(rest, one)


def averaged(model: nnx.Module, average: nnx.State | None, wrt: Any) -> nnx.Module | None:
    """Returns a copy of a model with the average's values, None where there is no average."""
    if average is None:
        return None
    definition, params, rest = nnx.split(model, wrt, ...)
    return nnx.merge(definition, *replaced(average, params, rest), copy=True)
