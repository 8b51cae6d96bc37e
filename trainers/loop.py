"""The compiled loop: steps `start ... stop` of any step function, traced once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Step = Callable[[Any, Any, jax.Array], Any]
Span = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


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
        span: `(data, t) -> data, end`, traceable: what the steps from `t` up to `end` read. What
            is the same for all of them, such as an epoch's keys, is computed once for a span.
            None: the data, for all steps.
        goes_on: `state -> bool`, traceable, asked before each step: a compiled run ends early where
            it is False. Steps that are called from Python go on.

    Attributes:
        from_python: Whether the steps are called from Python.
    """

    def __init__(
        self,
        step: Step,
        state: Any,
        data: Any,
        *,
        span: Span | None = None,
        goes_on: Callable[[Any], Any] = lambda _: True,
    ):
        span = span or (lambda data, _: (data, jnp.int32(2**31 - 1)))
        step, zero = jax.jit(step), jnp.int32(0)
        traced = step.trace(state, jax.eval_shape(span, data, zero)[0], zero)
        self.from_python = jax.default_backend() == "cpu" and _has_convolution(traced.jaxpr.jaxpr)
        # Inside the programs the step is found already traced.
        if self.from_python:
            single = jax.jit(functools.partial(_single, step, span), donate_argnums=0)
            self._traced = single.trace(state, data, zero)
        else:
            chunk = jax.jit(functools.partial(_chunk, step, span, goes_on), donate_argnums=0)
            self._traced = chunk.trace(state, data, zero, zero)

    @functools.cached_property
    def program(self) -> jax.stages.Compiled:
        """The compiled program, of a chunk or of one step; compiled when it is first needed."""
        return self._traced.lower().compile()

    def compile(self) -> None:
        """Compiles the program, so that the first call takes no longer than others."""
        _ = self.program

    def __call__(self, state: Any, data: Any, start: int, stop: int) -> Any:
        """Returns the state after steps `start ... stop - 1`; `state` is donated."""
        program = self.program
        if not self.from_python:
            return program(state, data, np.int32(start), np.int32(stop))
        for t in range(start, stop):
            state = program(state, data, np.int32(t))
        return state


def _single(step, span, state, data, t):
    return step(state, span(data, t)[0], t)


def _chunk(step, span, goes_on, state, data, start, stop):
    def whole_span(carry):
        t, state = carry
        inner, end = span(data, t)
        end = jnp.minimum(end, stop)
        return jax.lax.while_loop(
            lambda carry: (carry[0] < end) & goes_on(carry[1]),
            # What does not change in this loop, XLA computes before it.
            lambda carry: (carry[0] + 1, step(carry[1], inner, carry[0])),
            (t, state),
        )

    return jax.lax.while_loop(
        lambda carry: (carry[0] < stop) & goes_on(carry[1]), whole_span, (start, state)
    )[1]


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(inner) for inner in core.jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )
