"""Trainers: ready-made training loops over `datarax` sources."""

from trainers.result import Result as Result
from trainers.trainer import Trainer as Trainer
