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
from trainers.arguments import Checkpoints
from trainers.callbacks import Callback, every
from trainers.data.batches import Batches
from trainers.devices import memory
from trainers.devices.arrays import without_keys
from trainers.devices.checksum import checksums
from trainers.devices.layout import Layout
from trainers.devices.variables import concrete, named
from trainers.loop.evaluation import Evaluator
from trainers.step.objective import Objective
from trainers.step.optimizer import described
from trainers.step.step import Update
from trainers.task.own import OwnLoss
from trainers.task.task import Task
from trainers.writers import Writer

_PACKAGES = "jax", "flax", "optax", "datasets"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does; the fields are as in `Trainer`."""

    model: nnx.Module
    pipeline: Pipeline
    batches: Batches
    layout: Layout
    task: Task | OwnLoss
    objective: Objective
    update: Update
    evaluators: dict[str, Evaluator]
    steps: int
    log_every: int
    eval_every: int
    callbacks: tuple[Callback, ...]
    checkpoint: Checkpoints
    workdir: epath.Path | None
    init_from: epath.Path | None
    writers: tuple[Writer, ...]
    resume_data: str
    profile: tuple[int, int] | None


def decisions(plan: Plan) -> dict[str, Any]:
    """Returns what decides what a run does, the same on all its processes."""
    told = configuration(plan)
    del told["command"]  # which may name the process
    told["the model's first parameters"] = variables(plan.model)
    told["callbacks"] = [one.steps if isinstance(one, every) else "log" for one in plan.callbacks]
    told["profile"] = plan.profile
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
        "steps": plan.steps,
        "loss": plan.task.name,
        "inferred": plan.task.inferred or None,
        "optimizer": described(update.optimizer),
        "accumulate": update.accumulate,
        "ema": names["ema"],
        "wrt": names["wrt"],
        "seed of the source": plan.pipeline.source.seed,
        "precision": None if precision is None else jax.numpy.dtype(precision).name,
        "log_every": plan.log_every,
        "eval_every": plan.eval_every if plan.evaluators else None,
        "checkpoint": str(plan.checkpoint),
        "workdir": str(plan.workdir),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "mesh": None if mesh is None else str(dict(mesh.shape)),
        "device memory": memory.size(memory.limit()),
        "sharding": names["sharding"],
        "shards": plan.pipeline.shards,
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
    }
