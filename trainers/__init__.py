"""Trainers: ready-made training loops over `datarax` sources."""

from datarax import __version__ as __version__
from trainers.callbacks import every
from trainers.devices.distributed import initialize
from trainers.loop.arguments import Checkpoints
from trainers.report.result import Result
from trainers.sweeps.result import SweepResult
from trainers.sweeps.sweep import sweep
from trainers.trainer import Trainer
from trainers.weights.export import export
from trainers.weights.load import load

__all__ = [
    "Checkpoints",
    "Result",
    "SweepResult",
    "Trainer",
    "every",
    "export",
    "initialize",
    "load",
    "sweep",
]
