"""The state that a run begins with: the model's variables and all that a step adds to them."""

import jax
import jax.numpy as jnp

from trainers.devices import agreement, memory
from trainers.devices.arrays import as_carry
from trainers.devices.placement import described
from trainers.loop.plan import Plan
from trainers.step.model import split
from trainers.step.state import State, Window


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
