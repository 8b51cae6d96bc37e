"""The program of a run: the state it begins with, and its compiled steps."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainers.devices import agreement, memory
from trainers.devices.arrays import as_carry
from trainers.devices.placement import described
from trainers.loop.plan import Plan
from trainers.step.compiled import Loop
from trainers.step.model import split
from trainers.step.state import State, Window
from trainers.step.step import Rows, train_step


def initial_state(plan: Plan) -> State:
    """Returns the state before the first step, on the devices of the run.

    Raises:
        MemoryError: If it is larger than a device's memory.
    """
    layout = plan.layout
    _, params, rest = split(plan.model, plan.update.wrt)
    agreement.together(lambda: _expect_fits(plan, params, rest))
    params, rest = as_carry(layout.placement.model(params, rest))
    optimizer = as_carry(plan.update.optimizer.init(params))
    window = as_carry(Window.empty(plan.objective.metrics))
    return State(
        params=params,
        rest=rest,
        optimizer=layout.placement.beside(params, optimizer),
        ema=None if plan.update.ema is None else as_carry(params),
        stages=layout.replicate(as_carry(plan.batches.stages)),
        window=layout.replicate(window),
        loss=layout.replicate(jnp.zeros(())),
    )


def _expect_fits(plan, params, rest) -> None:
    """Raises before anything is placed: what a device says then names no way out."""
    placement = plan.layout.placement
    params, rest = placement.model(params, rest, described)
    optimizer = jax.eval_shape(plan.update.optimizer.init, params)
    parts = {
        "the parameters": params,
        "the optimizer's state": placement.beside(params, optimizer, described),
        "the parameters' average": None if plan.update.ema is None else params,
        "the rest": rest,
    }
    memory.expect_state_fits(parts, 1 if plan.layout.mesh is None else plan.layout.mesh.size)


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


def evaluated(plan: Plan, state: State) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the model in evaluation mode: graph, parameters or their average, the rest."""
    definition = split(plan.model, plan.update.wrt, training=False)[0]
    return definition, state.params if state.ema is None else state.ema, state.rest


def _finite(state: State) -> jax.Array:
    return jnp.isfinite(state.loss)
