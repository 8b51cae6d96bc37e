"""Trainers: ready-made training loops over `datarax` sources."""

from datarax import __version__ as __version__
from trainers.arguments import Checkpoints as Checkpoints
from trainers.callbacks import every as every
from trainers.devices.distributed import initialize as initialize
from trainers.run import Result as Result
from trainers.trainer import Trainer as Trainer
from trainers.weights import export as export
from trainers.weights import load as load
