"""Transforms of JPEGs of 512 x 512 and 500 x 375, beside what a user would write.

    python -m benchmarks.transforms [--turns 9]

About three minutes on two CPU cores. All ways run in turn within a round; a ratio is the other's
time over ours, above 1 we are faster, and the figure is the median over the rounds.

- Random crops of 224 pixels, flipped or not, by number and on all cores, beside as many processes
  as there are cores, which call the same functions in a loop and give nothing back.
- The same on one core, beside a loop that decodes each image whole and then crops and resizes it
  with Pillow. Fine detail takes longer to decode than the coarse pattern of the loading benchmark,
  so both are measured.
- Both with each library that resizes; without cykooz.resizer, with Pillow alone.
- An eager source with `transform=resize`, beside `ds.map(resize)` and loading what it wrote.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import datasets
import numpy as np
import PIL.Image

from benchmarks.loading import PROCESSES, photos
from benchmarks.timing import seconds, summary, versions
from datarax import HFEagerSource, HFIndexedSource
from datarax.columns.transform import generator
from datarax.transforms import random_resized_crop, resize
from datarax.transforms.pictures import Box

CROPS = {
    resizer: random_resized_crop(224, flip=0.5, resizer=resizer)
    for resizer, module in (("pillow", "PIL"), ("cykooz", "cykooz_resizer"))
    if importlib.util.find_spec(module)
}
SHAPE = 224, 224, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9, help="of what is compared")
    parser.add_argument("--quick", action="store_true", help="few rows and turns: only to try it")
    args = parser.parse_args()
    turns, rows = (2, 32) if args.quick else (args.turns, 400)
    datasets.disable_progress_bars()
    libraries = ["cykooz.resizer"] if "cykooz" in CROPS else []
    print(versions("jax", "datasets", "pillow", *libraries))
    images = {
        "512 x 512, coarse": photos(rows, 512),
        "512 x 512, fine": photos(rows, 512, patches=96),
        "500 x 375, fine": photos(rows, 500, 375, patches=96),
    }
    print("Random crops, images a second, as a ratio to")
    for ways, compare in (
        ("all cores, in processes", on_all_cores),
        ("one core, plain Pillow", on_one_core),
    ):
        for name, ds in images.items():
            for resizer, crop in CROPS.items():
                said = f"{ways} ({name}; {resizer})"
                print(f"  {said:54} {compare(ds, crop, turns)}", flush=True)
    print("Eager images resized, rows a second, as a ratio to")
    print(f"  {'ds.map(resize), then loading':54} {mapped(images['512 x 512, coarse'], turns)}")


def encoded_images(ds: datasets.Dataset) -> list[bytes]:
    return [image["bytes"] for image in ds.with_format("arrow")["image"].to_pylist()]


def same_calls(files: list[bytes], crop: random_resized_crop) -> np.ndarray:
    """Crops images one after the other, and nothing else."""
    pixels = np.empty((len(files), *SHAPE), np.uint8)
    for row, file in enumerate(files):
        record = {"image": PIL.Image.open(io.BytesIO(file))}
        pixels[row] = crop(record, generator(0, row))["image"]
    return pixels


def plain_pillow(files: list[bytes], boxes: list[Box]) -> np.ndarray:
    """Does the same as a user would write it."""
    pixels = np.empty((len(files), *SHAPE), np.uint8)
    for row, (file, box) in enumerate(zip(files, boxes, strict=True)):
        crop = PIL.Image.open(io.BytesIO(file)).convert("RGB").crop(box)
        crop = crop.resize(SHAPE[:2], PIL.Image.Resampling.BILINEAR)
        if row % 2:
            crop = crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        pixels[row] = np.asarray(crop)
    return pixels


def boxes_of(files: list[bytes], crop: random_resized_crop) -> list[Box]:
    """Returns the parts that the crop cuts out of images."""
    sizes = (PIL.Image.open(io.BytesIO(file)).size for file in files)
    return [crop._draw(size, generator(0, row)) for row, size in enumerate(sizes)]


def crop_on_request(end, files: list[bytes], crop: random_resized_crop) -> None:
    with contextlib.suppress(EOFError):  # nobody asks any more
        while end.recv():
            same_calls(files, crop)
            end.send("done")


def on_all_cores(ds: datasets.Dataset, crop: random_resized_crop, turns: int) -> str:
    cores = sorted(os.sched_getaffinity(0))
    pipes = [PROCESSES.Pipe() for _ in cores]
    files = encoded_images(ds)
    for number, (_, far) in enumerate(pipes):
        work = far, files[number :: len(cores)], crop
        PROCESSES.Process(target=crop_on_request, args=work, daemon=True).start()

    def processes() -> None:
        for near, _ in pipes:
            near.send("go")
        for near, _ in pipes:
            near.recv()

    source, rows = HFIndexedSource.from_dataset(ds, transform=crop), np.arange(len(ds))
    processes(), source.read_rows(rows)
    found = [seconds(processes) / seconds(lambda: source.read_rows(rows)) for _ in range(turns)]
    for near, _ in pipes:
        near.send(None)
    return summary(found)


def on_one_core(ds: datasets.Dataset, crop: random_resized_crop, turns: int) -> str:
    """Compares within a process that has one core and has decoded nothing yet."""
    near, far = PROCESSES.Pipe()
    work = far, ds, crop, turns
    child = PROCESSES.Process(target=compare_on_one_core, args=work, daemon=True)
    child.start()
    far.close()  # so that a child that fails ends the wait
    ratios = near.recv()
    child.join()
    return summary(ratios)


def compare_on_one_core(end, ds: datasets.Dataset, crop: random_resized_crop, turns: int) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    files, rows = encoded_images(ds), np.arange(len(ds))
    source = HFIndexedSource.from_dataset(ds, transform=crop, num_threads=1)
    boxes = boxes_of(files, crop)

    def plain() -> None:
        plain_pillow(files, boxes)

    def ours() -> None:
        source.read_rows(rows)

    plain(), ours()
    end.send([seconds(plain) / seconds(ours) for _ in range(turns)])


def mapped(ds: datasets.Dataset, turns: int) -> str:
    features = datasets.Features({"image": datasets.Array3D(SHAPE, "uint8")})

    def by_map() -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder, "rows.arrow"))
            HFEagerSource.from_dataset(ds.map(resize(224), features=features, cache_file_name=file))

    def ours() -> None:
        HFEagerSource.from_dataset(ds, transform=resize(224))

    by_map(), ours()
    return summary([seconds(by_map) / seconds(ours) for _ in range(turns)])


if __name__ == "__main__":
    main()
