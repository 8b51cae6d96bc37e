"""The configuration of a run, as the report and the writers show it."""

import importlib.metadata
import platform
import sys
from typing import Any

import jax

from trainers.plan import Plan

_PACKAGES = "jax", "flax", "optax", "datasets"


def configuration(plan: Plan) -> dict[str, Any]:
    """Returns what a run was told and where it runs, by name: numbers and texts."""
    batches, update, devices = plan.batches, plan.update, jax.devices()
    precision = plan.objective.precision
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return {
        "command": " ".join(sys.argv),
        "model": type(plan.model).__name__,
        "data": getattr(plan.pipeline.source, "name", None) or type(plan.pipeline.source).__name__,
        "batch_size": batches.batch_size,
        "steps": plan.steps,
        "accumulate": update.accumulate,
        "ema": update.ema,
        "precision": None if precision is None else jax.numpy.dtype(precision).name,
        "log_every": plan.log_every,
        "eval_every": plan.eval_every if plan.evaluators else None,
        "checkpoint": str(plan.checkpoint),
        "workdir": str(plan.workdir),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
    }
