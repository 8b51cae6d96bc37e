"""Sweeps: several runs of one model trained together, in one compiled program."""

from trainers.sweeps.result import SweepResult
from trainers.sweeps.sweep import sweep

__all__ = ["SweepResult", "sweep"]
