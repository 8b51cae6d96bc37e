"""The program of a sweep: the members' states along a first axis, and the step of all of them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainers.devices.checksum import kind
from trainers.devices.variables import named
from trainers.loop import program
from trainers.loop.plan import Plan
from trainers.step.compiled import Loop
from trainers.step.state import State


def initial_state(plans: Sequence[Plan]) -> State:
    """Returns the members' states before the first step, along a first axis.

    The stages' variables are of the data, so there is one of each.

    Args:
        plans: One a member.

    Raises:
        ValueError: If two members' models are not of one structure.
    """
    states = [program.initial_state(plan) for plan in plans]
    models = [nnx.merge_state(state.params, state.rest) for state in states]
    kinds = [{name: kind(x) for name, x in named(model).items()} for model in models]
    for number, own in enumerate(kinds):
        if own != kinds[0]:
            name = min(n for n in own.keys() | kinds[0] if own.get(n) != kinds[0].get(n))
            raise ValueError(
                f"make_model returns models of several structures: {name} is {own.get(name)} in "
                f"member {number} and {kinds[0].get(name)} in member 0. Members that are trained "
                "together have the same shapes; sweep others one after the other."
            )
    return stacked(states)


def stacked(states: Sequence[State]) -> State:
    """Returns states along a first axis, with the stages' variables of the first."""
    each = [dataclasses.replace(state, stages=None) for state in states]
    return dataclasses.replace(_stack(each), stages=states[0].stages)


def member(state: State, number: int) -> State:
    """Returns the state of one member."""
    own = _at(dataclasses.replace(state, stages=None), jnp.int32(number))
    return dataclasses.replace(own, stages=state.stages)


def begun_anew(state: State) -> State:
    """Returns a state with empty sums for all members, as after a log."""
    empty = state.window.begun_anew()
    window = jax.tree.map(lambda x, own: jnp.broadcast_to(x, own.shape), empty, state.window)
    return dataclasses.replace(state, window=window)


def loop(plan: Plan, state: State) -> Loop:
    """Traces the step of all members, which ends early where none goes on.

    Args:
        plan: What the first member does; the optimizers differ in their states alone.
        state: The members' states.
    """
    axes = dataclasses.replace(jax.tree.map(lambda _: 0, state), stages=None)

    def together(step: Callable[..., Any]) -> Callable[..., Any]:
        def one(state: State, data: Any, t: jax.Array) -> State:
            new, gradients = step(state, data, t, gradient=True)
            fine = jnp.isfinite(state.loss) & jnp.isfinite(new.loss)
            for gradient in jax.tree.leaves(gradients):
                fine &= jnp.isfinite(gradient).all()
            # A member that is not finite keeps what it was before the batch; its loss marks it.
            kept = jax.tree.map(lambda new, old: jnp.where(fine, new, old), new, state)
            loss = jnp.where(fine, new.loss, jnp.nan)
            return dataclasses.replace(kept, loss=loss, stages=new.stages)

        # The batch depends on nothing that members differ in, so it is formed once for all.
        return jax.vmap(one, in_axes=(axes, None, None), out_axes=axes)

    return program.loop(plan, state, plan.batches.data, around=together, goes_on=_any_goes_on)


def steps_of(state: State) -> list[int]:
    """Returns how many steps each member has finished, as its optimizer counts them."""
    return [int(count) for count in jax.device_get(state.optimizer.count)]


@jax.jit  # one program, where an array each would take 10 ms of compiling each on the CPU
def _stack(states: list[State]) -> State:
    return jax.tree.map(lambda *parts: jnp.stack(parts), *states)


@jax.jit
def _at(state: State, number: jax.Array) -> State:
    return jax.tree.map(lambda x: x[number], state)


def _any_goes_on(state: State) -> jax.Array:
    return jnp.isfinite(state.loss).any()
