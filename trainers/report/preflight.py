"""Preflight: what a run will take, known before its first step."""

import contextlib
import dataclasses
import math
import time

import jax
from clu import parameter_overview
from flax import nnx
from tqdm import tqdm

from trainers.devices import agreement, memory, private
from trainers.devices.variables import nested
from trainers.loop import program
from trainers.loop.chunks import chunks
from trainers.loop.clock import Pace
from trainers.loop.plan import Plan
from trainers.step.compiled import Loop
from trainers.step.logits import Logits
from trainers.step.state import State
from trainers.workdir import compilation

_SECONDS = 0.5  # of steps are timed, at least


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What a run will take.

    Args:
        parameters: Number of trained parameters.
        inferred: What was inferred of loss, metrics and inputs; empty where nothing was.
        overview: A table of all parameters, for people.
        state_bytes: Memory of parameters, optimizer and the rest of the state.
        data_bytes: Memory of the data.
        step_bytes: Memory of a step, with state and data; None where the backend does not say.
        limit_bytes: Memory of the device, or of the machine.
        flops: Floating-point operations of a step; None where the backend does not say.
        compile_seconds: How long tracing and compiling took.
        step_seconds: How long a step takes.
        steps: Number of steps of the run; None where nobody knows how long a stream's epochs are.
        logits: What a language model's logits take, and in how many slices they are computed; None
            where the loss is another.
    """

    parameters: int
    inferred: str
    overview: str
    state_bytes: int
    data_bytes: int
    step_bytes: int | None
    limit_bytes: int
    flops: float | None
    compile_seconds: float
    step_seconds: float
    steps: int | None
    logits: Logits | None = None

    @property
    def seconds(self) -> float | None:
        """How long the run will take, without evaluating and saving; None like `steps`."""
        return None if self.steps is None else self.steps * self.step_seconds

    def __str__(self) -> str:
        size, step, rate = memory.size, self.step_bytes, ""
        if self.flops is not None:
            rate = f", {_count(self.flops)}FLOP, {_count(self.flops / self.step_seconds)}FLOP/s"
        needed = "unknown" if step is None else size(step)
        parts = f"state {size(self.state_bytes)}, data {size(self.data_bytes)}"
        length = "a number of steps that its end will tell"
        if self.steps is not None and self.seconds is not None:
            length = f"{self.steps:,} steps, {tqdm.format_interval(self.seconds)}"
        return "\n".join(
            [
                *([self.inferred] if self.inferred else []),
                self.overview,
                f"memory    {needed} of {size(self.limit_bytes)}: {parts}",
                *([f"logits    {self.logits}"] if self.logits else []),
                f"compiling {self.compile_seconds:.1f} s",
                f"a step    {_seconds(self.step_seconds)}{rate}",
                f"the run   {length}, without evaluating and saving",
            ]
        )


def preflight(plan: Plan) -> Preflight:
    """Compiles a run and times a few steps on a copy of its state.

    Args:
        plan: What the run does.

    Returns:
        What it will take.

    Raises:
        MemoryError: If it takes more memory than there is.
    """
    plan.batches.skip([(0, list(plan.skip))] if plan.skip else [])
    data = plan.batches.data
    with contextlib.ExitStack() as stack:
        if plan.workdir is not None:  # so that the run itself finds the programs compiled
            stack.enter_context(compilation.cached(plan.workdir))
        state = program.initial_state(plan)
        begun = time.perf_counter()
        loop = program.loop(plan, state, data)
        loop.compile()
    compiled = time.perf_counter() - begun
    memory.expect_fits(loop.program, state, data)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    state_bytes, step_seconds = memory.nbytes(state), _timed(loop, plan, state)
    return Preflight(
        parameters=parameters,
        inferred=plan.task.inferred,
        overview=overview(plan.model),
        state_bytes=state_bytes,
        data_bytes=memory.nbytes(data),
        step_bytes=private.memory(loop.program),
        limit_bytes=memory.limit(),
        flops=private.flops(loop.program),
        compile_seconds=compiled,
        step_seconds=step_seconds,
        steps=plan.end.expected,
        logits=program.logits(plan),
    )


def overview(model: nnx.Module) -> str:
    """Returns a table of a model's parameters, with their number and bytes."""
    parameters = nested(nnx.state(model, nnx.Param))
    return parameter_overview.get_parameter_overview(parameters, include_stats=False)


def _timed(loop: Loop, plan: Plan, state: State) -> float:
    """Returns the seconds of a step: of the last chunk, which is the longest."""
    pace, seconds, begun = Pace(), 0.0, time.perf_counter()
    with contextlib.closing(plan.batches.feed()) as feed:
        blocks = feed.blocks(0, plan.end.expected or 2**31 - 1)
        for data, t, stop in chunks(blocks, lambda _: agreement.least(pace.steps())[0]):
            with pace.measured(stop - t):
                state = loop(state, data, t, stop)
                jax.block_until_ready(state.loss)
            seconds = pace.seconds / (stop - t)
            if not agreement.least(time.perf_counter() - begun < _SECONDS)[0]:
                break
    return seconds


def _count(number: float) -> str:
    power = min(max(int(math.log10(number) // 3), 0), 5)
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
