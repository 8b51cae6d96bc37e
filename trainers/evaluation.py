"""Evaluation: the loss and the metrics over every record of a source, each counted once."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax import Pipeline
from trainers.batches import Batches
from trainers.loop import Loop
from trainers.state import Window, strong
from trainers.step import Objective, evaluation_step


class Evaluator:
    """Evaluates a model on one source, in stored order, in one compiled program.

    Args:
        pipeline: The source and its stages.
        objective: The loss and the metrics.
    """

    def __init__(self, pipeline: Pipeline, objective: Objective):
        self._batches = Batches(pipeline, stored_order=True)
        self._objective = objective
        self._loop: Loop | None = None

    def __call__(self, definition: nnx.GraphDef, params: Any, rest: Any) -> dict[str, float]:
        """Returns the loss and the metrics by name.

        Args:
            definition: The model's graph, in evaluation mode.
            params: Its trained parameters.
            rest: Its other variables.
        """
        data = (params, rest, self._batches.data)
        state = (Window.empty(self._objective.metrics), strong(self._batches.stages))
        if self._loop is None:
            step = evaluation_step(definition, self._objective, self._batches.rows)
            self._loop = Loop(step, state, data)
        window, _ = self._loop(state, data, 0, self._batches.steps_per_epoch)
        return {name: float(value) for name, value in window.compute().items()}


def predict(batches: Batches, call, definition: nnx.GraphDef, params: Any, rest: Any) -> Any:
    """Returns `call(model, batch)` for every record, as NumPy arrays.

    Args:
        batches: Batches in stored order.
        call: `(model, batch) -> outputs`, arrays of shape `(batch, ...)`.
        definition: The model's graph, in evaluation mode.
        params: Its trained parameters.
        rest: Its other variables.

    Returns:
        The outputs' structure, with arrays of shape `(length, ...)`.
    """

    @jax.jit
    def step(params, rest, data, stages, t):
        batch, _, stages = batches.rows(data, stages, t)
        return call(nnx.merge(definition, params, rest, copy=True), batch), stages

    outputs, stages = [], batches.stages
    for t in range(batches.steps_per_epoch):
        output, stages = step(params, rest, batches.data, stages, np.int32(t))
        outputs.append(jax.device_get(output))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: batches.length], *outputs)
