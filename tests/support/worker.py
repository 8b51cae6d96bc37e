"""What each process of a run does in the tests of several processes."""

import contextlib
import hashlib
import itertools
import logging
import os
import signal
import sys
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL.PngImagePlugin import PngImageFile

from datarax import HFEagerSource, Pipeline
from tests.support.models import MLP, Diary, arrays, called, memory, noted_loss, points
from tests.support.runs import ruin
from trainers import Checkpoints, Trainer, every, load
from trainers.weights import export

STEPS, SIZE = 24, 16


def noise(batch, key):
    """A stage that draws random numbers."""
    extra = jax.vmap(lambda key: jax.random.normal(key, (4,)))(key)
    return {**batch, "x": batch["x"] + 0.1 * extra}


def loss(model, batch):
    """Cross-entropy."""
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def diary(workdir=None, *, n=101, shards=1, steps=STEPS, **arguments):
    """Returns a trainer of a model that writes down the records of its batches."""
    pipeline = Pipeline(
        source=memory(points(n), shuffle=True), stages=[noise], batch_size=SIZE, shards=shards
    )
    arguments = {
        "loss": noted_loss,
        "optimizer": optax.adam(1e-2),
        "log_every": 1,
        "checkpoint": Checkpoints(every=4, keep=9),
        **arguments,
    }
    return Trainer(Diary(MLP(), steps, SIZE), pipeline, steps=steps, workdir=workdir, **arguments)


def plain(data=None, **arguments):
    """Returns a trainer of an MLP."""
    source = memory(points(101) if data is None else data, shuffle=True)
    return Trainer(MLP(), source, **{"loss": loss, "batch_size": SIZE, "steps": 4, **arguments})


def records(model):
    """Returns the records of each step's batch, in order."""
    return np.sort(np.asarray(model.records[...]), axis=1).tolist()


def losses(result):
    """Returns the loss of each step."""
    return [row["train/loss"] for row in result.history]


# --- the same on all layouts ---------------------------------------------------------------------


def layout(n, shards, sharding="replicate", steps=100):
    """Returns what some steps give, and evaluation and prediction."""
    one = diary(n=n, shards=shards, sharding=sharding, steps=steps)
    batches = [one.batch_at(t) for t in range(2 * one.steps_per_epoch)]
    result = one.fit()
    source = memory(points(37, seed=1), shuffle=True)
    other = plain(shards=shards, sharding=sharding)
    return {
        "batches": [hashlib.sha256(batch["x"].tobytes()).hexdigest() for batch in batches],
        "ids": [batch["id"].tolist() for batch in batches],
        "records": records(result.model),
        "losses": losses(result),
        "evaluate": other.evaluate(source),
        "predict": other.predict(source, called).tolist(),
    }


def decoded(folder):
    """Returns how many images this process decodes to train on its rows of them."""
    count, load_end = itertools.count(), PngImageFile.load_end

    def counted(image):
        next(count)
        return load_end(image)

    PngImageFile.load_end = counted
    try:
        source = HFEagerSource.from_dataset(datasets.load_from_disk(folder), shuffle=True)
        one = Trainer(_Flat(), source, loss=_pixels, batch_size=SIZE, steps=9, shards=8)
        seen = [one.batch_at(t)["label"].tolist() for t in range(one.steps_per_epoch)]
        value = one.fit().metrics["train/loss"]
    finally:
        PngImageFile.load_end = load_end
    labels = one._batches.data[0]["label"].addressable_shards  # each row has its own
    held = np.unique(np.concatenate([part.data.reshape(-1) for part in labels]))
    return {"decoded": next(count), "held": len(held), "seen": sum(seen, []), "loss": value}


class _Flat(MLP):
    def __init__(self):
        super().__init__(features=6 * 6 * 3)


def _pixels(model, batch):
    pixels = batch["image"].reshape(len(batch["image"]), -1) / 255.0
    return optax.softmax_cross_entropy_with_integer_labels(model(pixels), batch["label"] % 3)


# --- workdirs ------------------------------------------------------------------------------------


def go_on(workdir, step=None, number=signal.SIGTERM, process=1, shards=1):
    """Runs or resumes; one process gets a signal after `step` steps."""

    def strike(run):
        if run.step == step and jax.process_index() == process:
            os.kill(os.getpid(), number)

    written = []
    sys.addaudithook(lambda event, given: event == "open" and written.append(given))
    callbacks = [] if step is None else [every(step, strike)]
    result = diary(workdir, callbacks=callbacks, shards=shards).fit()
    logs = [file for file, mode, _ in written if str(file).endswith("jsonl") and mode in ("a", "w")]
    return {
        "status": result.status,
        "step": result.step,
        "records": records(result.model),
        "losses": losses(result),
        "writes": len(logs),
    }


def spread(workdir):
    """Trains a model that the processes hold together, which disagree on what is best."""

    def judge(run):
        best = 5 if jax.process_index() == 0 else 3
        run.history[-1]["mine"] = -abs(run.step - best)

    result = diary(
        workdir,
        steps=8,
        sharding="fsdp",
        callbacks=[judge],
        checkpoint=Checkpoints(every=4, best=("mine", "max")),
    ).fit()
    kernel = result.model.inner.hidden.kernel[...]
    export(result.model, f"{workdir}/model.safetensors")
    model = Diary(MLP(seed=1), 8, SIZE)
    return {
        "whole": kernel.is_fully_addressable,
        "best": result.best,
        "loaded": digest(load(workdir, model)),
        "exported": digest(load(f"{workdir}/model.safetensors", model)),
        "losses": losses(result),
    }


def digest(model):
    """Returns a hash of a model's parameters."""
    found = arrays(nnx.state(model, nnx.Param))
    return hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest()


def loaded(workdir):
    """Returns a hash of the parameters of a run, as a model and as what another begins with."""
    begun = diary(init_from=workdir, steps=8, optimizer=optax.set_to_zero())
    begun.fit()
    return [digest(load(workdir, Diary(MLP(seed=1), 8, SIZE))), digest(begun.model)]


def diverge(bad=33):
    """Trains on a record whose loss is not finite; returns what is said of it, and where it is."""

    def spoilt(model, batch):
        return jnp.where(batch["id"] == bad, jnp.nan, loss(model, batch))

    one = plain(loss=spoilt, shards=8, sharding="fsdp", steps=9)
    batches = [one.batch_at(t)["id"].tolist() for t in range(one.steps_per_epoch)]
    t = next(t for t, ids in enumerate(batches) if bad in ids)
    with _warnings("trainers.fit") as said:
        result = one.fit()
    return {"found": [result.status, result.step], "at": [t, batches[t].index(bad)], "said": said}


def mend(workdir):
    """Goes on after the newest checkpoint was damaged; returns what was said of it, too."""
    with _warnings("trainers.workdir.store") as said:
        if jax.process_index() == 0:
            newest = max(int(path.name) for path in Path(workdir, "checkpoints").iterdir())
            ruin(Path(workdir, "checkpoints", str(newest)))
        result = diary(workdir).fit()
    return {"status": result.status, "records": records(result.model), "said": said}


@contextlib.contextmanager
def _warnings(name):
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(name).addHandler(handler)
    yield said
    logging.getLogger(name).removeHandler(handler)


# --- what differs --------------------------------------------------------------------------------


def disagree(what):
    """Trains with something that is other on process 1."""
    other, data, steps = jax.process_index() == 1, points(101), []
    arguments, seed, model = {}, 7, MLP()
    if what == "data":
        data["x"][100, 0] += other
    elif what == "length":
        data = points(101 - other)
    elif what == "seed":
        seed += other
    elif what == "parameters":
        model = MLP(seed=int(other))
    elif what == "loss":
        arguments["loss"] = (lambda model, batch: 2 * loss(model, batch)) if other else loss
    elif what == "evaluation data":
        arguments["eval_source"] = memory(points(64 if other else 16))
    elif what == "evaluation names":
        arguments["eval_source"] = {"b" if other else "a": memory(points(16))}
    elif what != "callbacks":
        values = {"shards": (1, 4), "batch_size": (16, 32), "steps": (4, 5), "accumulate": (1, 2)}
        values |= {"log_every": (100, 2), "ema": (0.9, 0.99), "workdir": ("one", "other")}
        arguments[what] = values[what][other]
    cadence = 2 if what == "callbacks" and other else 1
    arguments["callbacks"] = [every(cadence, lambda run: steps.append(run.step))]
    arguments = {"loss": loss, "batch_size": SIZE, "steps": 4, **arguments}
    try:
        Trainer(model, memory(data, shuffle=True, seed=seed), **arguments).fit()
    finally:
        assert steps == []  # it is found before step 0


def evaluate_other(kind, what):
    """Evaluates, or predicts, with something that is other on process 1."""
    other, source, stages = jax.process_index() == 1, memory(points(16)), [noise]
    own = plain(eval_source=source)
    if what == "data":
        source = memory(points(64 if other else 16))
    elif what == "no source":
        source = None if other else source
    elif what == "names":
        source = {"b" if other else "a": source}
    elif what == "a type":
        source = 3 if other else source
    elif what == "a stage":
        stages = [(lambda batch: {**batch, "x": 2 * batch["x"]}) if other else _as_it_is]
        source = Pipeline(source=source, stages=stages, batch_size=SIZE)
    elif what == "a stage that fails":
        stages = [_failing if other else _as_it_is]
        source = Pipeline(source=source, stages=stages, batch_size=SIZE)
    elif what == "parameters":
        nnx.update(own.model, nnx.state(MLP(seed=int(other))))
    if kind == "predict":
        own.predict(source, lambda model, batch: model(batch["x"]))
    else:
        own.evaluate(source)


def _as_it_is(batch):
    return dict(batch)


def _failing(batch):
    raise ZeroDivisionError("in a stage")


def stopped():
    """Stops where a callback says so on process 1 alone."""
    result = diary(
        eval_every=4,
        eval_source=memory(points(37)),
        callbacks=[every(3, lambda run: run.step == 6 and jax.process_index() == 1)],
    ).fit()
    return [result.status, result.step, sorted(result.history[-1])]


def failing(what):
    """Runs a callback that raises, or leaves what is no number, on process 1 alone."""

    def fail(run):
        if jax.process_index() == 1:
            if what == "raises":
                raise ZeroDivisionError("in a callback")
            if what == "answers":
                return np.zeros(2)
            run.history[-1]["mine"] = "text"

    diary(callbacks=[every(5, fail)]).fit()


def broken(folder):
    """Trains on images of which one, in the rows of one process only, is damaged."""
    source = HFEagerSource.from_dataset(datasets.load_from_disk(folder), shuffle=True)
    Trainer(_Flat(), source, loss=_pixels, batch_size=SIZE, steps=4, shards=8)
