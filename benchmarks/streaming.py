"""Streams beside what a user would write.

    python -m benchmarks.streaming

About two minutes on two CPU cores.
Numeric Parquet files on this machine, read in batches of 1,024: by hand with `datasets`' Arrow
batches, `to_numpy` and its state after each; row by row with `with_format("numpy")`; and with
`HFStreamingSource`, whose state is taken after each batch too. What is compared runs in turn.
"""

import argparse
import contextlib
import io
import itertools
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import jax
import numpy as np
import PIL.Image
import pyarrow as pa
from flax import nnx

from benchmarks.timing import seconds, summary, versions
from datarax import (
    HFEagerSource,
    HFStreamingSource,
    StreamingSourceBase,
    prefetch_to_device,
)
from datarax.sources import SourceConfigBase
from datarax.stream.shards import TableShards
from datarax.transforms import random_resized_crop
from trainers import Trainer, every
from trainers.run import Run

TRAINED = 128  # records in a batch of a trained model

FILES, BATCH = 8, 1024
SLEEP, STEPS = 0.01, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the Parquet files")
    parser.add_argument("--turns", type=int, default=7, help="of what is compared")
    parser.add_argument("--quick", action="store_true", help="few rows and turns: only to try it")
    args = parser.parse_args()
    rows, turns = (50_000, 2) if args.quick else (args.rows, args.turns)

    print(versions("datarax", "jax", "datasets", "pyarrow"))
    with tempfile.TemporaryDirectory() as folder:
        stream = write(Path(folder), rows)
        print(f"Rows a second, as a ratio to the loop by hand ({rows:,} rows, 3 columns):")
        rivals = {
            "get_host_batch": lambda: ours(stream, rows, host=True),
            "get_host_batch, shuffled (1,000)": lambda: ours(stream, rows, host=True, shuffle=True),
            "get_host_batch, shuffled (10,000)": lambda: ours(
                stream, rows, host=True, shuffle=True, shuffle_buffer_size=10_000
            ),
            "get_batch (JAX arrays)": lambda: ours(stream, rows, host=False),
        }
        by_hand(stream), [run() for run in rivals.values()]
        for name, run in rivals.items():
            ratios = [seconds(lambda: by_hand(stream)) / seconds(run) for _ in range(turns)]
            print(f"  {name:36} {summary(ratios)}")
        print("Rows a second, as a ratio to row by row in the numpy format:")
        few = rows // 100
        ratios = []
        for _ in range(3):
            slow = seconds(lambda: by_row(stream, few)) / few
            ratios.append(slow / (seconds(lambda: ours(stream, rows, host=False)) / rows))
        print(f"  {'get_batch (JAX arrays)':36} {summary(ratios)}")
    pictures(turns, 60 if args.quick else 400)
    overlap()
    training(turns)
    memory()


def write(folder: Path, rows: int) -> datasets.IterableDataset:
    table = {
        "x": np.arange(rows, dtype=np.int32),
        "y": np.random.default_rng(0).random(rows, np.float32),
        "z": np.arange(rows, dtype=np.int64),
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


def ours(stream: datasets.IterableDataset, rows: int, *, host: bool, **fields) -> None:
    source = HFStreamingSource.from_dataset(stream, **fields)
    get_batch = source.get_host_batch if host else source.get_batch
    count = 0
    while count < rows:
        count += len(get_batch(BATCH)["x"])
        source.get_state()


def pictures(turns: int, rows: int) -> None:
    """Photographs that a transform crops at random, on one thread and on one a core."""
    rng, files = np.random.default_rng(0), []
    for _ in range(20):
        noise = PIL.Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        file = io.BytesIO()
        noise.resize((500, 375), PIL.Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append({"bytes": file.getvalue(), "path": None})
    data = datasets.Dataset.from_dict({"image": files * (rows // 20)})
    stream = data.cast_column("image", datasets.Image()).to_iterable_dataset(num_shards=4)
    crop = random_resized_crop(224, flip=0.5)

    def read(num_threads: int | None) -> None:
        source = HFStreamingSource.from_dataset(stream, transform=crop, num_threads=num_threads)
        for _ in source.epoch_batches(32):
            pass

    read(None)
    pairs = [(seconds(lambda: read(1)), seconds(lambda: read(None))) for _ in range(turns)]
    rate = rows / np.median([several for _, several in pairs])
    print(f"Random crops of {rows} JPEGs of 500 x 375 in a stream ({rate:.0f} a second):")
    print(f"  {'threads, as a ratio to one thread':36} {summary([a / b for a, b in pairs])}")


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

    pause = 0.0

    def __init__(self, dataset: datasets.Dataset):
        super().__init__(dataset)
        self.num_shards, self._at_once = 1, TRAINED

    def open(self, shard: int, state: int | None) -> Iterator[tuple[pa.Table, int]]:
        for read in super().open(shard, state):
            time.sleep(self.pause)
            yield read

    def source(self) -> StreamingSourceBase:
        return StreamingSourceBase(SourceConfigBase(), self)


class Net(nnx.Module):
    """A model whose step takes about ten milliseconds."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(n, 1536, rngs=rngs) for n in (64, 1536, 1536)])
        self.out = nnx.Linear(1536, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(x)


class Relay:
    """Runs of the trainer that go on in turn, a leg each, and the seconds of each timed leg.

    A reader reads on while others run, as far as it may; so the first steps of a leg, in which that
    is used up, are not timed.

    Args:
        names: What the runs are called.
        legs: How many legs each has; the first is for compiling.
    """

    UNTIMED, TIMED = 40, 80  # steps

    def __init__(self, names: Sequence[str], legs: int):
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        following = [*names[1:], names[0]]
        self._next = dict(zip(names, following, strict=True))
        self._turns = {name: threading.Semaphore(0) for name in names}
        self._steps, self._begun = legs * (self.UNTIMED + self.TIMED), 0.0
        self._turns[names[0]].release()

    def fit(self, name: str, source: object, after: Callable[[], None] = lambda: None) -> None:
        """Runs to the end, on a thread of its own; `after` is called after each of its legs."""
        self._wait(name)

        def look(run: Run) -> None:
            if run.step % (self.UNTIMED + self.TIMED):
                self._begun = time.perf_counter()
                return
            self.seconds[name].append((time.perf_counter() - self._begun) / self.TIMED)
            after()
            self._turns[self._next[name]].release()
            if run.step < self._steps:
                self._wait(name)

        options = {"batch_size": TRAINED, "steps": self._steps}
        Trainer(Net(nnx.Rngs(0)), source, callbacks=[every(self.UNTIMED, look)], **options).fit()

    def _wait(self, name: str) -> None:
        if not self._turns[name].acquire(timeout=120):
            raise TimeoutError("another run ended early")


def training(turns: int) -> None:
    """`Trainer.fit` on streams whose readers wait, beside the same data held eagerly."""
    x = np.random.default_rng(0).normal(size=(500 * TRAINED, 64)).astype(np.float32)
    data = datasets.Dataset.from_dict({"x": x, "target": x[:, 0]})
    shares = {"half as long": 0.5, "as long": 1.0}
    readers = {name: Waiting(data) for name in shares}
    alone = Waiting(data)
    batches = itertools.chain.from_iterable(
        alone.source().epoch_batches(TRAINED) for _ in itertools.count()
    )
    relay, reading = Relay(["eager", *shares], turns + 1), []

    def pace() -> None:
        """Sets the pauses by the eager run's last leg, and reads alone with the longest."""
        step = relay.seconds["eager"][-1]
        for name, reader in readers.items():
            reader.pause = shares[name] * step
        alone.pause = step
        reading.append(seconds(lambda: [next(batches) for _ in range(40)]) / 40)

    logging.getLogger("trainers.loop.signals").setLevel(logging.ERROR)  # it misses the main thread
    with contextlib.redirect_stdout(io.StringIO()), ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(relay.fit, "eager", HFEagerSource.from_dataset(data), pace)]
        for name, reader in readers.items():
            runs.append(pool.submit(relay.fit, name, reader.source()))
        for run in runs:
            run.result()
    eager, half, whole = (np.array(relay.seconds[name][1:]) for name in ("eager", *shares))
    longer = max(np.median(eager), np.median(reading))
    print(f"Time of a step of Trainer.fit on a stream (a step: {np.median(eager) * 1e3:.1f} ms):")
    print(f"  {'reading half as long / held eagerly':36} {summary(half / eager)}")
    print(f"  {'as long / the longer of the two':36} {summary(whole / longer)}")


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
