"""Inference: what a trainer evaluates and predicts on any source, with programs that are kept."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from datarax import Pipeline
from trainers.data.adapt import as_batches, as_pipeline
from trainers.data.batches import Batches
from trainers.devices import agreement
from trainers.devices.layout import Layout
from trainers.loop.evaluation import Evaluator, Kept, Outputs, Predictor
from trainers.task.own import OwnLoss
from trainers.task.task import Task

Model = tuple[nnx.GraphDef, nnx.State, nnx.State]
"""A model in evaluation mode: its graph, its trained parameters or their average, the rest."""


class Inference:
    """Evaluates and predicts on sources as a trainer's run does.

    Args:
        task: What the run trains for.
        pipeline: What it trains on, for the batch size and the number of shards.
        layout: The devices.
    """

    def __init__(self, task: Task | OwnLoss, pipeline: Pipeline, layout: Layout):
        self._task, self._layout = task, layout
        self._batch_size, self._shards = int(pipeline.batch_size), pipeline.shards
        self._kept = Kept()

    def evaluators(self, source: Any) -> dict[str, Evaluator]:
        """Returns an evaluator of each source by its name, which is empty for a single one.

        Args:
            source: A source, a `Pipeline` or a `datasets.Dataset`, a dict of them, or None.
        """
        sources = {} if source is None else {"": source}
        if isinstance(source, Mapping):
            sources = dict(source)
        agreement.expect_same({"the names of what to evaluate on": list(sources)})
        return {name: self._evaluator(one) for name, one in sources.items()}

    def evaluate(self, evaluators: Mapping[str, Evaluator], model: Model) -> dict[str, float]:
        """Returns the loss and the metrics on each source, under its name and `/`."""
        values = {}
        for name, evaluator in evaluators.items():
            prefix = f"{name}/" if name else ""
            found = evaluator(*model) or {}
            values |= {f"{prefix}{key}": value for key, value in found.items()}
        return values

    def predict(
        self, source: Any, call: Callable[[nnx.Module, dict], Any] | None, model: Model
    ) -> Any:
        """Returns a model's outputs for every record of a source.

        Args:
            source: A source, a `Pipeline` or a `datasets.Dataset`.
            call: `(model, batch) -> outputs`; None: what was evaluated.
            model: The model.
        """
        if call is not None and not callable(call):
            raise TypeError(
                f"predict(source, {call!r}): expected a function, as in "
                'predict(source, lambda model, batch: model(batch["x"])).'
            )

        def make() -> Predictor:
            batches = self._stored(source)
            outputs = call or self._task.predicts(nnx.merge(*model), batches)
            return Predictor(batches, outputs, self._layout, self._task.precision)

        found = self._kept.get(source, "predictor", call, make)(*model)
        return Outputs(found) if type(found) is dict else found

    def _evaluator(self, source: Any) -> Evaluator:
        def make() -> Evaluator:
            batches = self._stored(source)
            return Evaluator(batches, self._task.objective(batches), self._layout)

        return self._kept.get(source, "evaluator", None, make)

    def _stored(self, source: Any) -> Batches:
        """Returns batches of a source in stored order, dealt to shards as the training data is."""

        def stored() -> Pipeline:
            pipeline = source
            if not isinstance(source, Pipeline):
                pipeline = as_pipeline(source, self._batch_size)
                if self._shards <= (pipeline.source.length or 0):
                    pipeline = as_pipeline(pipeline.source, self._batch_size, shards=self._shards)
            self._layout.expect_batch(pipeline.batch_size, 1, dealt(pipeline))
            return pipeline

        pipeline = agreement.together(stored)
        agreement.expect_same(identity(pipeline))
        return agreement.together(lambda: as_batches(pipeline, self._layout, stored_order=True))


def identity(pipeline: Pipeline) -> dict[str, Any]:
    """Returns what names a pipeline's batches, the same on all processes of a run."""
    source = pipeline.source
    return {
        "the data's fingerprint": source.fingerprint,
        "the data's length": source.length,
        "the order": [source.is_random_order, source.seed, pipeline.shards],
        "batch_size": pipeline.batch_size,
        "the keys of the stages": jax.random.key_data(pipeline.key.get_value()).tolist(),
    }


def dealt(pipeline: Pipeline) -> int:
    """Returns to how many shards the rows on the devices are dealt; a stream's are not."""
    return 1 if pipeline.is_stream else pipeline.shards
