"""The plan of a run: the arguments of `Trainer`, checked and completed, and what tells of them."""

import dataclasses
import importlib.metadata
import inspect
import platform
import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from datarax import Pipeline
from trainers.callbacks import Callback, every
from trainers.data.batches import Batches
from trainers.data.skipped import Record
from trainers.devices import memory
from trainers.devices.arrays import without_keys
from trainers.devices.checksum import checksums
from trainers.devices.layout import Layout
from trainers.devices.variables import concrete, named
from trainers.loop.arguments import Checkpoints, expect_one_end, integer
from trainers.loop.evaluation import Evaluator
from trainers.step.objective import Objective
from trainers.step.optimizer import described
from trainers.step.step import Update
from trainers.task.own import OwnLoss
from trainers.task.task import Task
from trainers.writers import Writer

_PACKAGES = "jax", "flax", "optax", "datasets"


@dataclasses.dataclass(frozen=True)
class End:
    """Where a run ends.

    Args:
        steps: After how many steps; None where only a stream's end tells.
        epochs: After how many epochs of the stream then, else None.
        expected: After how many steps, as far as anybody knows.
    """

    steps: int | None
    epochs: int | None
    expected: int | None


def end_of(batches: Batches, pipeline: Pipeline, steps: int | None, epochs: int | None) -> End:
    """Returns where a run over some batches ends; neither `steps` nor `epochs` means one epoch.

    Raises:
        ValueError: If both are given, or `epochs` of a source that never ends.
    """
    expect_one_end(steps, epochs)
    if steps is not None:
        return End(steps, None, steps)
    epochs, per_epoch = epochs or 1, batches.steps_per_epoch
    if pipeline.source.is_endless:
        raise ValueError(
            f"A mixture never ends, so epochs={epochs} says nothing: write Trainer(..., "
            'steps=10_000), or MixedSource(..., stop="first").'
        )
    expected = None if per_epoch is None else integer("steps", epochs * per_epoch)
    return End(None, epochs, expected) if pipeline.is_stream else End(expected, None, expected)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does; the fields are as in `Trainer`, with its end in one."""

    model: nnx.Module
    pipeline: Pipeline
    batches: Batches
    layout: Layout
    task: Task | OwnLoss
    objective: Objective
    update: Update
    evaluators: dict[str, Evaluator]
    end: End
    log_every: int
    eval_every: int | None
    callbacks: tuple[Callback, ...]
    checkpoint: Checkpoints
    workdir: epath.Path | None
    init_from: Any
    writers: tuple[Writer, ...]
    resume_data: str
    profile: tuple[int, int] | None
    skip: tuple[Record, ...] = ()


def evaluation_interval(plan: Plan) -> int | None:
    """Returns the steps between two evaluations; None: at each end of a stream's epoch."""
    once_an_epoch = None if plan.pipeline.is_stream else plan.batches.steps_per_epoch
    return plan.eval_every or once_an_epoch


def metrics_of(plan: Plan) -> set[str]:
    """Returns the names of the metrics that a run logs and evaluates by itself."""
    own = vars(plan.objective.metrics.empty())
    values = ["loss", *(name for name in own if not name.startswith("_"))]
    parts = ["train/", *(f"eval/{name}/" if name else "eval/" for name in plan.evaluators)]
    names = {f"{part}{value}" for part in parts for value in values}
    names |= {"train/gradient_norm"} if plan.update.gradient_norm else set()
    return names | {"train/learning_rate"}


def decisions(plan: Plan) -> dict[str, Any]:
    """Returns what decides what a run does, the same on all its processes."""
    told = configuration(plan)
    del told["command"]  # which may name the process
    told["the model's first parameters"] = variables(plan.model)
    told["callbacks"] = [one.steps if isinstance(one, every) else "log" for one in plan.callbacks]
    told["profile"], told["skip"] = plan.profile, plan.skip
    return told


def variables(model: nnx.Module) -> dict[str, str] | None:
    """Returns checksums of a model's variables, None where the processes hold them together."""
    leaves = named(nnx.state(model))
    if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves.values()):
        return None
    numbers = {n: np.asarray(x) if np.isscalar(x) else x for n, x in concrete(leaves).items()}
    return checksums(without_keys(numbers))


def _name(value: Any) -> Any:
    """Returns a function or a class by its name, which is the same in all processes."""
    return value.__qualname__ if inspect.isroutine(value) or isinstance(value, type) else value


def configuration(plan: Plan) -> dict[str, Any]:
    """Returns what a run was told and where it runs, by name: numbers and texts."""
    batches, update, devices = plan.batches, plan.update, jax.devices()
    kinds = {"ema": update.ema, "wrt": update.wrt, "sharding": plan.layout.placement.rule}
    names = {name: _name(kind) for name, kind in kinds.items()}
    precision, mesh = plan.objective.precision, plan.layout.mesh
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return {
        "command": " ".join(sys.argv),
        "model": type(plan.model).__name__,
        "data": plan.pipeline.source.label,
        "batch_size": batches.batch_size,
        "steps": plan.end.expected,
        "epochs": plan.end.epochs,
        "loss": plan.task.name,
        "inferred": plan.task.inferred or None,
        "optimizer": described(update.optimizer),
        "accumulate": update.accumulate,
        "ema": names["ema"],
        "wrt": names["wrt"],
        "seed of the source": plan.pipeline.source.seed,
        "precision": None if precision is None else jax.numpy.dtype(precision).name,
        "log_every": plan.log_every,
        "eval_every": evaluation_interval(plan) if plan.evaluators else None,
        "checkpoint": str(plan.checkpoint),
        "workdir": str(plan.workdir),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "mesh": None if mesh is None else str(dict(mesh.shape)),
        "device memory": memory.size(memory.limit()),
        "sharding": names["sharding"],
        "shards": plan.pipeline.shards,
        "skip": f"{len(plan.skip)} records" if plan.skip else None,
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
    }
