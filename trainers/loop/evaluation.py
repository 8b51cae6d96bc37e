"""Evaluation: the loss and the metrics over every record of a source, each counted once."""

import functools
import weakref
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
from trainers.loop.chunks import chunks
from trainers.loop.clock import Pace
from trainers.step.compiled import Loop
from trainers.step.logits import measured
from trainers.step.objective import Objective
from trainers.step.precision import entered_in, lower, lower_params
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

    def trace(self, definition: nnx.GraphDef, params: Any, rest: Any) -> Loop:
        """Returns the program, traced once, which raises what is wrong with the loss or the data.

        Args:
            definition: The model's graph, in evaluation mode.
            params: Its trained parameters.
            rest: Its other variables.
        """
        if self._loop is None:
            objective, batches, layout = self._objective, self._batches, self._layout
            data, start = (params, rest, batches.data), self._start()
            rows = batches.batch_size // layout.parts

            def traced() -> Loop:
                model = definition, params, rest
                given = objective, model, batches.spec, rows
                logits = measured(*given, gradient=False, if_large=True)
                count = 1 if logits is None else logits.slices
                step = evaluation_step(definition, objective, batches.rows, layout.slices, count)
                return Loop(step, start, data, shardings=layout.shardings(start))

            with layout.traced():
                loop: Loop = agreement.together(traced)
            agreement.expect_same_program(lambda: loop.lowered, "the evaluation's program")
            self._loop = loop
        return self._loop

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
        loop = self.trace(definition, params, rest)
        loop.compile()
        state, pace = self._start(), Pace()
        blocks = self._batches.epoch_blocks()
        for columns, t, stop in chunks(blocks, lambda _: agreement.least(pace.steps())[0]):
            if ends():
                return None
            with pace.measured(stop - t):
                state = loop(state, (params, rest, columns), t, stop)
                jax.block_until_ready(state)
        return {name: float(value) for name, value in state[0].compute().items()}

    def _start(self):
        start = Window.empty(self._objective.metrics), self._batches.stages
        return as_carry(self._layout.replicate(start))


class Predictor:
    """Computes outputs for every record of a source, in stored order, in one compiled program.

    Args:
        batches: Batches of the source, in stored order.
        call: `(model, batch) -> outputs`, arrays of shape `(batch, ...)`.
        layout: The devices.
        precision: Dtype of the computation, or None for the parameters' own.
    """

    def __init__(
        self,
        batches: Batches,
        call: Callable[[nnx.Module, dict], Any],
        layout: Layout,
        precision: Any = None,
    ):
        self._batches, self._call, self._precision = batches, call, precision
        self._layout = layout
        self._step: Callable[..., Any] | None = None

    def __call__(self, definition: nnx.GraphDef, params: Any, rest: Any) -> Any:
        """Returns the outputs' structure, with NumPy arrays of shape `(length, ...)`.

        Args:
            definition: The model's graph, in evaluation mode.
            params: Its trained parameters.
            rest: Its other variables.

        Raises:
            ValueError: If an output is not one row a record.
        """
        batches = self._batches
        stages = self._layout.replicate(batches.stages)
        if self._step is None:
            # Every process gets all rows, whichever device computed them.
            step = functools.partial(self._outputs, definition)
            step = jax.jit(step, out_shardings=self._layout.replicated)
            first = params, rest, batches.data, stages, np.int32(0)
            with self._layout.traced():
                lowered = agreement.together(lambda: step.lower(*first))
            agreement.expect_same_program(lambda: lowered, "the prediction's program")
            self._step = lowered.compile()
        compiled: Any = self._step
        outputs = []
        for data, start, stop in batches.epoch_blocks():
            for t in range(start, stop):
                output, valid, stages = compiled(params, rest, data, stages, np.int32(t))
                output, valid = batches.in_order(jax.device_get((output, valid)))
                outputs.append(jax.tree.map(lambda rows, valid=valid: rows[valid], output))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    def _outputs(self, definition, params, rest, data, stages, t):
        batch, valid, stages = self._batches.rows(data, stages, t)
        lowered = lower(params, self._precision), lower_params(rest, self._precision)
        model = entered_in(nnx.merge(definition, *lowered, copy=True), self._precision)
        outputs = self._call(model, batch)
        for output in jax.tree.leaves(outputs):
            if jnp.shape(output)[:1] != (self._batches.batch_size,):
                raise ValueError(
                    f"predict() finds an output of shape {jnp.shape(output)} for "
                    f"{self._batches.batch_size} records: expected (batch, ...), one row a record, "
                    'as of predict(source, lambda model, batch: model(batch["x"])).'
                )
        return outputs, valid, stages


class Outputs(dict[str, Any]):
    """Outputs by name; where there are `logits` it stands for them, as an array of them does.

    Example:
        >>> outputs = Outputs(logits=np.array([[0.1, 0.9], [0.8, 0.2]]))
        >>> outputs.argmax(-1)
        array([1, 0])
    """

    def argmax(self, axis: int = -1) -> np.ndarray:
        """Returns the class of the highest logit of each record."""
        return self["logits"].argmax(axis)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self["logits"], dtype, copy=copy)


class Kept:
    """What is made of sources, once each, for as long as they are alive: compiled programs."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[weakref.ref, Any, Any]] = {}

    def get(self, source: Any, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """Returns `make()` of an earlier call with this source, kind and key, else of this one.

        All processes call it together.

        Args:
            source: Any object with weak references; what is kept must not refer to it.
            kind: What is made of it; only the last key's is kept.
            key: What else it is made of.
            make: Makes it.
        """
        place = id(source), kind
        alive, before, value = self._kept.get(place, (lambda: None, None, None))
        # All processes make it where one has to: making takes agreements of all.
        if not all(agreement.least(alive() is source, before is key)):
            value = make()
            forget = functools.partial(self._forget, place)
            self._kept[place] = weakref.ref(source, forget), key, value
        return value

    def _forget(self, place: tuple[int, str], reference: weakref.ref) -> None:
        if place in self._kept and self._kept[place][0] is reference:
            del self._kept[place]
