"""The trainer: `Trainer(model, source).fit()`."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu
from flax import nnx

from datarax import Pipeline
from datarax.errors import expect_between, listed
from trainers import task as tasks
from trainers.batches import Batches, as_pipeline
from trainers.evaluation import Evaluator, predict
from trainers.loop import Loop
from trainers.metrics import Empty
from trainers.pace import Pace
from trainers.progress import Progress
from trainers.result import Result
from trainers.state import State, Window, strong
from trainers.step import Objective, Update, train_step


class Trainer:
    """Trains a model on a source in one compiled loop that forms its own batches.

    A step is one optimizer update; batch `t` (from 0) makes step `t + 1`. Gradient and `train/loss`
    are `sum(losses * weight * valid) / sum(weight * valid)` over the step's whole batch.

    Args:
        model: Any `nnx.Module`. It is trained in place.
        source: A source, a `Pipeline`, or a `datasets.Dataset`, which is read in random order.
        loss: `(model, batch) -> losses | (losses, outputs)`, one loss a record, of shape
            `(batch,)`, or a token, of shape `(batch, tokens)`; `outputs["weight"]` of the same
            shape weighs them. A weight of 0 takes a loss out of all sums, even one that is not
            finite; its gradient is finite only if the loss's arithmetic is, so give NaN targets a
            value first: `jnp.where(weight > 0, target, 0)`. None: inferred from the features.
        optimizer: An optax transformation; None: `optax.adamw(1e-3)`.
        metrics: A `clu.metrics.Collection` class, given `**outputs, loss, labels, mask`. None:
            inferred with the loss, and only the loss where that is given.
        eval_source: What to evaluate on: one source, or a dict of them by name.
        batch_size: Records in a step; None: the Pipeline's, else 128.
        steps: Number of steps.
        epochs: Number of epochs; at most one of the two, neither means one epoch.
        accumulate: Number of slices in which a step's batch is computed, to save memory.
        ema: Decay of a moving average of the parameters, such as 0.999; evaluation uses it.
        precision: Dtype of the computation, `jnp.bfloat16`, in evaluation too; parameters, their
            updates, statistics, labels and sums stay `float32`.
        wrt: Filter of the variables to train.
        log_every: Steps between two logs; the last step is always logged.
        eval_every: Steps between two evaluations; None: once an epoch. The last step is always
            evaluated.
        callbacks: Callables `run -> bool | None`, called at each log; True stops the run.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If arguments contradict each other, or nothing can be inferred.

    Example:
        >>> class Linear(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.layer = nnx.Linear(1, 1, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.layer(x)
        >>> x = np.arange(8.0)[:, None]
        >>> source = MemorySource(MemorySourceConfig(), {"x": x, "target": 2 * x[:, 0]})
        >>> result = Trainer(Linear(nnx.Rngs(0)), source, steps=20).fit()  # doctest: +ELLIPSIS
        step 20/20 ...
        >>> result.status
        'finished'
    """

    def __init__(
        self,
        model: nnx.Module,
        source: Any,
        *,
        loss: Callable[[nnx.Module, dict], Any] | None = None,
        optimizer: optax.GradientTransformation | None = None,
        metrics: type[clu.Collection] | None = None,
        eval_source: Any = None,
        batch_size: int | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        accumulate: int = 1,
        ema: float | None = None,
        precision: Any = None,
        wrt: Any = nnx.Param,
        log_every: int = 100,
        eval_every: int | None = None,
        callbacks: Any = (),
    ):
        if not isinstance(model, nnx.Module):
            raise TypeError(f"model is a {type(model).__name__}: expected a flax nnx.Module.")
        if steps is not None and epochs is not None:
            raise ValueError(f"steps={steps} and epochs={epochs}: give one of the two.")
        for name, value in {"steps": steps, "epochs": epochs, "eval_every": eval_every}.items():
            if value is not None:
                expect_between(name, value, 1, 2**31 - 1)
        expect_between("log_every", log_every, 1, 2**31 - 1)
        expect_between("accumulate", accumulate, 1, 2**31 - 1)
        if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(
                f"optimizer is a {type(optimizer).__name__}: expected an optax transformation, "
                "such as optimizer=optax.adamw(1e-3)."
            )
        if precision is not None and jnp.dtype(precision) == jnp.float16:
            raise ValueError(
                "precision=float16 overflows without loss scaling: write precision=jnp.bfloat16."
            )
        self.model = model
        self.pipeline = as_pipeline(source, batch_size, shuffle=True)
        self._batches = Batches(self.pipeline)
        self._rows = jax.jit(self._batches.rows)
        self.batch_size = self._batches.batch_size
        if self.batch_size % accumulate:
            raise ValueError(
                f"accumulate={accumulate} does not divide batch_size={self.batch_size}: each slice "
                "has the same number of records."
            )
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.steps = steps or (epochs or 1) * self.steps_per_epoch
        expect_between("steps", self.steps, 1, 2**31 - 1)
        self._log_every = log_every
        self._eval_every = eval_every or self.steps_per_epoch
        self._callbacks = tuple(callbacks)
        self._update = Update(optimizer or optax.adamw(1e-3), wrt, accumulate, ema)
        self._ema: nnx.State | None = None
        self._task, self._objective = self._infer(loss, metrics, precision)
        _expect_trainable(model, wrt)
        self._evaluators = self._evaluators_of(eval_source)

    def _infer(self, loss, metrics, precision) -> tuple[tasks.Task | None, Objective]:
        features = _features(self.pipeline)
        if loss is None:
            task = tasks.infer(self.model, features, self._batches, precision)
            return task, Objective(task.loss, metrics or task.metrics, task.label, precision)
        found = tasks.labels(features, self._batches.spec)
        label = found[0] if len(found) == 1 else None
        return None, Objective(loss, metrics or Empty, label, precision)

    def _objective_on(self, batches: Batches) -> Objective:
        """Returns the objective, which raises where the source's labels do not fit the logits."""
        column = self._task.classes if self._task else None
        extent = batches.extent(column) if column in batches.spec else None
        if extent is None:
            return self._objective
        loss = tasks.bounded(self._objective.loss, column, extent)
        return dataclasses.replace(self._objective, loss=loss)

    def _evaluators_of(self, source: Any) -> dict[str, Evaluator]:
        evaluators = {}
        for name, one in _named(source).items():
            batches = Batches(as_pipeline(one, self._size_for(one)), stored_order=True)
            evaluators[name] = Evaluator(batches, self._objective_on(batches))
        return evaluators

    # --- fit -------------------------------------------------------------------------------------

    def fit(self) -> Result:
        """Trains the model in place, from batch 0 on.

        Returns:
            The result; `result.model is model`, trained up to `result.step` also where an exception
            ends the run.
        """
        state = self._start()
        # Tracing comes before compiling, and finds what is wrong with the losses and the data.
        loop = self._trace(state)
        for evaluator in self._evaluators.values():
            evaluator.trace(*self._evaluated(state))
        loop.compile()
        pace = Pace()
        progress = Progress(self.steps, self.batch_size)
        history: list[dict[str, Any]] = []
        status, t = "finished", 0
        try:
            while t < self.steps and status == "finished":
                # 1. A chunk of steps: up to the next boundary, or about two seconds.
                stop = min(self._next_boundary(t), t + pace.steps())
                begun = time.perf_counter()
                state = loop(state, self._batches.data, t, stop)
                jax.block_until_ready(state.loss)
                pace.note(stop - t, time.perf_counter() - begun)
                t = stop
                progress.advance(t)

                # 2. Logs, at exact steps: the window's metrics, then the evaluation.
                row: dict[str, Any] = {}
                if self._due(t, self._log_every):
                    row |= _prefixed("train/", state.window.compute())
                    window = Window.empty(self._objective.metrics)
                    state = dataclasses.replace(state, window=window)
                if self._evaluators and self._due(t, self._eval_every):
                    row |= self._evaluate(state)
                if row:
                    row = {"step": t, "epoch": t / self.steps_per_epoch, **row}
                    history.append(row)
                    progress.report(row)
        finally:
            progress.close()
            self._keep(state)
        metrics = {k: v for row in history for k, v in row.items() if k not in ("step", "epoch")}
        return Result(t, self.model, self._averaged(state), metrics, history, None, status)

    def _start(self) -> State:
        _, params, rest = _split(self.model, self._update.wrt)
        params, rest = strong((params, rest))
        return State(
            params=params,
            rest=rest,
            optimizer=strong(self._update.optimizer.init(params)),
            ema=None if self._update.ema is None else strong(params),
            stages=strong(self._batches.stages),
            window=Window.empty(self._objective.metrics),
            loss=jnp.zeros(()),
        )

    def _trace(self, state: State) -> Loop:
        definition = _definition(self.model, self._update.wrt, training=True)
        objective = self._objective_on(self._batches)
        step = train_step(definition, objective, self._update, self._batches.rows)
        loop = Loop(step, state, self._batches.data)
        if loop.from_python and self._update.accumulate > 1:
            # The slices' own loop would be as slow as the steps'.
            loop = Loop(functools.partial(step, unroll=True), state, self._batches.data)
        return loop

    def _keep(self, state: State) -> None:
        """Puts a state's variables into the model, unless an exception took them with it."""
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            nnx.update(self.model, state.params, state.rest)
            self._ema = state.ema

    def _next_boundary(self, t: int) -> int:
        every = [self._log_every, *([self._eval_every] if self._evaluators else [])]
        return min(self.steps, *(t - t % n + n for n in every))

    def _due(self, t: int, every: int) -> bool:
        return t % every == 0 or t == self.steps

    # --- evaluation ------------------------------------------------------------------------------

    def _evaluate(self, state: State) -> dict[str, float]:
        row = {}
        for name, evaluator in self._evaluators.items():
            prefix = f"eval/{name}/" if name else "eval/"
            row |= _prefixed(prefix, evaluator(*self._evaluated(state)))
        return row

    def _evaluated(self, state: State | None = None):
        """Returns the model in evaluation mode: its graph, its parameters or their average, and
        its other variables."""
        if state is None:
            definition, params, rest = _split(self.model, self._update.wrt, training=False)
            params, rest = strong((params, rest))
            return definition, params if self._ema is None else self._ema, rest
        definition = _definition(self.model, self._update.wrt, training=False)
        return definition, state.params if state.ema is None else state.ema, state.rest

    def evaluate(self, source: Any = None) -> dict[str, float]:
        """Returns the loss and the metrics of the model over every record of a source.

        Args:
            source: A source, a `Pipeline` or a `datasets.Dataset`, or a dict of them; None: the
                trainer's `eval_source`.

        Returns:
            `{"loss": ..., "accuracy": ...}`; of a dict, the names begin with the source's and `/`.

        Raises:
            ValueError: If there is no source.
        """
        evaluators = self._evaluators if source is None else self._evaluators_of(source)
        if not evaluators:
            raise ValueError("There is nothing to evaluate on: write evaluate(source).")
        model = self._evaluated()
        values = {}
        for name, evaluator in evaluators.items():
            values |= _prefixed(f"{name}/" if name else "", evaluator(*model))
        return values

    def predict(self, source: Any) -> Any:
        """Returns the model's outputs for every record of a source, in stored order.

        Args:
            source: A source, a `Pipeline` or a `datasets.Dataset`; it needs no label.

        Returns:
            NumPy arrays of shape `(len(source), ...)`, structured as the model returns them.
        """
        pipeline = as_pipeline(source, self._size_for(source))
        batches = Batches(pipeline, stored_order=True)
        label = self._objective.label or next((n for n in tasks.LABELS if n in batches.spec), None)
        precision = self._objective.precision
        call = tasks.Inputs(self.model, batches, _features(pipeline), label, precision)
        return predict(batches, call, *self._evaluated(), precision)

    def _size_for(self, source) -> int | None:
        return None if isinstance(source, Pipeline) else self.batch_size

    def batch_at(self, t: int) -> dict[str, np.ndarray]:
        """Returns batch `t` as step `t + 1` sees it, without the records that only fill it up.

        Args:
            t: Number of the batch, from 0.

        Returns:
            NumPy arrays of shape `(records, ...)`.
        """
        expect_between("t", t, 0, 2**31 - 1)
        batch, valid, _ = jax.device_get(
            self._rows(self._batches.data, self._batches.stages, np.int32(t))
        )
        return jax.tree.map(lambda x: x[valid], dict(batch))

    def _averaged(self, state: State) -> nnx.Module | None:
        if state.ema is None:
            return None
        model = nnx.clone(self.model)
        nnx.update(model, state.ema)
        return model


def _features(pipeline: Pipeline) -> Mapping[str, Any]:
    return getattr(pipeline.source, "features", None) or {}


def _expect_trainable(model: nnx.Module, wrt: Any) -> None:
    """Raises unless the filter `wrt` selects floating-point variables of the model."""
    _, params, rest = _split(model, wrt)
    found = jax.tree.leaves_with_path(params)
    kinds = sorted({type(v).__name__ for _, v in nnx.to_flat_state(rest)})
    if not found:
        raise ValueError(
            f"wrt={wrt} selects none of the model's variables, which are {listed(kinds) or 'none'}"
            ": there is nothing to train. Write wrt=nnx.Param, and a model that has some."
        )
    for path, leaf in found:
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            raise ValueError(
                f"wrt={wrt} selects {jax.tree_util.keystr(path)} of {jnp.asarray(leaf).dtype}, "
                "which has no gradient: write a narrower filter, such as wrt=nnx.Param."
            )


def _split(model: nnx.Module, wrt: Any, *, training: bool | None = None):
    """Returns the graph, the trained and the other variables; the model itself stays as it is."""
    model = nnx.clone(model)
    if training is not None:
        model.train() if training else model.eval()
    nnx.pop(model, nnx.Intermediate)  # what `sow` left would grow from step to step
    return nnx.split(model, wrt, ...)


def _definition(model: nnx.Module, wrt: Any, *, training: bool) -> nnx.GraphDef:
    return _split(model, wrt, training=training)[0]


def _named(source: Any) -> dict[str, Any]:
    """Returns sources by name; a single one has the empty name."""
    if source is None:
        return {}
    return dict(source) if isinstance(source, Mapping) else {"": source}


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}{name}": float(value) for name, value in values.items()}
