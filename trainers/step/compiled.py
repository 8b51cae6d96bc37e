"""The compiled loop: steps `start ... stop` of any step function, traced once."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from trainers.devices.private import inner_jaxprs

Step = Callable[[Any, Any, jax.Array], Any]

_LONG = 10e9  # operations of matrix products in a step: a tenth of a second of two cores, and more


class Loop:
    """Runs steps of `step` from run-time bounds: one trace serves every length.

    The state is bit-identical however the steps are divided into runs. It is donated; the data is
    an argument, neither a constant of the program nor a result nor donated.

    On the CPU a convolution's gradient inside any XLA loop takes a path 14 to 77 times slower than
    in a program of its own (https://github.com/jax-ml/jax/issues/12868). A step that holds one is
    called from Python there: the same program, the same state, one trace. So is a step of more than
    10 GFLOP of matrix products, beside which a call is nothing: XLA compiles a loop around six
    layers of a transformer in 1.4 s, and the step alone in 1.15 s.

    On a GPU XLA's `while` with run-time bounds asks the host at each turn whether to go on
    (https://github.com/jax-ml/jax/issues/2491); a loop of a length known to the compiler does not.
    After `compile_inner`, loops of `inner` steps take the steps, and the `while` takes the rest.

    Constructing a loop traces the step, so it raises what is wrong with it; compiling comes later.

    Args:
        step: `(state, data, t) -> state`, pure, with `t` an `int32` scalar.
        state: The first state, or one of its shapes and dtypes.
        data: What the steps read.
        goes_on: `state -> bool`, traceable, asked before each step: a compiled run ends early where
            it is False. Steps that are called from Python go on, and those of an inner loop.
        shardings: Where the state stays, a pytree of shardings; None: on one device.
        inner: Number of steps of the loop that `compile_inner` compiles; 0: there is none.

    Attributes:
        from_python: Whether the steps are called from Python.
        is_slow_in_loops: Whether they are for a convolution, which is slow in any loop.
        inner: As given; 0 where the steps are called from Python.
        inner_program: The compiled inner loop; None until it is asked for.
    """

    def __init__(
        self,
        step: Step,
        state: Any,
        data: Any,
        goes_on: Callable[[Any], Any] = lambda _: True,
        shardings: Any = None,
        inner: int = 0,
    ):
        step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        traced = step.trace(state, data, jnp.int32(0))
        jaxpr, on_cpu = traced.jaxpr.jaxpr, jax.default_backend() == "cpu"
        self.is_slow_in_loops = on_cpu and _has_convolution(jaxpr)
        self.from_python = self.is_slow_in_loops or (on_cpu and _matmul_flops(jaxpr) > _LONG)
        self.inner = 0 if self.from_python else inner
        # Inside the loops the step is found already traced.
        jitted = functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
        if not self.from_python:
            chunk = jitted(functools.partial(_chunk, step, goes_on))
            traced = chunk.trace(state, data, jnp.int32(0), jnp.int32(0))
        if self.inner:
            turns = jitted(functools.partial(_turns, step, inner))
            self._inner_traced = turns.trace(state, data, jnp.int32(0))
        self.inner_program: jax.stages.Compiled | None = None
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

    def compile_inner(self) -> None:
        """Compiles the inner loop, if there is one, for later calls; the step is compiled anew."""
        if self.inner and self.inner_program is None:
            self.inner_program = self._inner_traced.lower().compile()

    def __call__(self, state: Any, data: Any, start: int, stop: int) -> Any:
        """Returns the state after steps `start ... stop - 1`; `state` is donated."""
        if jax.config.jax_disable_jit:  # as one sets it to look at each operation  # pyright: ignore[reportAttributeAccessIssue]
            return self._eagerly(state, data, jnp.int32(start), jnp.int32(stop))
        while self.inner_program is not None and stop - start >= self.inner:
            state, start = self.inner_program(state, data, np.int32(start)), start + self.inner
        if not self.from_python and start < stop:
            return self.program(state, data, np.int32(start), np.int32(stop))
        for t in range(start, stop):
            state = self.program(state, data, np.int32(t))
        return state


def _chunk(step, goes_on, state, data, start, stop):
    def body(carry):
        t, state = carry
        return t + 1, step(state, data, t)

    def condition(carry):
        t, state = carry
        return (t < stop) & goes_on(state)

    return jax.lax.while_loop(condition, body, (start, state))[1]


def _turns(step, number, state, data, start):
    return jax.lax.fori_loop(0, number, lambda i, state: step(state, data, start + i), state)


def _has_convolution(jaxpr: core.Jaxpr) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(inner) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def _matmul_flops(jaxpr: core.Jaxpr) -> int:
    """Returns the operations of a program's matrix products; a `while` is counted as one turn."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            factor, product = (_shape(ends[0]) for ends in (equation.invars, equation.outvars))
            total += 2 * math.prod(factor[axis] for axis in contracted) * math.prod(product)
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += turns * sum(map(_matmul_flops, inner_jaxprs(equation)))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
