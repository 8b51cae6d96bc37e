"""Runs on some of this process's devices."""

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from tests.support.models import memory, points
from trainers import Trainer


def mesh(count, *, axis="data"):
    """Returns a mesh of the first `count` devices on one axis."""
    return Mesh(np.array(jax.devices()[:count]), (axis,))


def loss(model, batch):
    """Cross-entropy."""
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def trainer(model, devices=8, source=None, **arguments):
    """Returns a trainer on some devices, or on a mesh, by default of 101 shuffled points."""
    source = memory(points(101), shuffle=True) if source is None else source
    arguments = {"loss": loss, "batch_size": 16, "steps": 20, "log_every": 1, **arguments}
    where = mesh(devices) if isinstance(devices, int) else devices
    return Trainer(model, source, mesh=where, **arguments)


def losses(result):
    """Returns the loss of each step."""
    return [row["train/loss"] for row in result.history]
