"""The compiled loop: steps `start ... stop` of any step function, traced once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Step = Callable[[Any, Any, jax.Array], Any]


class Loop:
    """Runs steps of `step` from run-time bounds: one trace serves every length.

    The state is bit-identical however the steps are divided into runs. It is donated; the data is
    an argument, neither a constant of the program nor a result nor donated.

    On the CPU a convolution's gradient inside any XLA loop takes a path 14 to 77 times slower than
    in a program of its own (https://github.com/jax-ml/jax/issues/12868). A step that holds one is
    called from Python there: the same program, the same state, one trace.

    Args:
        step: `(state, data, t) -> state`, pure, with `t` an `int32` scalar.
        state: The first state, or one of its shapes and dtypes.
        data: What `step` reads.
    """

    def __init__(self, step: Step, state: Any, data: Any):
        step = jax.jit(step, donate_argnums=0)
        traced = step.trace(state, data, jnp.int32(0))
        self.from_python = jax.default_backend() == "cpu" and _has_convolution(traced.jaxpr.jaxpr)
        if self.from_python:
            self._step = traced.lower().compile()
        else:
            # Inside the loop the step is found already traced.
            chunk = jax.jit(functools.partial(_chunk, step), donate_argnums=0)
            self._chunk = chunk.lower(state, data, jnp.int32(0), jnp.int32(0)).compile()

    def __call__(self, state: Any, data: Any, start: int, stop: int) -> Any:
        """Returns the state after steps `start ... stop - 1`; `state` is donated."""
        if not self.from_python:
            return self._chunk(state, data, np.int32(start), np.int32(stop))
        for t in range(start, stop):
            state = self._step(state, data, np.int32(t))
        return state


def _chunk(step, state, data, start, stop):
    def body(carry):
        t, state = carry
        return t + 1, step(state, data, t)

    return jax.lax.while_loop(lambda carry: carry[0] < stop, body, (start, state))[1]


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(inner) for inner in core.jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )
