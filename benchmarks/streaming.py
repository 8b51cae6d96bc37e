"""Streams beside what a user would write: `python -m benchmarks.streaming` (about a minute).

Numeric Parquet files on this machine, read in batches of 1,024: by hand with `datasets`' Arrow
batches, `to_numpy` and its state after each; row by row with `with_format("numpy")`; and with
`HFStreamingSource`, whose state is taken after each batch too. What is compared runs in turn.
"""

import contextlib
import io
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import jax
import numpy as np
import pyarrow as pa
from flax import nnx

from benchmarks.timing import seconds, summary, versions
from datarax import (
    HFEagerSource,
    HFStreamingSource,
    StreamingSourceBase,
    prefetch_to_device,
)
from datarax.shards import TableShards
from datarax.sources.base import SourceConfigBase
from trainers import Trainer, every

TRAINED = 128  # records in a batch of a trained model

ROWS, FILES, BATCH, TURNS = 2_000_000, 8, 1024, 7
SLEEP, STEPS = 0.01, 100


def main() -> None:
    print(versions("datarax", "jax", "datasets", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        stream = write(Path(folder))
        print(f"Rows a second, as a ratio to the loop by hand ({ROWS:,} rows, 3 columns):")
        rivals = {
            "get_host_batch": lambda: ours(stream, host=True),
            "get_host_batch, shuffled by 1,000": lambda: ours(stream, True, shuffle=True),
            "get_host_batch, shuffled by 10,000": lambda: ours(
                stream, True, shuffle=True, shuffle_buffer_size=10_000
            ),
            "get_batch (JAX arrays)": lambda: ours(stream, host=False),
        }
        by_hand(stream), [run() for run in rivals.values()]
        for name, run in rivals.items():
            ratios = [seconds(lambda: by_hand(stream)) / seconds(run) for _ in range(TURNS)]
            print(f"  {name:36} {summary(ratios)}")
        print("Rows a second, as a ratio to row by row in the numpy format:")
        few = 20_000
        ratios = []
        for _ in range(3):
            slow = seconds(lambda: by_row(stream, few)) / few
            ratios.append(slow / (seconds(lambda: ours(stream, host=False)) / ROWS))
        print(f"  {'get_batch (JAX arrays)':36} {summary(ratios)}")
    overlap()
    training()
    memory()


def write(folder: Path) -> datasets.IterableDataset:
    table = {
        "x": np.arange(ROWS, dtype=np.int32),
        "y": np.random.default_rng(0).random(ROWS, np.float32),
        "z": np.arange(ROWS, dtype=np.int64),
    }
    data = datasets.Dataset.from_dict(table)
    for number in range(FILES):
        data.shard(FILES, number, contiguous=True).to_parquet(folder / f"{number:02}.parquet")
    files = str(folder / "*.parquet")
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def by_hand(stream: datasets.IterableDataset) -> None:
    arrow = stream.with_format("arrow")
    for table in arrow.iter(BATCH):
        _ = {name: table.column(name).to_numpy() for name in table.column_names}
        _ = arrow.state_dict()


def by_row(stream: datasets.IterableDataset, rows: int) -> None:
    for _ in itertools.islice(stream.with_format("numpy"), rows):
        pass


def ours(stream: datasets.IterableDataset, host: bool, **fields) -> None:
    source = HFStreamingSource.from_dataset(stream, **fields)
    get_batch = source.get_host_batch if host else source.get_batch
    count = 0
    while count < ROWS:
        count += len(get_batch(BATCH)["x"])
        source.get_state()


def overlap() -> None:
    """A reader that waits, as on a network, while a step computes (here: waits too)."""

    def waiting(pause: float):
        def rows():
            for number in range(STEPS * 64):
                if number % 64 == 0:
                    time.sleep(pause)
                yield {"x": number}

        return HFStreamingSource.from_dataset(datasets.IterableDataset.from_generator(rows))

    print(f"Time of {STEPS} steps read ahead, as a ratio to the longer of reading and computing:")
    for name, pause in (("reading as long as the step", SLEEP), ("half as long", SLEEP / 2)):
        ratios = []
        for _ in range(3):
            alone = seconds(lambda pause=pause: list(waiting(pause).epoch_batches(64)))
            computing = seconds(lambda: [time.sleep(SLEEP) for _ in range(STEPS - 1)])
            with prefetch_to_device(waiting(pause), 4, batch_size=64) as batches:
                next(batches)
                start = time.perf_counter()
                for _ in batches:
                    time.sleep(SLEEP)
                took = time.perf_counter() - start
            ratios.append(took / max(alone, computing))
        print(f"  {name:36} {summary(ratios)}")


class Waiting(TableShards):
    """Rows that come a batch at a time, each after a pause, as over a network."""

    def __init__(self, dataset: datasets.Dataset, pause: float):
        super().__init__(dataset)
        self.pause, self.num_shards = pause, 1

    def open(self, shard: int, state: int | None) -> Iterator[tuple[pa.Table, int]]:
        for start in range(state or 0, self.length, TRAINED):
            time.sleep(self.pause)
            yield self._read(start, TRAINED), start + TRAINED


class Net(nnx.Module):
    """A model whose step takes about ten milliseconds."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(n, 512, rngs=rngs) for n in (64, 512, 512)])
        self.out = nnx.Linear(512, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(x)


def training() -> None:
    """`Trainer.fit` on a stream whose reader waits, beside the same data held eagerly."""
    x = np.random.default_rng(0).normal(size=(50 * TRAINED, 64)).astype(np.float32)
    data = datasets.Dataset.from_dict({"x": x, "target": x[:, 0]})
    eager = HFEagerSource.from_dataset(data)

    def stream(pause: float) -> StreamingSourceBase:
        return StreamingSourceBase(SourceConfigBase(), Waiting(data, pause))

    def reading(pause: float) -> float:
        batches = itertools.chain.from_iterable(
            map(
                StreamingSourceBase.epoch_batches,
                itertools.repeat(stream(pause)),
                itertools.repeat(TRAINED),
            )
        )
        return seconds(lambda: [next(batches) for _ in range(STEPS)]) / STEPS

    for share, name in ((0.5, "reading half as long as a step"), (1.0, "as long as a step")):
        against_eager, against_longer = [], []
        for _ in range(TURNS):
            step = fitted(eager)
            pause = share * step
            took, alone = fitted(stream(pause)), reading(pause)
            step = (step + fitted(eager)) / 2
            against_eager.append(took / step)
            against_longer.append(took / max(step, alone))
        print(f"Time of a step of Trainer.fit on a stream, {name} ({step * 1e3:.1f} ms):")
        print(f"  {'/ the same data held eagerly':36} {summary(against_eager)}")
        print(f"  {'/ the longer of reading and eager':36} {summary(against_longer)}")


def fitted(source: object) -> float:
    """Returns the seconds a step of a run takes, compilation left out."""
    times = []
    trainer = Trainer(
        Net(nnx.Rngs(0)),
        source,
        batch_size=TRAINED,
        steps=3 * STEPS,
        callbacks=[every(STEPS, lambda run: times.append(time.perf_counter()))],
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the trainer's progress
        trainer.fit()
    return (times[-1] - times[0]) / (2 * STEPS)


def memory() -> None:
    """Memory over ten epochs, and threads after a hundred abandoned iterators."""
    data = datasets.Dataset.from_dict({"x": np.arange(300_000), "y": np.arange(300_000.0)})
    source = HFStreamingSource.from_dataset(data.to_iterable_dataset(8), shuffle=True)
    sizes = []
    for _ in range(10):
        for batch in prefetch_to_device(source, batch_size=BATCH):
            jax.block_until_ready(batch)
        sizes.append(resident())
    for _ in range(100):
        next(prefetch_to_device(source, batch_size=BATCH))
    print(f"Resident memory after epochs 2 to 10: {', '.join(f'{s:.0f}' for s in sizes[1:])} MB")
    left = sum(thread.name.startswith("datarax") for thread in threading.enumerate())
    print(f"Threads left by 100 abandoned iterators: {left}")


def resident() -> float:
    """Returns this process's memory in MB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 1e6


if __name__ == "__main__":
    main()
