"""What each process of a run on a stream does in the tests of several processes."""

import hashlib
import os
import signal
import time

import datasets
import jax
import optax
import pyarrow.parquet as pq

from datarax import HFStreamingSource, Pipeline
from tests.support.models import MLP, Diary, called, noted_loss, points
from tests.support.worker import SIZE, loss, losses, noise, records
from trainers import Checkpoints, Trainer, every

ROWS = (30, 1, 0, 17, 4, 26, 16, 7)  # of the files: streams end where they like
STEPS = 24


def save(folder, rows=ROWS):
    """Saves the stream's files, and returns their folder."""
    data, begin = points(sum(rows)), 0
    for number, count in enumerate(rows):
        part = {name: column[begin : begin + count] for name, column in data.items()}
        features = datasets.Features(
            {
                "x": datasets.List(datasets.Value("float32"), length=4),
                "label": datasets.Value("int32"),
                "id": datasets.Value("int32"),
            }
        )
        table = datasets.Dataset.from_dict(part, features=features).data.table
        with pq.ParquetWriter(f"{folder}/{number}.parquet", table.schema) as file:
            if count:
                file.write_table(table)
        begin += count
    return str(folder)


def diary(folder, workdir=None, *, shards=1, steps=STEPS, size=SIZE, delay=0.0, **arguments):
    """Returns a trainer, on a stream, of a model that writes down the records of its batches."""

    def waited(table):
        time.sleep(delay * (1 + jax.process_index()))
        return table

    files = [f"{folder}/{number}.parquet" for number in range(len(ROWS))]
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    stream = stream.with_format("arrow").map(waited, batched=True) if delay else stream
    source = HFStreamingSource.from_dataset(stream, shuffle=True, seed=7, shuffle_buffer_size=20)
    arguments = {
        "loss": noted_loss,
        "optimizer": optax.adam(1e-2),
        "log_every": 1,
        "checkpoint": Checkpoints(every=4, keep=9),
        **arguments,
    }
    pipeline = Pipeline(source=source, stages=[noise], batch_size=size, shards=shards)
    return Trainer(Diary(MLP(), steps, size), pipeline, steps=steps, workdir=workdir, **arguments)


def layout(folder, shards, delay=0.0):
    """Returns what a run over some epochs gives, and evaluation and prediction."""
    one = diary(folder, shards=shards, delay=delay)
    result = one.fit()
    batches = [one.batch_at(t) for t in (0, 5, 9)]
    plain = Trainer(MLP(), one.pipeline, loss=loss, steps=1)
    return {
        "batches": [hashlib.sha256(batch["x"].tobytes()).hexdigest() for batch in batches],
        "ids": [batch["id"].tolist() for batch in batches],
        "records": records(result.model),
        "losses": losses(result),
        "epochs": [row["epoch"] for row in result.history],
        "evaluate": plain.evaluate(one.pipeline),
        "predict": plain.predict(one.pipeline, called).tolist(),
    }


def go_on(folder, workdir, step=None, number=signal.SIGTERM, process=1, shards=1):
    """Runs or resumes; one process gets a signal after `step` steps."""

    def strike(run):
        if run.step == step and jax.process_index() == process:
            os.kill(os.getpid(), number)

    callbacks = [] if step is None else [every(step, strike)]
    result = diary(folder, workdir, callbacks=callbacks, shards=shards).fit()
    return {
        "status": result.status,
        "step": result.step,
        "records": records(result.model),
        "losses": losses(result),
    }


def of_three(folder):
    """Deals three streams to the processes."""
    diary(folder, shards=3, size=12)
