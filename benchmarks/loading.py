"""Loading columns, beside what `datasets` and a plain loop do.

    python -m benchmarks.loading [--scale 1] [--repeats 5] [--dataset FOLDER]

Takes about three minutes at scale 1; MNIST is read from a folder that `datasets.load_dataset`
loads, and is left out without one. Each round runs every way once, in turn, so that what else the
machine does falls on all of them; a ratio is the median over the rounds.

What the machine's cores can do is measured, too: as many processes as there are cores decode the
same JPEGs, each its part, and give nothing back. No way of loading them can be quicker.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import datasets
import numpy as np
import PIL.Image
from datasets import Array2D, Features, List, Value

from datarax import HFEagerSource
from datarax.columns.load import load_columns

PROCESSES = multiprocessing.get_context("spawn")  # a fork of a process with JAX's threads may hang
Ways = dict[str, Callable[[], object]]  # the first is compared with each other


def hf_numpy(ds: datasets.Dataset) -> Callable[[], object]:
    return lambda: ds.with_format("numpy")[:]


def loaded(ds: datasets.Dataset) -> Callable[[], object]:
    return lambda: load_columns(ds, cache=False)


def numbers(rows: int) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    columns = {"a": rng.integers(0, 1000, rows), "b": rng.random(rows), "c": rng.random(rows)}
    return datasets.Dataset.from_dict(columns)


def texts(rows: int) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    words = np.array(["to", "be", "or", "not", "that", "is", "the", "question"])
    lengths = rng.lognormal(5.2, 0.7, rows).clip(10, 2500).astype(int)  # as reviews have
    return datasets.Dataset.from_dict({"t": [" ".join(rng.choice(words, n)) for n in lengths]})


def photos(rows: int, width: int, height: int | None = None, patches: int = 16) -> datasets.Dataset:
    """Returns JPEGs of `patches` x `patches` random colours, blurred into each other.

    Args:
        rows: How many.
        width: Their width in pixels.
        height: Their height in pixels; None for squares.
        patches: Of 16, a file has about 24 kB at 512 x 512; of 96, about 70 kB.
    """
    rng = np.random.default_rng(0)
    files = []
    for _ in range(rows):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (patches, patches, 3)).astype(np.uint8))
        buffer = io.BytesIO()
        coarse.resize((width, height or width)).save(buffer, "JPEG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"image": files}, Features({"image": datasets.Image()}))


def plain_loop(ds: datasets.Dataset) -> np.ndarray:
    """Decodes with Pillow into one array, and nothing else."""
    pixels, row = None, 0
    for table in ds.with_format("arrow").iter(1024):
        for encoded in table["image"].combine_chunks().field("bytes").to_pylist():
            image = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
            if pixels is None:
                pixels = np.empty((len(ds), *image.shape), image.dtype)
            pixels[row] = image
            row += 1
    return pixels


class Processes:
    """As many processes as there are cores, which decode images, each its part of them."""

    def __init__(self, ds: datasets.Dataset):
        encoded = [image["bytes"] for image in ds.with_format("arrow")["image"].to_pylist()]
        count = os.cpu_count()
        pipes = [PROCESSES.Pipe() for _ in range(count)]
        self.ends = [near for near, _ in pipes]
        for core, (_, far) in enumerate(pipes):
            work = (far, encoded[core::count])
            PROCESSES.Process(target=decode_on_request, args=work, daemon=True).start()
        self()

    def __call__(self) -> None:
        for end in self.ends:
            end.send("go")
        for end in self.ends:
            end.recv()


def decode_on_request(end, encoded: list[bytes]) -> None:
    with contextlib.suppress(EOFError):  # nobody asks any more
        while end.recv():
            pixels = None
            for row, file in enumerate(encoded):
                image = np.asarray(PIL.Image.open(io.BytesIO(file)))
                pixels = np.empty((len(encoded), *image.shape), "u1") if pixels is None else pixels
                pixels[row] = image
            end.send("done")


def cores_used(way: Callable[[], object], repeats: int) -> float:
    """Returns CPU time over wall time."""
    ratios = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        way()
        ratios.append((time.process_time() - cpu) / (time.perf_counter() - wall))
    return statistics.median(ratios)


def peak_memory(ds: datasets.Dataset) -> tuple[float, float]:
    """Returns megabytes of the arrays and the most anonymous memory that loading them took.

    Anonymous memory is what the process itself asked for; pages of a mapped file are not in it.
    Measured in a process of its own, where nothing was loaded before.
    """
    with tempfile.TemporaryDirectory() as folder:
        ds.save_to_disk(folder)
        near, far = PROCESSES.Pipe()
        child = PROCESSES.Process(target=load_and_watch, args=(folder, far))
        child.start()
        far.close()  # so that a child that fails ends the wait
        found = near.recv()
        child.join()
    return found


def load_and_watch(folder: str, end) -> None:
    datasets.disable_progress_bars()
    ds = datasets.load_from_disk(folder)
    load_columns(ds.select(range(min(64, len(ds)))), cache=False)  # imports and pools of threads
    before, most, done = anonymous(), [0.0], threading.Event()

    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    data = load_columns(ds, cache=False).data
    done.set()
    watcher.join()
    end.send((sum(column.nbytes for column in data.values()) / 1e6, most[0] - before))


def anonymous() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) / 1e3


def cases(scale: float, dataset: str | None) -> Iterator[tuple[str, int, Ways]]:
    many, some, few = (int(rows * scale) for rows in (1_000_000, 50_000, 500))
    rng = np.random.default_rng(0)

    ds = numbers(many)
    yield "3 columns of numbers", many, {"datarax": loaded(ds), "numpy format": hf_numpy(ds)}

    part = ds.select(range(many // 10)).shuffle(seed=0)
    ways = {"datarax": loaded(part), "numpy format": hf_numpy(part)}
    yield "the same, a tenth, shuffled", len(part), ways

    vectors = Features({"v": List(Value("float32"), length=128)})
    values = rng.random((some, 128)).astype(np.float32)
    ds = datasets.Dataset.from_dict({"v": values}, vectors)
    yield "lists of 128", some, {"datarax": loaded(ds), "numpy format": hf_numpy(ds)}

    grids = Features({"g": Array2D((28, 28), "uint8")})
    ds = datasets.Dataset.from_dict({"g": rng.integers(0, 256, (some, 28, 28)).astype("u1")}, grids)
    yield "Array2D of 28x28", some, {"datarax": loaded(ds), "numpy format": hf_numpy(ds)}

    ds = texts(some // 5)
    yield (
        "texts, all as objects",
        len(ds),
        {"datarax": lambda: load_columns(ds).data["t"][:], "numpy format": hf_numpy(ds)},
    )
    yield "texts, until asked for", len(ds), {"datarax": loaded(ds), "numpy format": hf_numpy(ds)}

    ds = photos(few, 512)
    ways = {
        "datarax": loaded(ds),
        "numpy format": hf_numpy(ds),
        "plain loop": lambda: plain_loop(ds),
        f"{os.cpu_count()} processes": Processes(ds),
    }
    yield "JPEGs of 512x512", few, ways
    yield from first_and_second("the same", ds)

    if dataset:
        ds = datasets.load_dataset(dataset, split="train").select(
            range(min(60_000, int(60_000 * scale)))
        )
        ways = {
            "datarax": loaded(ds),
            "numpy format": hf_numpy(ds),
            "plain loop": lambda: plain_loop(ds),
        }
        yield "MNIST", len(ds), ways
        yield from first_and_second("MNIST", ds)


def first_and_second(name: str, ds: datasets.Dataset) -> Iterator[tuple[str, int, Ways]]:
    """Yields a source's second start, from the cache of decoded images, beside its first."""

    def second() -> None:
        HFEagerSource.from_dataset(ds)

    def first() -> None:
        shutil.rmtree(os.environ["DATARAX_CACHE_DIR"])
        HFEagerSource.from_dataset(ds)

    first()
    yield f"{name}, a second start", len(ds), {"datarax": second, "the first start": first}


def measured(ways: Ways, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each way, one a round."""
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dataset", help="a folder with MNIST's columns; default: left out")
    parser.add_argument("--quick", action="store_true", help="few rows, once: only to try it")
    options = parser.parse_args()
    if options.quick:
        options.scale, options.repeats = 0.1, 1

    datasets.disable_progress_bars()
    print(f"{'columns':30}{'rows':>9}{'rows/s':>14}  faster than")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DATARAX_CACHE_DIR"] = folder
        for name, rows, ways in cases(options.scale, options.dataset):
            ours, *others = measured(ways, options.repeats).items()
            rate = rows / statistics.median(ours[1])
            ratios = (
                f"{other}: {statistics.median(np.divide(seconds, ours[1])):.2f}x"
                for other, seconds in others
            )
            print(f"{name:30}{rows:>9,}{rate:>14,.0f}  {', '.join(ratios)}", flush=True)

    large = photos(int(500 * options.scale), 512)
    print(f"\nJPEGs of 512x512: {cores_used(loaded(large), options.repeats):.2f} cores at work")
    print("Most anonymous memory while loading, in arrays' sizes")
    kinds = {"numbers": numbers(int(4_000_000 * options.scale)), "JPEGs": large}
    if options.dataset:
        kinds["MNIST"] = datasets.load_dataset(options.dataset, split="train")
    for name, ds in kinds.items():
        arrays, most = peak_memory(ds)
        print(f"  {name:10}{most / arrays:5.2f}  ({most:.0f} MB for {arrays:.0f} MB)", flush=True)


if __name__ == "__main__":
    main()
