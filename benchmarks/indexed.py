"""Rows by number from mapped files, beside what a user would write.

    python -m benchmarks.indexed

About four minutes on two CPU cores.
Shuffled rows of 784 bytes and of 150 kB of an Arrow file that stays mapped, and of a larger one:
`HFIndexedSource` beside `np.take` from a memory map into one buffer, beside
`with_format("numpy")[indices]`, Grain's `DataLoader`, and torch's where it is installed. All give
as many rows at a time, and are timed in turn. Texts and lists beside `ds[indices]`. A run whose
step takes ten milliseconds, beside the longer of its step and its reading, and the peak memory by
the number of rows.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from flax import nnx

from benchmarks.timing import peak_megabytes, seconds, summary, versions
from datarax import HFIndexedSource, IndexedSourceBase, SourceConfigBase
from trainers import Trainer, every

BLOCK = 32 << 20  # bytes that a trainer reads at once, at most
# Bytes of a row, rows, and rows at a time: a batch, and as many as a trainer reads at once.
SIZES = {
    "784 bytes, 78 MB": (784, 100_000, (2048, BLOCK // 784)),
    "784 bytes, 235 MB": (784, 300_000, (2048, BLOCK // 784)),
    "150 kB, 120 MB": (150_528, 800, (BLOCK // 150_528,)),
    "150 kB, 301 MB": (150_528, 2_000, (BLOCK // 150_528,)),
}
AHEAD = 1  # batches that each worker of torch has ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9, help="of what is compared")
    parser.add_argument("--quick", action="store_true", help="few rows and turns: only to try it")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)  # a file of a process alone
    args = parser.parse_args()
    if args.peak is not None:
        return peak(args.peak)
    turns, share = (2, 20) if args.quick else (args.turns, 1)
    print(versions("jax", "datasets", "pyarrow", "grain"))
    with tempfile.TemporaryDirectory() as folder:
        for part in args.only:
            PARTS[part](Path(folder), turns, share)


def write(folder: Path, rows: int, size: int) -> Path:
    """Writes an Arrow file as `datasets` does, a thousand rows a record batch, unless it is there.

    None is written twice: loaders still read the rows of the one before.
    """
    file = folder / f"{rows}x{size}.arrow"
    if file.exists():
        return file
    feature = datasets.List(datasets.Value("uint8"), length=size)
    features, drawn = datasets.Features({"x": feature}), np.random.default_rng(0)
    writer = ArrowWriter(path=str(file), features=features)
    for start in range(0, rows, 1000):
        count = min(1000, rows - start)
        values = pa.array(drawn.integers(0, 255, count * size, dtype=np.uint8))
        column = pa.FixedSizeListArray.from_arrays(values, size)
        writer.write_table(pa.table({"x": column}, schema=features.arrow_schema))
    writer.finalize()
    return file


def gathers(folder: Path, turns: int, share: int) -> None:
    """Time of shuffled rows, as a ratio to ours."""
    for name, (size, rows, blocks) in SIZES.items():
        dataset = datasets.Dataset.from_file(str(write(folder, rows // share, size)))
        source = HFIndexedSource.from_dataset(dataset, shuffle=True)
        copy = folder / f"{len(dataset)}x{size}.raw"
        raw = np.memmap(copy, np.uint8, "w+", shape=(len(dataset), size))
        chunks = dataset.data.column("x").chunks
        np.concatenate([chunk.values.to_numpy() for chunk in chunks], out=raw.reshape(-1))
        del raw, chunks
        mapped = np.memmap(copy, np.uint8, "r", shape=(len(dataset), size))
        print(f"Rows of {name}, as a ratio to ours:")
        for block in blocks:
            beside(source, block, {"np.take on a memory map": taken(mapped, block)}, turns)
        numpy = dataset.with_format("numpy")
        some = _drawn(numpy, blocks[0])[0]
        formatted = Rival(lambda numpy=numpy, some=some: numpy[some])
        beside(source, blocks[0], {'with_format("numpy")[indices]': formatted}, turns)
        beside(source, blocks[0], loaders(numpy, blocks[0]), turns)


class Rival(NamedTuple):
    """Another way to read rows.

    Args:
        read: Reads one block.
        blocks: Number of blocks that are timed together.
        ready: Number of blocks that are read before they are asked for.
    """

    read: Callable[[], object]
    blocks: int = 1
    ready: int = 0


def taken(mapped: np.ndarray, block: int) -> Rival:
    """Returns the rows of a memory map in one buffer."""
    out = np.empty((block, *mapped.shape[1:]), mapped.dtype)
    several = _drawn(mapped, block)
    turn = itertools.cycle(several)
    read = lambda: np.take(mapped, next(turn), axis=0, out=out, mode="clip")  # noqa: E731
    return Rival(read, len(several))


def beside(source: HFIndexedSource, block: int, rivals: dict[str, Rival], turns: int) -> None:
    """Times rivals and ours in turn."""
    several = _drawn(source, block)

    def ours() -> None:
        for indices in several:
            source.read_rows(indices)

    ours()
    for name, rival in rivals.items():
        ratios, own, some = [], 0.0, range(rival.blocks)
        rival.read()
        for _ in range(turns):
            own = seconds(ours) / len(several)
            for _ in range(rival.ready):
                rival.read()
            theirs = seconds(lambda rival=rival, some=some: [rival.read() for _ in some])
            theirs /= rival.blocks
            ratios.append(theirs / own)
            time.sleep(2 * rival.ready * theirs)  # it reads on, until as many are ready again
        said = f"{name}, {block:,} at a time"
        print(f"  {said:46} {summary(ratios)}  ours {own / block * 1e9:,.0f} ns a row", flush=True)


def loaders(numpy: datasets.Dataset, batch: int) -> dict[str, Rival]:
    """Returns endless shuffled loaders of the same rows."""
    sampler = grain.samplers.IndexSampler(len(numpy), shuffle=True, seed=0)
    operations = [grain.transforms.Batch(batch)]
    loader = iter(grain.DataLoader(data_source=numpy, sampler=sampler, operations=operations))
    found = {"Grain's DataLoader": Rival(lambda: next(loader))}
    try:
        import torch.utils.data as data
    except ImportError:
        print("  (torch is not installed: its DataLoader is left out)")
        return found
    drawn = data.RandomSampler(numpy, num_samples=1000 * len(numpy), replacement=True)
    workers = len(os.sched_getaffinity(0))
    made = iter(
        data.DataLoader(
            numpy,
            batch,
            sampler=drawn,
            num_workers=workers,
            prefetch_factor=AHEAD,
            collate_fn=_stacked,
        )
    )
    # Workers end at about the same time, so that batches come by as many.
    found["torch's DataLoader"] = Rival(lambda: next(made), 4 * workers, AHEAD * workers)
    return found


def _drawn(rows: Sized, block: int) -> list[np.ndarray]:
    """Returns numbers of rows, blocks of them: as many as have 32,768 rows together, or one."""
    drawn = np.random.default_rng(0)
    return [drawn.integers(0, len(rows), block) for _ in range(max(1, 32_768 // block))]


def _stacked(rows):
    return np.stack([row["x"] for row in rows])


def objects(folder: Path, turns: int, share: int) -> None:
    """Texts and lists of many lengths, which stay host columns."""
    drawn, rows = np.random.default_rng(0), 100_000 // share
    lengths = drawn.integers(5, 60, rows)
    columns = {"text": ["w " * n for n in lengths], "list": [list(range(n)) for n in lengths]}
    datasets.Dataset.from_dict(columns).save_to_disk(folder / "objects")
    dataset = datasets.load_from_disk(folder / "objects")
    indices = drawn.integers(0, rows, 4096)
    print("Rows, 4,096 at a time: time of ds[indices] over ours")
    for name in columns:
        one = dataset.select_columns([name])
        source = HFIndexedSource.from_dataset(one)
        ratios = [
            seconds(lambda one=one: one[indices])
            / seconds(lambda source=source: source.read_rows(indices))
            for _ in range(turns)
        ]
        print(f"  {name:36} {summary(ratios)}")


def training(folder: Path, turns: int, share: int) -> None:
    """A step of ten milliseconds beside reading that takes half as long, or as long."""
    print("Runs whose step waits ten milliseconds, which takes none of the cores that read:")
    for name, (size, rows) in {"784 bytes": (784, 100_000), "150 kB": (150_528, 2_000)}.items():
        file = write(folder, rows // share, size)
        source = HFIndexedSource.from_dataset(datasets.Dataset.from_file(str(file)), shuffle=True)
        few = min(len(source), (8 << 20) // size)
        each = statistics.median(_times(source, few, 50)) / few
        for words, part in (("half a step", 0.5), ("a step", 1.0)):
            batch = min(len(source) // 2, max(1, int(part * 0.01 / each)))
            found = [overlapped(source, batch, 20 if share > 1 else 100) for _ in range(3)]
            ratio, stall, step, reading = (statistics.median(x) for x in zip(*found, strict=True))
            print(
                f"  {name + ', reading takes ' + words:36} run / longer {ratio:.3f}, input stall "
                f"{stall:.1%} (batches of {batch:,}: step {step * 1e3:.1f} ms, reading "
                f"{reading * 1e3:.1f} ms)"
            )


def _times(source: HFIndexedSource, batch: int, count: int) -> list[float]:
    return [seconds(lambda: source.get_host_batch(batch)) for _ in range(count)]


class Held(IndexedSourceBase):
    """Rows that take no time to read: some that were read before."""

    def __init__(self, rows: np.ndarray):
        self._first = nnx.static(lambda count: rows[:count])
        super().__init__(SourceConfigBase(), fingerprint="held")

    def __len__(self) -> int:
        return 1_000_000

    def read_rows(self, indices: np.ndarray) -> dict[str, Any]:
        return {"x": self._first(len(indices))}


def overlapped(source: HFIndexedSource, batch: int, steps: int) -> tuple[float, ...]:
    """Returns a run's time over the longer of step and reading, its stall, step and reading."""
    row = source.get_host_batch(1)["x"].nbytes
    held = source.get_host_batch(batch * max(1, BLOCK // (batch * row)))["x"]
    step, _ = timed(Held(held), batch, steps)
    reading = statistics.fmean(_times(source, batch, steps))
    source.reset()
    both, stall = timed(source, batch, steps)
    return both / max(step, reading), stall, step, reading


def timed(source: Any, batch: int, steps: int) -> tuple[float, float]:
    """Returns the seconds of a step of a run, and the run's input stall."""
    marks: list[float] = []
    result = Trainer(
        Waits(nnx.Rngs(0)),
        source,
        loss=lambda model, batch: model(batch["x"]),
        batch_size=batch,
        steps=2 * steps,
        log_every=steps,
        callbacks=[every(steps, lambda run: marks.append(time.perf_counter()))],
    ).fit()
    return (marks[-1] - marks[-2]) / steps, float(result.input_stall)


class Waits(nnx.Module):
    """A model that takes ten milliseconds in which it computes nothing."""

    def __init__(self, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        values = x[:, 0] + self.bias[...]
        return values + jax.pure_callback(_wait, jax.ShapeDtypeStruct((), jnp.float32), x[0, 0])


def _wait(_: Any) -> np.ndarray:
    time.sleep(0.01)
    return np.zeros((), np.float32)


def memory(folder: Path, turns: int, share: int) -> None:
    """Peak memory of a process of its own, by the number of rows."""
    for rows in (10_000, 100_000, 1_000_000):
        file = write(folder, rows // share, 784)
        command = [sys.executable, "-m", "benchmarks.indexed", "--peak", str(file)]
        subprocess.run(command, check=True)


def peak(file: Path) -> None:
    """Prints this process's peak memory after some batches of a file."""
    dataset = datasets.Dataset.from_file(str(file))
    opened = peak_megabytes()
    source = HFIndexedSource.from_dataset(dataset, shuffle=True)
    for _ in range(60):
        source.get_host_batch(4096)
    held = peak_megabytes()
    rows = f"{len(dataset):,} rows of {file.stat().st_size / 1e6:.0f} MB"
    print(f"Peak memory, {rows}: {held:.0f} MB ({opened:.0f} as opened)")


PARTS = {"rows": gathers, "objects": objects, "training": training, "memory": memory}

if __name__ == "__main__":
    main()
