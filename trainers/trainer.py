"""The trainer: `Trainer(model, source).fit()`."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from clu import metrics as clu
from flax import nnx
from jax.sharding import Mesh

from trainers.callbacks import Callback
from trainers.data.adapt import as_batches, as_pipeline
from trainers.data.skipped import numbers_of
from trainers.devices import agreement, memory
from trainers.devices.arrays import as_carry
from trainers.devices.layout import Layout, outside_mesh
from trainers.devices.placement import Rule
from trainers.fit import Fit
from trainers.loop.arguments import Checkpoints, checked, integer, optional_integer
from trainers.loop.ended import Ended
from trainers.loop.inference import Inference, Model, dealt, identity
from trainers.loop.plan import Plan, end_of, variables
from trainers.report.preflight import Preflight, preflight
from trainers.report.result import Result
from trainers.step.average import Average, averaged, of, replaced
from trainers.step.model import expect_trainable, say_modes, split
from trainers.step.optimizer import plain
from trainers.step.state import State
from trainers.step.step import Update
from trainers.task.own import task_of
from trainers.weights.initialize import initialize, part_of
from trainers.workdir.store import absolute
from trainers.writers import Writer

_CHECKPOINTS = Checkpoints()


class Trainer:
    """Trains a model on a source in one compiled loop that forms its own batches.

    A step is one optimizer update; batch `t` (from 0) makes step `t + 1`. Gradient and `train/loss`
    are `sum(losses * weight * valid) / sum(weight * valid)` over the step's whole batch.

    Args:
        model: Any `nnx.Module`. It is trained in place.
        source: A source, a `Pipeline`, a `datasets.Dataset` or anything else that gives records by
            number, which is read in random order; or an iterable of records, a stream.
        loss: `(model, batch) -> losses | (losses, outputs)`, one loss a record, of shape
            `(batch,)`, or a token, of shape `(batch, tokens)`; `outputs["weight"]` of the same
            shape weighs them. A weight of 0 takes a loss out of all sums, even one that is not
            finite; its gradient is finite only if the loss's arithmetic is, so give NaN targets a
            value first: `jnp.where(weight > 0, target, 0)`. None: inferred from the features.
        optimizer: An optax transformation; None: `optax.adamw(1e-3)`.
        metrics: A `clu.metrics.Collection` class, given `**outputs, loss, labels, mask`. None:
            inferred with the loss; beside an own loss, accuracy where that returns `logits` and
            integer `labels`, else only the loss.
        eval_source: What to evaluate on: one source, or a dict of them by name.
        batch_size: Records in a step; None: the Pipeline's, else 128.
        steps: Number of steps.
        epochs: Number of epochs; at most one of the two, neither means one epoch. An epoch of a
            stream ends where the stream does.
        accumulate: Number of slices in which a step's batch is computed, to save memory.
        ema: Decay of a moving average of the parameters, such as 0.999, or a function `(optimizer's
            state, parameters) -> parameters` of an optimizer that has one itself, such as
            `optax.contrib.schedule_free_eval_params`. Evaluation, the best checkpoint, `predict`,
            `load` and `init_from` use the average. It is `float32`, holds BatchNorm's statistics,
            and its decay begins low: `min(decay, (1 + t) / (10 + t))`.
        precision: Dtype in which the model computes, `jnp.bfloat16`, in evaluation too. What it is
            called with is lowered, what it returns is raised; parameters, their updates,
            statistics, columns, losses and sums stay `float32`.
        wrt: Filter of the variables to train; the others stay as they are.
        log_every: Steps between two logs; the last step is always logged.
        eval_every: Steps between two evaluations; None: once an epoch. The last step is always
            evaluated.
        checkpoint: When to save and what to keep.
        mesh: The devices, a `jax.sharding.Mesh`; None: all of them, on one axis `data_axis`.
        data_axis: The mesh's axis, or axes, over which the rows of a batch are spread.
        sharding: How parameters and the optimizer's state are spread: `"replicate"`; `"fsdp"`,
            each along its longest axis that can be, over the mesh's axis `fsdp` or else the last
            data axis; or a function `(path, shape) -> PartitionSpec` of a parameter's path, as
            `"linear.kernel"`. A parameter's own sharding annotation goes before the first two.
        shards: Number of canonical shards: above 1, each device holds only its share of the data.
            It belongs to the run, not to its devices: any number of devices that divides it gives
            the same batches. 1: every device holds all of the data. Of a stream it is the number of
            canonical streams to which the files are dealt, each read by one process.
        workdir: Directory of checkpoints, logs and the compilation cache, local or such as
            `gs://...`. The same script with the same workdir goes on where it was. None: nothing
            is written anywhere. Steps, cadences, callbacks and devices may change in between; the
            data, its order, the batch size, the model and the optimizer may not.
        init_from: Weights to begin with, before the first step: another run's workdir, or a
            `.safetensors` file with the names `export` writes; or a `trainers.weights.Part` of
            either, for a model with another head or with LoRA. Where the workdir holds a checkpoint
            of this run, that is taken instead.
        resume_data: `"exact"`, or `"restart"` to begin other data anew with the model of the
            checkpoint.
        callbacks: Callables `run -> bool | None`, called at each log, or every `n` steps with
            `every(n, fn)`; True stops the run.
        writers: Further objects with the interface of clu's metric writers.
        profile: `(first, last)`: a JAX trace of these steps, counted from 1, is written under the
            workdir.
        log_gradient_norm: Whether to log `train/gradient_norm`, its mean over the steps since the
            last log: the norm of the gradient before the optimizer changes it.
        skip: Numbers of records to leave out, from the step on at which this run begins or goes on:
            their weight is 0, and a record that stays is computed in their place. All else stays
            bit-identical. A checkpoint remembers them. Such as `trainer.records_at(steps)`. Of a
            mixture, pairs of a source, by its place, and the number of its record.
        seed: Seed of the random numbers of training, such as dropout's, where the model's call
            takes them as `rngs`.

    On several processes each calls the same script (`trainers.initialize`), and all methods are
    called on all of them.

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
        x: float32 (batch, 1) -> predictions (batch, 1); squared error of target
        step 20/20 ...
        >>> result.status
        'finished'
    """

    @outside_mesh
    @memory.uncollected()
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
        ema: Average | None = None,
        precision: Any = None,
        wrt: Any = nnx.Param,
        log_every: int = 100,
        eval_every: int | None = None,
        checkpoint: Checkpoints = _CHECKPOINTS,
        mesh: Mesh | None = None,
        data_axis: str | tuple[str, ...] = "data",
        sharding: Rule = "replicate",
        shards: int = 1,
        workdir: Any = None,
        init_from: Any = None,
        resume_data: str = "exact",
        callbacks: Sequence[Callback] = (),
        writers: Sequence[Writer] | None = None,
        profile: tuple[int, int] | None = None,
        log_gradient_norm: bool = False,
        skip: Sequence[int] | Sequence[tuple[int, int]] | np.ndarray = (),
        seed: int = 0,
    ):
        given = checked(
            model=model,
            loss=loss,
            optimizer=optimizer,
            metrics=metrics,
            batch_size=batch_size,
            steps=steps,
            epochs=epochs,
            accumulate=accumulate,
            ema=ema,
            precision=precision,
            log_every=log_every,
            eval_every=eval_every,
            checkpoint=checkpoint,
            shards=shards,
            workdir=workdir,
            resume_data=resume_data,
            callbacks=callbacks,
            writers=writers,
            profile=profile,
            seed=seed,
        )
        self.model = model
        self._layout = layout = Layout(mesh, data_axis, sharding)
        self.pipeline = as_pipeline(source, given.batch_size, shuffle=True, shards=given.shards)
        self.batch_size = int(self.pipeline.batch_size)
        layout.expect_batch(self.batch_size, given.accumulate, dealt(self.pipeline))
        agreement.expect_same(identity(self.pipeline))
        agreement.together(lambda: memory.expect_data_fits(self.pipeline, layout.parts))
        self._batches = agreement.together(lambda: as_batches(self.pipeline, layout))
        self.steps_per_epoch = self._batches.steps_per_epoch
        self._ema: nnx.State | None = None
        self._fit: Fit | None = None  # the run that goes on
        self._ended: Ended | None = None
        self._has_begun = False
        self._task = task_of(loss, model, self._batches, metrics, precision)
        expect_trainable(model, wrt)
        say_modes(model)
        self._inference = Inference(self._task, self.pipeline, layout)
        self._plan = Plan(
            model=model,
            pipeline=self.pipeline,
            batches=copy.copy(self._batches),  # of which a run leaves out what it skips
            layout=layout,
            task=self._task,
            objective=self._task.objective(self._batches, seed=given.seed),
            update=Update(
                plain(given.optimizer), wrt, given.accumulate, given.ema, log_gradient_norm
            ),
            evaluators=self._inference.evaluators(eval_source),
            end=end_of(self._batches, self.pipeline, given.steps, given.epochs),
            log_every=given.log_every,
            eval_every=given.eval_every,
            callbacks=given.callbacks,
            checkpoint=given.checkpoint,
            workdir=None if workdir is None else absolute(workdir),
            init_from=part_of(init_from),
            writers=given.writers,
            resume_data=given.resume_data,
            profile=given.profile,
            skip=numbers_of(skip, self.pipeline.source),
        )

    @outside_mesh
    def preflight(self) -> Preflight:
        """Returns parameters, memory, FLOPs and time of the run, before its first step; `print` it.

        Compiles the train step and times a few steps on a copy of the model.

        Raises:
            ValueError: If the loss or the labels do not fit.
            MemoryError: If the run takes more memory than there is.
        """
        return preflight(self._plan)

    # --- fit -------------------------------------------------------------------------------------

    @outside_mesh
    def fit(self, *, steps: int | None = None, epochs: int | None = None) -> Result:
        """Trains the model in place, from batch 0 or the workdir's newest checkpoint on.

        A second call goes on where the first ended, or says that the run is finished.

        Args:
            steps: Another end of the run, in steps from its first one on; None: the trainer's.
            epochs: The same in epochs.

        Returns:
            The result; `result.model is model`, trained up to `result.step` also where an exception
            ends the run.

        Raises:
            ValueError: If the loss, the labels or the checkpoint do not fit.
            MemoryError: If a step takes more memory than there is.
            RuntimeError: If another run uses the workdir, or all its checkpoints are damaged.
            OSError: If the workdir cannot be written; at the end, if the last checkpoint cannot
                be: the model is trained all the same. In between, that is a warning.
        """
        self._ends(steps, epochs)
        with Fit.opened(self._plan, self._ended) as fit:
            self._fit, self._has_begun = fit, True
            try:
                status = fit()
            finally:
                self._fit, self._ended = None, fit.ended
                self._keep(fit.state)
        run = fit.run
        best, stall = run.best(self._plan.checkpoint.best), fit.clock.input_stall
        ema = averaged(self.model, self._ema, self._plan.update.wrt)
        return Result(run.step, self.model, ema, run.metrics, run.history, best, status, stall)

    def _ends(self, steps: int | None, epochs: int | None) -> None:
        steps, epochs = optional_integer("steps", steps), optional_integer("epochs", epochs)
        if steps is not None or epochs is not None:
            end = end_of(self._batches, self.pipeline, steps, epochs)
            self._plan = dataclasses.replace(self._plan, end=end)

    @property
    def steps(self) -> int | None:
        """Number of steps of the run; None while nobody knows how long a stream's epochs are."""
        return self._plan.end.expected

    def _keep(self, state: State) -> None:
        """Puts a state's variables into the model, unless an exception took them with it."""
        if not any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            average = of(state, self._plan.update.ema)
            params, rest, self._ema = self._layout.unplaced((state.params, state.rest, average))
            nnx.update(self.model, params, rest)

    # --- evaluation ------------------------------------------------------------------------------

    @outside_mesh
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
        evaluators = self._inference.evaluators(source)  # on every process: a missing one shows
        if source is None:
            evaluators = self._plan.evaluators
        if not evaluators:
            raise ValueError("There is nothing to evaluate on: write evaluate(source).")
        return self._inference.evaluate(evaluators, self._evaluated())

    @outside_mesh
    def predict(self, source: Any, fn: Callable[[nnx.Module, dict], Any] | None = None) -> Any:
        """Returns the model's outputs for every record of a source, in stored order.

        Args:
            source: A source, a `Pipeline` or a `datasets.Dataset`; it needs no label, but for a
                loss that reads it.
            fn: `(model, batch) -> outputs`, arrays of shape `(batch, ...)`; None: the model's where
                the loss is inferred, else what the loss returns beside the losses, without weights.

        Returns:
            NumPy arrays of shape `(len(source), ...)`, structured as the outputs are.

        Raises:
            ValueError: If the loss returns no outputs, or reads a column that the source lacks.
        """
        return self._inference.predict(source, fn, self._evaluated())

    @outside_mesh
    def batch_at(self, t: int) -> dict[str, np.ndarray]:
        """Returns batch `t` as step `t + 1` sees it, without the records that only fill it up.

        A stream is read from its start up to there.

        Args:
            t: Number of the batch, from 0.

        Returns:
            NumPy arrays of shape `(records, ...)`.
        """
        return self._batches.batch_at(integer("t", t, low=0))

    def records_at(self, steps: int | Iterable[int]) -> np.ndarray:
        """Returns the numbers of the records of some steps, as `skip` takes them.

        Args:
            steps: Numbers of batches, from 0 as in `batch_at`.

        Returns:
            `int64` of shape `(records,)`, step after step; of a view, rows of the source below it.
            Of a mixture `(records, 2)`: the source, by its place among `source.parts`, and its
            record.

        Raises:
            ValueError: If the source is a stream, or mixes one: its records have no numbers.
        """
        return self._batches.records_at(steps)

    def _evaluated(self) -> Model:
        """Returns the model in evaluation mode; in a callback, it is the run's."""
        if self._fit is not None:
            return self._fit.evaluated()
        if jax.process_count() > 1:
            agreement.expect_same({"the model's parameters": variables(self.model)})
        if (path := self._plan.init_from) is not None and not self._has_begun:
            agreement.together(lambda: initialize(self.model, path))
            self._has_begun = True
        definition, params, rest = split(self.model, self._plan.update.wrt, training=False)
        params, rest = replaced(self._ema, params, rest)
        return definition, *as_carry(self._layout.placement.model(params, rest))
