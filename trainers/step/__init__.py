"""The step: one optimizer update as a pure function, and the compiled loop of many."""

from trainers.step.state import State
from trainers.step.step import train_step

__all__ = ["State", "train_step"]
