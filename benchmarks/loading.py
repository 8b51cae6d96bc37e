"""Loading columns, beside what `datasets` and a plain loop do.

    python benchmarks/loading.py [--scale 1] [--repeats 5] [--mnist FOLDER]

Takes about two minutes at scale 1; MNIST is read from a folder that `datasets.load_dataset` loads,
and left out without one. Each round runs every way once, in turn, so that what else the machine
does falls on all of them; a ratio is the median over the rounds.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import datasets
import numpy as np
import PIL.Image
from datasets import Array2D, Features, List, Value

from datarax.columns import load_columns

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


def photos(rows: int, size: int) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(rows):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8))
        buffer = io.BytesIO()
        coarse.resize((size, size)).save(buffer, "JPEG")
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


def cases(scale: float, mnist: str | None) -> Iterator[tuple[str, int, Ways]]:
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
    }
    yield "JPEGs of 512x512", few, ways
    load_columns(ds)
    yield "the same, again", few, {"datarax": lambda: load_columns(ds), "decoding": loaded(ds)}

    if mnist:
        ds = datasets.load_dataset(mnist, split="train").select(
            range(min(60_000, int(60_000 * scale)))
        )
        ways = {
            "datarax": loaded(ds),
            "numpy format": hf_numpy(ds),
            "plain loop": lambda: plain_loop(ds),
        }
        yield "MNIST", len(ds), ways
        load_columns(ds)
        yield "MNIST, again", len(ds), {"datarax": lambda: load_columns(ds), "decoding": loaded(ds)}


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
    parser.add_argument("--mnist", help="a folder of MNIST as datasets.load_dataset takes it")
    options = parser.parse_args()

    datasets.disable_progress_bars()
    print(f"{'columns':30}{'rows':>9}{'rows/s':>14}  faster than")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DATARAX_CACHE_DIR"] = folder
        for name, rows, ways in cases(options.scale, options.mnist):
            ours, *others = measured(ways, options.repeats).items()
            rate = rows / statistics.median(ours[1])
            ratios = (
                f"{other}: {statistics.median(np.divide(seconds, ours[1])):.2f}x"
                for other, seconds in others
            )
            print(f"{name:30}{rows:>9,}{rate:>14,.0f}  {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
