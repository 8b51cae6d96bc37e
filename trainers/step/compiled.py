"""The compiled loop: steps `start ... stop` of any step function, traced once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from trainers.devices.private import inner_jaxprs

Step = Callable[[Any, Any, jax.Array], Any]


class Loop:
    """Runs steps of `step` from run-time bounds: one trace serves every length.

    The state is bit-identical however the steps are divided into runs. It is donated; the data is
    an argument, neither a constant of the program nor a result nor donated.

    On the CPU a convolution's gradient inside any XLA loop takes a path 14 to 77 times slower than
    in a program of its own (https://github.com/jax-ml/jax/issues/12868). A step that holds one is
    called from Python there: the same program, the same state, one trace.

    Constructing a loop traces the step, so it raises what is wrong with it; compiling comes later.

    Args:
        step: `(state, data, t) -> state`, pure, with `t` an `int32` scalar.
        state: The first state, or one of its shapes and dtypes.
        data: What the steps read.
        goes_on: `state -> bool`, traceable, asked before each step: a compiled run ends early where
            it is False. Steps that are called from Python go on.
        shardings: Where the state stays, a pytree of shardings; None: on one device.

    Attributes:
        from_python: Whether the steps are called from Python.
    """

    def __init__(
        self,
        step: Step,
        state: Any,
        data: Any,
        goes_on: Callable[[Any], Any] = lambda _: True,
        shardings: Any = None,
    ):
        step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        traced = step.trace(state, data, jnp.int32(0))
        self.from_python = jax.default_backend() == "cpu" and _has_convolution(traced.jaxpr.jaxpr)
        if not self.from_python:
            # Inside the loop the step is found already traced.
            chunk = functools.partial(_chunk, step, goes_on)
            chunk = jax.jit(chunk, donate_argnums=0, out_shardings=shardings)
            traced = chunk.trace(state, data, jnp.int32(0), jnp.int32(0))
        self._traced = traced
        self._eagerly = functools.partial(_chunk, step, goes_on)

    @functools.cached_property
    def lowered(self) -> jax.stages.Lowered:
        """The program before it is compiled."""
        return self._traced.lower()

    @functools.cached_property
    def program(self) -> jax.stages.Compiled:
        """The compiled program, of a chunk or of one step; compiled when it is first needed."""
        return self.lowered.compile()

    def compile(self) -> None:
        """Compiles the program, so that the first call takes no longer than others."""
        _ = self.program

    def __call__(self, state: Any, data: Any, start: int, stop: int) -> Any:
        """Returns the state after steps `start ... stop - 1`; `state` is donated."""
        if jax.config.jax_disable_jit:  # as one sets it to look at each operation  # pyright: ignore[reportAttributeAccessIssue]
            return self._eagerly(state, data, jnp.int32(start), jnp.int32(stop))
        program = self.program
        if not self.from_python:
            return program(state, data, np.int32(start), np.int32(stop))
        for t in range(start, stop):
            state = program(state, data, np.int32(t))
        return state


def _chunk(step, goes_on, state, data, start, stop):
    def body(carry):
        t, state = carry
        return t + 1, step(state, data, t)

    def condition(carry):
        t, state = carry
        return (t < stop) & goes_on(state)

    return jax.lax.while_loop(condition, body, (start, state))[1]


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(inner) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )
