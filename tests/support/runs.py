"""Small runs in a workdir, ended by real signals, and what they leave."""

import json
import logging
import os
import signal
from pathlib import Path

import jax
import numpy as np
import optax

from datarax import Pipeline
from tests.support.models import Normed, memory, points
from trainers import Checkpoints, Trainer, every
from trainers.workdir.store import Store


def noise(batch, key):
    """A stage that draws random numbers."""
    extra = jax.vmap(lambda key: jax.random.normal(key, (4,)))(key)
    return {"x": batch["x"] + 0.1 * extra, "label": batch["label"]}


def without_id(batch):
    """A stage for evaluation."""
    return {"x": batch["x"], "label": batch["label"]}


def loss(model, batch):
    """Cross-entropy."""
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def trainer(workdir, *, model=None, source=None, batch_size=8, **arguments):
    """Returns a trainer with Dropout, BatchNorm, Adam, a stage and an average of the parameters."""
    source = memory(points(50), shuffle=True) if source is None else source
    arguments = {
        "loss": loss,
        "optimizer": optax.adam(1e-2),
        "eval_source": Pipeline(
            source=memory(points(19, seed=1)), stages=[without_id], batch_size=8
        ),
        "ema": 0.9,
        "steps": 20,
        "log_every": 3,
        "eval_every": 5,
        "checkpoint": Checkpoints(every=4),
        **arguments,
    }
    pipeline = Pipeline(source=source, stages=[noise], batch_size=batch_size)
    return Trainer(model or Normed(), pipeline, workdir=workdir, **arguments)


def at(step, number=signal.SIGTERM):
    """Returns a callback that sends the process a signal once `step` steps are finished."""

    def strike(run):
        if run.step == step:
            os.kill(os.getpid(), number)

    return every(step, strike)


def rows(workdir: Path) -> list[dict]:
    """Returns `metrics.jsonl` without its times."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def checkpoint(workdir: Path, step: int) -> dict:
    """Returns all of a checkpoint, arrays as bytes by path."""
    store = Store(Path(workdir) / "checkpoints")
    data, run = store.read(step)
    arrays = store.restore(step, {"model": None, "training": None}, run)
    store.close()
    flat = {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree.leaves_with_path(arrays)
    }
    return {"data": data, **run, **flat}


def ruin(checkpoint: Path) -> None:
    """Cuts a checkpoint's `run` item off."""
    path = Path(checkpoint) / "run" / "metadata"
    path.write_text(path.read_text()[:100])


def said(caplog, name: str) -> list[str]:
    """Returns the warnings of one of our modules."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == name and record.levelno >= logging.WARNING
    ]
