"""Runs and states whose saved form later versions must read; `tests/data` holds what 0.1.0 saved.

    PYTHONPATH=CHECKOUT_OF_0.1.0 python tests/support/old_runs.py tests/data

Only public names are used, so that the same lines run on any version.
"""

import json
import os
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

import datasets
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu
from flax import nnx

from datarax import (
    HFEagerSource,
    HFStreamingConfig,
    HFStreamingSource,
    MemorySource,
    MemorySourceConfig,
    MixedSource,
    Pipeline,
)
from trainers import Checkpoints, Result, Trainer, every

STEPS, STOP, BATCH_SIZE, RECORDS = 20, 11, 8, 50  # 7 steps an epoch: step 11 is within epoch 1
KEPT = "checkpoints", "best", "metrics.jsonl"


class Diary(nnx.Module):
    """Two layers; writes the records of each step's batch into its own state."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)
        self.records = nnx.Variable(jnp.full((STEPS, BATCH_SIZE), -1, jnp.int32))
        self.step = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))

    def write(self, records):
        self.records[...] = self.records[...].at[self.step[...]].set(records)
        self.step[...] += 1


class NormedDiary(Diary):
    """A `Diary` with BatchNorm and Dropout."""

    def __init__(self):
        super().__init__()
        rngs = nnx.Rngs(params=1, dropout=2)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.norm(nnx.tanh(self.hidden(x)))))


@flax.struct.dataclass
class Measures(clu.Collection):
    """Two metrics."""

    accuracy: clu.Accuracy
    loss_again: clu.Average.from_output("loss")


def points(count: int = RECORDS, *, first: int = 0) -> dict[str, np.ndarray]:
    """Returns columns `x`, `label` and `id`: arithmetic, so the same on every version of NumPy."""
    ids = np.arange(first, first + count, dtype=np.int32)
    x = (ids[:, None] * np.array([7, 11, 13, 17]) % 32 / 16 - 1).astype(np.float32)
    return {"x": x, "label": (ids % 3).astype(np.int32), "id": ids}


def memory(*, shuffle: bool = True, seed: int = 7, **which: int) -> MemorySource:
    return MemorySource(MemorySourceConfig(shuffle=shuffle, seed=seed), points(**which))


def table() -> datasets.Dataset:
    columns = {name: column.tolist() for name, column in points().items()}
    features = datasets.Features(
        {
            "x": datasets.List(datasets.Value("float32"), length=4),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "id": datasets.Value("int32"),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def stream(**fields) -> HFStreamingSource:
    parts = table().to_iterable_dataset(num_shards=5)
    fields = {"shuffle": True, "seed": 7, "shuffle_buffer_size": 12, **fields}
    return HFStreamingSource.from_dataset(parts, **fields)


def noise(batch, key):
    """A stage that draws."""
    extra = jax.vmap(lambda key: jax.random.normal(key, (4,)))(key)
    return {**batch, "x": batch["x"] + 0.1 * extra}


def loss(model, batch):
    logits = model(batch["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses, {"logits": logits, "labels": batch["label"]}


def noted_loss(model, batch):
    training = len(batch["id"]) == BATCH_SIZE  # evaluation has batches of 5
    if training:
        model.write(batch["id"])
    losses, outputs = loss(model, batch)
    # Without outputs nothing is inferred beside the loss, in any version.
    return (losses, outputs) if isinstance(model, NormedDiary) else losses


# What differs between the three runs. With `ema=0.5` the decay is 0.5 from step 8 on, also where it
# grows as `(1 + t) / (10 + t)`.
RUNS = {
    "plain": lambda: (Diary(), memory(), {"checkpoint": Checkpoints(every=4, keep=1)}),
    "full": lambda: (
        NormedDiary(),
        Pipeline(source=memory(), stages=[noise], batch_size=BATCH_SIZE, rngs=nnx.Rngs(5)),
        {
            "ema": 0.5,
            "metrics": Measures,
            "eval_source": Pipeline(
                source=memory(shuffle=False, count=19, first=100), stages=[], batch_size=5
            ),
            "eval_every": 5,
            "checkpoint": Checkpoints(every=4, keep=1, best=("eval/loss", "max")),  # step 5's
        },
    ),
    "stream": lambda: (Diary(), stream(), {"checkpoint": Checkpoints(every=4, keep=1)}),
}


def trainer(name: str, workdir: Path | None = None, **arguments) -> Trainer:
    """Returns the trainer of one of the `RUNS`."""
    model, source, given = RUNS[name]()
    given |= {} if isinstance(source, Pipeline) else {"batch_size": BATCH_SIZE}
    return Trainer(
        model,
        source,
        loss=noted_loss,
        optimizer=optax.adam(1e-2),
        steps=STEPS,
        log_every=3,
        workdir=workdir,
        **given,
        **arguments,
    )


def outcome(result: Result) -> dict:
    """Returns the numbers at a run's end, JSON-able."""
    history = [{k: v for k, v in row.items() if k != "time"} for row in result.history]
    return {
        "arrays": _lists(nnx.state(result.model, nnx.Not(nnx.RngState))),
        "ema": None if result.ema is None else _lists(nnx.state(result.ema, nnx.Param)),
        "history": history,
        "best": result.best,
    }


def _lists(state: nnx.State) -> dict[str, list]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf).tolist()
        for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(state))
    }


# --- states of sources ---------------------------------------------------------------------------


def files(folder: Path) -> HFStreamingSource:
    """Returns a stream of three Parquet files, which it writes."""
    for part in range(3):
        table().select(range(17 * part, min(17 * part + 17, RECORDS))).to_parquet(
            folder / f"train-{part}.parquet"
        )
    config = HFStreamingConfig(
        name=str(folder),
        split="train",
        streaming=True,
        shuffle=True,
        seed=7,
        shuffle_buffer_size=12,
    )
    return HFStreamingSource(config)


def mapped() -> HFStreamingSource:
    """Returns a stream whose rows pass through Python."""
    rows = table().to_iterable_dataset(num_shards=5).map(lambda row: {"twice": 2 * row["id"]})
    return HFStreamingSource.from_dataset(rows, shuffle=True, seed=7, shuffle_buffer_size=12)


SOURCES = {
    "memory": lambda _: memory(),
    "eager": lambda _: HFEagerSource.from_dataset(table(), shuffle=True, seed=7),
    "table": lambda _: HFStreamingSource.from_dataset(table(), shuffle=True, seed=7),
    "stream": lambda _: stream(),
    "stored": lambda _: stream(shuffle=False),
    "mapped": lambda _: mapped(),
    "files": files,
    "mixed": lambda _: MixedSource([memory(), memory(seed=9, count=30, first=100)], [0.75, 0.25]),
    "mixed streams": lambda _: MixedSource([stream(), stream(seed=8)], [0.5, 0.5]),
}
BEFORE, AFTER = 9, 9  # batches before and after the state is taken; 7 an epoch


def following(source) -> list[list[int]]:
    """Returns the ids of the next batches."""
    return [np.asarray(source.get_batch(BATCH_SIZE)["id"]).tolist() for _ in range(AFTER)]


def stateful(source) -> dict:
    """Returns a state within epoch 1, and the ids of the batches after it."""
    for _ in range(BEFORE):
        source.get_batch(BATCH_SIZE)
    state = json.loads(json.dumps(source.get_state()))
    return {"state": state, "next": following(source)}


def _save(folder: Path) -> None:
    for name in RUNS:
        with tempfile.TemporaryDirectory() as workdir:
            _stop(name, Path(workdir))
            _pack(Path(workdir), folder / f"{name}.tar.gz")
        whole = outcome(trainer(name).fit())
        (folder / f"{name}.json").write_text(json.dumps(whole))
    states = {}
    for name, make in SOURCES.items():
        with tempfile.TemporaryDirectory() as data:
            states[name] = stateful(make(Path(data)))
    (folder / "states.json").write_text(json.dumps(states))


def _stop(name: str, workdir: Path) -> None:
    def strike(run):
        if run.step == STOP:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = trainer(name, workdir, callbacks=[every(STOP, strike)]).fit()
    assert (stopped.status, stopped.step) == ("preempted", STOP), stopped


def _pack(workdir: Path, path: Path) -> None:
    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    for file in workdir.rglob("commit_success.txt"):
        file.write_text("")  # it names the folder that was saved to; Orbax asks if it exists
    with tarfile.open(path, "w:gz") as archive:
        for kept in KEPT:
            if (workdir / kept).exists():
                archive.add(workdir / kept, kept, filter=anonymous)


if __name__ == "__main__":
    _save(Path(sys.argv[1]))
