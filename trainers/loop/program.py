"""The compiled programs of a run: its steps, and the same steps under watch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trainers.loop.plan import Plan
from trainers.step.compiled import Loop
from trainers.step.model import split
from trainers.step.state import State
from trainers.step.step import Rows, train_step


def loop(
    plan: Plan,
    state: Any,
    data: Any,
    *,
    around: Callable[[Callable], Callable] = lambda step: step,
    rows: Rows | None = None,
    goes_on: Callable[[Any], Any] | None = None,
) -> Loop:
    """Traces the train step of a run, which raises what is wrong with the losses and the data.

    Args:
        plan: What the run does.
        state: The first state.
        data: What `rows` reads.
        around: Makes another step of the train step.
        rows: Forms the batch; None: as the plan says.
        goes_on: As in `Loop`; None: while the loss is finite.
    """
    definition = split(plan.model, plan.update.wrt, training=True)[0]
    rows, layout = rows or plan.batches.rows, plan.layout
    step = train_step(definition, plan.objective, plan.update, rows, layout.slices)
    shardings = layout.shardings(state)
    traced = Loop(around(step), state, data, goes_on or _finite, shardings)
    if traced.from_python and plan.update.accumulate > 1:
        # The slices' own loop would be as slow as the steps'.
        unrolled = functools.partial(step, unroll=True)
        traced = Loop(around(unrolled), state, data, goes_on or _finite, shardings)
    return traced


def _finite(state: State) -> jax.Array:
    return jnp.isfinite(state.loss)
