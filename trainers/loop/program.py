"""The program of a run: the state it begins with, and its compiled steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from datarax.errors import listed
from trainers.devices import agreement, memory
from trainers.devices.arrays import as_carry
from trainers.devices.placement import described
from trainers.devices.variables import concrete, without_value
from trainers.loop.cadence import inner_steps
from trainers.loop.plan import Plan
from trainers.step.average import begun, of, replaced
from trainers.step.compiled import Loop
from trainers.step.logits import Logits, measured
from trainers.step.model import split
from trainers.step.optimizer import rate_of
from trainers.step.spike import Trend
from trainers.step.state import State, Window
from trainers.step.step import Rows, train_step


def initial_state(plan: Plan) -> State:
    """Returns the state before the first step, on the devices of the run.

    Raises:
        MemoryError: If it is larger than a device's memory.
    """
    layout, update = plan.layout, plan.update
    _, params, rest = split(plan.model, update.wrt)
    if plan.init_from is None and (empty := without_value(params) + without_value(rest)):
        raise ValueError(
            f"{listed(empty[:5])} of the model have no value, as nnx.eval_shape makes them: build "
            "the model itself, or write Trainer(..., init_from=workdir)."
        )
    params, rest = concrete((params, rest))
    agreement.together(lambda: _expect_fits(plan, params, rest))
    params, rest = as_carry(layout.placement.model(params, rest))
    optimizer = as_carry(layout.placement.made_beside(params, update.optimizer.init))
    window = Window.empty(
        plan.objective.metrics,
        gradient_norm=update.gradient_norm,
        learning_rate=rate_of(update.optimizer, optimizer, jnp.int32(0)) is not None,
        spike=True,
    )
    return State(
        params=params,
        rest=rest,
        optimizer=optimizer,
        ema=None if update.decay is None else as_carry(begun(params, rest)),
        stages=layout.replicate(as_carry(plan.batches.stages)),
        window=layout.replicate(as_carry(window)),
        loss=layout.replicate(jnp.zeros(())),
        trend=layout.replicate(as_carry(Trend.begun())),
    )


def _expect_fits(plan: Plan, params: nnx.State, rest: nnx.State) -> None:
    """Raises before anything is placed: what a device says then names no way out."""
    placement = plan.layout.placement
    params, rest = placement.model(params, rest, described)
    optimizer = jax.eval_shape(plan.update.optimizer.init, params)
    optimizer = placement.beside(params, optimizer)
    parts = {
        "the parameters": params,
        "the optimizer's state": optimizer,
        "the parameters' average": None if plan.update.decay is None else params,
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
    rows, layout, update = rows or plan.batches.rows, plan.layout, plan.update
    if (found := logits(plan, if_large=True)) is not None:
        update = dataclasses.replace(update, accumulate=update.accumulate * found.slices)
    step = train_step(definition, plan.objective, update, rows, layout.slices)
    inner = inner_steps(plan) if jax.default_backend() == "gpu" else 0
    rest = data, goes_on or _finite, layout.shardings(state), inner
    with layout.traced():
        traced = Loop(around(step), state, *rest)
        if traced.is_slow_in_loops and update.accumulate > 1:
            # The slices' own loop would be as slow as the steps'.
            traced = Loop(around(functools.partial(step, unroll=True)), state, *rest)
    return traced


def logits(plan: Plan, *, if_large: bool = False) -> Logits | None:
    """Returns what a language model's logits take of a device, and in how many slices; else None.

    The slices are those of one slice of `accumulate`. With `if_large`, small logits are None too.
    """
    model = split(plan.model, plan.update.wrt, training=True)
    rows = plan.batches.batch_size // plan.layout.parts // plan.update.accumulate
    given = plan.objective, model, plan.batches.spec, rows
    with plan.layout.traced():
        return measured(*given, gradient=True, if_large=if_large)


def evaluated(plan: Plan, state: State) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the model in evaluation mode: graph, parameters or their average, the rest."""
    definition, update = split(plan.model, plan.update.wrt, training=False)[0], plan.update
    return definition, *replaced(of(state, update.ema), state.params, state.rest)


def _finite(state: State) -> jax.Array:
    return jnp.isfinite(state.loss)
