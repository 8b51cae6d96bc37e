"""Evaluation: the loss and the metrics over every record of a source, each counted once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from trainers.data.batches import Batches
from trainers.devices import agreement
from trainers.devices.arrays import as_carry
from trainers.devices.layout import Layout
from trainers.loop.clock import Pace
from trainers.step.compiled import Loop
from trainers.step.objective import Objective
from trainers.step.precision import lower, lower_params
from trainers.step.state import Window
from trainers.step.step import evaluation_step


class Evaluator:
    """Evaluates a model on one source, in stored order, in one compiled program.

    Args:
        batches: Batches of the source, in stored order.
        objective: The loss and the metrics.
        layout: The devices.
    """

    def __init__(self, batches: Batches, objective: Objective, layout: Layout):
        self._batches = batches
        self._objective = objective
        self._layout = layout
        self._loop: Loop | None = None

    def trace(self, definition: nnx.GraphDef, params: Any, rest: Any) -> None:
        """Traces the program, unless it is, which raises what is wrong with the loss or the data.

        Args:
            definition: The model's graph, in evaluation mode.
            params: Its trained parameters.
            rest: Its other variables.
        """
        if self._loop is None:
            step = evaluation_step(definition, self._objective, self._batches.rows)
            data, start = (params, rest, self._batches.data), self._start()
            shardings = self._layout.shardings(start)
            self._loop = agreement.together(lambda: Loop(step, start, data, shardings=shardings))
            agreement.expect_same_program(lambda: self._loop.lowered, "the evaluation's program")

    def __call__(
        self,
        definition: nnx.GraphDef,
        params: Any,
        rest: Any,
        ends: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Returns the loss and the metrics by name, None where the evaluation was ended.

        Args:
            definition: The model's graph, in evaluation mode.
            params: Its trained parameters.
            rest: Its other variables.
            ends: Asked every second or two, and before and after compiling, whether to end.
        """
        if ends():
            return None
        self.trace(definition, params, rest)
        self._loop.compile()
        state, pace = self._start(), Pace()
        for columns, t, end in self._batches.epoch_blocks():
            while t < end:
                if ends():
                    return None
                stop = min(t + agreement.least(pace.steps())[0], end)
                with pace.measured(stop - t):
                    state = self._loop(state, (params, rest, columns), t, stop)
                    jax.block_until_ready(state)
                t = stop
        return {name: float(value) for name, value in state[0].compute().items()}

    def _start(self):
        start = Window.empty(self._objective.metrics), self._batches.stages
        return as_carry(self._layout.replicate(start))


def predict(
    batches: Batches,
    layout: Layout,
    call: Callable[[nnx.Module, dict], Any],
    definition: nnx.GraphDef,
    params: Any,
    rest: Any,
    precision: Any = None,
) -> Any:
    """Returns `call(model, batch)` for every record, as NumPy arrays.

    Args:
        batches: Batches in stored order.
        layout: The devices.
        call: `(model, batch) -> outputs`, arrays of shape `(batch, ...)`.
        definition: The model's graph, in evaluation mode.
        params: Its trained parameters.
        rest: Its other variables.
        precision: Dtype of the computation, or None for the parameters' own.

    Returns:
        The outputs' structure, with arrays of shape `(length, ...)`; floats of a `precision` are
        `float32`.

    Raises:
        ValueError: If an output is not one row a record.
    """

    def step(params, rest, data, stages, t):
        batch, valid, stages = batches.rows(data, stages, t)
        lowered = lower(params, precision), lower_params(rest, precision)
        outputs = call(nnx.merge(definition, *lowered, copy=True), lower(batch, precision))
        for output in jax.tree.leaves(outputs):
            if output.shape[:1] != (batches.batch_size,):
                raise ValueError(
                    f"The model returns an array of shape {output.shape} for "
                    f"{batches.batch_size} records: expected (batch, ...), one row a record."
                )
        return lower(outputs, None if precision is None else jnp.float32), valid, stages

    # Every process gets all rows, whichever device computed them.
    step = jax.jit(step, out_shardings=layout.replicated)
    outputs, stages = [], layout.replicate(batches.stages)
    first = params, rest, batches.data, stages, np.int32(0)
    agreement.expect_same_program(lambda: step.lower(*first), "the prediction's program")
    for data, start, stop in batches.epoch_blocks():
        for t in range(start, stop):
            output, valid, stages = step(params, rest, data, stages, np.int32(t))
            output, valid = batches.in_order(jax.device_get((output, valid)))
            outputs.append(jax.tree.map(lambda rows, valid=valid: rows[valid], output))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)
