"""Rows by number from mapped files, beside what a user would write.

    python -m benchmarks.indexed

About three minutes on two CPU cores.
Shuffled rows of 784 bytes and of 150 kB of an Arrow file, in batches: by hand with `np.take` from a
memory map into one buffer, with `with_format("numpy")[indices]`, with Grain's `DataLoader`, with
torch's where it is installed, and with `HFIndexedSource`. Texts and lists beside `ds[indices]`. A
step of ten milliseconds that waits for the rows, and the peak memory by the number of rows.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import grain
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter

from benchmarks.timing import peak_megabytes, seconds, summary, versions
from datarax import HFIndexedSource, prefetch_to_device

SIZES = {"784 bytes": (784, 100_000, 128), "150 kB": (150_528, 2_000, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="of what is compared")
    parser.add_argument("--quick", action="store_true", help="few rows and turns: only to try it")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)  # a file of a process alone
    args = parser.parse_args()
    if args.peak is not None:
        return peak(args.peak)
    turns, share = (2, 20) if args.quick else (args.turns, 1)
    print(versions("jax", "datasets", "pyarrow", "grain"))
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, rows, batch) in SIZES.items():
            gathers(name, write(Path(folder, "rows"), rows // share, size), size, batch, turns)
        objects(turns, 100_000 // share)
        training(write(Path(folder, "rows"), 20_000 // share, 784))
        for rows in (10_000, 100_000, 1_000_000):
            file = write(Path(folder, "rows"), rows // share, 784)
            command = [sys.executable, "-m", "benchmarks.indexed", "--peak", str(file)]
            subprocess.run(command, check=True)


def write(file: Path, rows: int, size: int) -> Path:
    """Writes an Arrow file as `datasets` does, a thousand rows a record batch."""
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


def gathers(name: str, file: Path, size: int, batch: int, turns: int) -> None:
    """Rows a second of shuffled batches."""
    dataset = datasets.Dataset.from_file(str(file))
    source = HFIndexedSource.from_dataset(dataset, shuffle=True)
    rows, drawn = len(dataset), np.random.default_rng(1)
    raw = file.with_suffix(".raw")
    np.concatenate([chunk.values.to_numpy() for chunk in dataset.data.column("x").chunks]).tofile(
        raw
    )
    mapped = np.memmap(raw, np.uint8, "r", shape=(rows, size))
    block = min(32, (32 << 20) // (batch * size)) * batch  # as the trainer reads ahead
    blocks = [drawn.integers(0, rows, block) for _ in range(max(1, rows // block))]
    out = np.empty((block, size), np.uint8)
    numpy = dataset.with_format("numpy")

    def by_hand() -> None:
        for indices in blocks:
            np.take(mapped, indices, axis=0, out=out, mode="clip")

    def ours() -> None:
        for indices in blocks:
            source.read_rows(indices)

    def formatted() -> None:
        for indices in blocks[:1]:
            numpy[indices[:batch]]

    print(f"Rows a second of {name}, as a ratio to the other:")
    by_hand(), ours(), formatted()
    whole = len(blocks) * block
    rivals: dict[str, tuple[Callable[[], object], int]] = {
        "np.take on a memory map": (by_hand, whole),
        'with_format("numpy")[indices]': (formatted, batch),
    }
    for rival, made in loaders(numpy, batch).items():
        batches = iter(made)
        next(batches)
        rivals[rival] = (lambda b=batches: [next(b) for _ in range(4)], 4 * batch)
    for rival, (run, count) in rivals.items():
        ratios = [(seconds(run) / count) / (seconds(ours) / whole) for _ in range(turns)]
        print(f"  {rival:36} {summary(ratios)}")
    raw.unlink()


def loaders(numpy: datasets.Dataset, batch: int) -> dict[str, object]:
    """Returns endless shuffled loaders of the same rows."""
    sampler = grain.samplers.IndexSampler(len(numpy), shuffle=True, seed=0)
    operations = [grain.transforms.Batch(batch)]
    found: dict[str, object] = {
        "Grain's DataLoader": grain.DataLoader(
            data_source=numpy, sampler=sampler, operations=operations
        )
    }
    try:
        import torch.utils.data as data
    except ImportError:
        print("  (torch is not installed: its DataLoader is left out)")
        return found
    drawn = data.RandomSampler(numpy, num_samples=50 * len(numpy), replacement=True)
    workers = len(os.sched_getaffinity(0))
    found["torch's DataLoader"] = data.DataLoader(
        numpy, batch, sampler=drawn, num_workers=workers, collate_fn=_stacked
    )
    return found


def _stacked(rows):
    return np.stack([row["x"] for row in rows])


def objects(turns: int, rows: int) -> None:
    """Texts and lists of many lengths, which stay host columns."""
    drawn = np.random.default_rng(0)
    lengths = drawn.integers(5, 60, rows)
    columns = {"text": ["w " * n for n in lengths], "list": [list(range(n)) for n in lengths]}
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_dict(columns).save_to_disk(folder)
        dataset = datasets.load_from_disk(folder)
        indices = drawn.integers(0, rows, 4096)
        print("Rows a second, as a ratio to ds[indices]:")
        for name in columns:
            one = dataset.select_columns([name])
            source = HFIndexedSource.from_dataset(one)
            ratios = [
                seconds(lambda one=one: one[indices])
                / seconds(lambda source=source: source.read_rows(indices))
                for _ in range(turns)
            ]
            print(f"  {name:36} {summary(ratios)}")


def training(file: Path) -> None:
    """A step of ten milliseconds beside reading that takes half as long, or as long."""
    print("Time of 100 steps, as a ratio to the longer of reading and computing:")
    for name, share in (("reading half as long as the step", 0.5), ("as long", 1.0)):
        print(f"  {name:36} {overlapped(datasets.Dataset.from_file(str(file)), share * 0.01)}")


def overlapped(dataset: datasets.Dataset, pause: float) -> str:
    """Returns the ratio where reading a batch takes `pause` seconds, and the batch's size."""
    source = HFIndexedSource.from_dataset(dataset, shuffle=True, num_threads=1)
    each = min(seconds(lambda: source.get_host_batch(4096)) for _ in range(5)) / 4096
    size = min(max(1, int(pause / each)), len(dataset))
    reading = seconds(lambda: [source.get_host_batch(size) for _ in range(100)])
    batches = itertools.chain.from_iterable(
        prefetch_to_device(source, 4, batch_size=size, last="drop") for _ in itertools.count()
    )
    next(batches)
    took = seconds(lambda: [time.sleep(0.01) for _ in itertools.islice(batches, 100)])
    return f"{took / max(reading, 1.0):8.3f}   (batches of {size})"


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


if __name__ == "__main__":
    main()
