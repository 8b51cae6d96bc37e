"""Pictures of many sizes, randomly cropped each time that they are read.

    python examples/photos.py                               # textures, which it draws itself
    python examples/photos.py --dataset path/to/folder      # a folder of pictures for each class
    python examples/photos.py --dataset food101 --size 128 --epochs 30      # from the Hub

Accuracy to expect on held-out textures, and the time on two CPU cores: 98 % in two minutes.

The pictures are JPEGs that lie on disk. For each batch, threads read and decode its pictures, and
`random_resized_crop` cuts images of one size out of them, half of them mirrored: others in every
epoch, and the same ones after a resume, since a crop depends on nothing but the seed, the epoch and
the picture. Held-out pictures, a fifth of all, are cut out of the middle. The run keeps its
checkpoints and its report under runs/photos; the same command goes on where it ended.
"""

import argparse
import itertools
from pathlib import Path

import jax
import numpy as np
import optax
import PIL.Image
from flax import nnx

from datarax import HFIndexedConfig, HFIndexedSource
from datarax.transforms import center_crop, random_resized_crop
from trainers import Trainer

TEXTURES = "bricks", "checks", "dots", "rings", "stripes", "waves"
BATCH = 32


class CNN(nnx.Module):
    """Four blocks of convolution, normalisation and pooling, and the mean over all places.

    Args:
        classes: Number of classes.
        rngs: The stream `params`.
    """

    def __init__(self, classes: int, *, rngs: nnx.Rngs):
        widths = 3, 16, 32, 64, 128
        pairs = list(itertools.pairwise(widths))
        self.convs = nnx.List(
            nnx.Conv(before, after, (3, 3), use_bias=False, rngs=rngs) for before, after in pairs
        )
        self.norms = nnx.List(nnx.BatchNorm(after, momentum=0.9, rngs=rngs) for _, after in pairs)
        self.linear = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            image = nnx.max_pool(nnx.relu(norm(conv(image))), (2, 2), (2, 2))
        return self.linear(image.mean((1, 2)))


def texture(name: str, rng: np.random.Generator) -> PIL.Image.Image:
    """Returns a picture of a texture in two colours, of any size, scale and direction."""
    height, width = rng.integers(96, 320, 2)
    y, x = np.mgrid[:height, :width] - rng.uniform(0, min(height, width), (2, 1, 1))
    period, angle = rng.uniform(16, 40), rng.uniform(0, np.pi)
    u = (x * np.cos(angle) + y * np.sin(angle)) / period
    v = (y * np.cos(angle) - x * np.sin(angle)) / period
    rows = np.floor(v)
    wave = {
        "bricks": lambda: (
            np.minimum(abs((u / 2 + rows % 2 / 2) % 1 - 0.5) * 2, abs(v % 1 - 0.5)) - 0.12
        ),
        "checks": lambda: np.sin(np.pi * u) * np.sin(np.pi * v),
        "dots": lambda: np.hypot(u % 1 - 0.5, v % 1 - 0.5) - 0.3,
        "rings": lambda: np.sin(2 * np.pi * np.hypot(u, v)),
        "stripes": lambda: np.sin(2 * np.pi * u),
        "waves": lambda: np.sin(2 * np.pi * (u + 0.35 * np.sin(2 * np.pi * v / 1.5))),
    }[name]()
    share = 1 / (1 + np.exp(-8 * wave))[..., None]  # of the first colour
    dark, light = rng.uniform(0, 110, 3), rng.uniform(130, 255, 3)
    pixels = share * dark + (1 - share) * light + rng.normal(0, 20, (height, width, 1))
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw(folder: Path, pictures: int) -> Path:
    """Draws the textures, a folder of JPEGs for each; files that are there stay as they are."""
    for number, name in enumerate(TEXTURES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for picture in range(pictures):
            file = folder / name / f"{picture:03}.jpg"
            if not file.exists():
                texture(name, np.random.default_rng([number, picture])).save(file, quality=90)
    return folder


def load(dataset: str, split: str, size: int, seed: int) -> tuple[HFIndexedSource, HFIndexedSource]:
    """Returns the sources of the pictures to train on, and of those that are held out.

    Args:
        dataset: A Hub name or a folder, with the columns `image` and `label`.
        split: The split to divide, four fifths and one.
        size: Height and width of the images, in pixels.
        seed: Seed of the order and of the crops.
    """

    def source(**fields) -> HFIndexedSource:
        return HFIndexedSource(HFIndexedConfig(name=dataset, split=split, seed=seed, **fields))

    crop = random_resized_crop(size, scale=(0.35, 1.0), flip=0.5)
    shuffled = source(transform=crop, shuffle=True)
    ordered = source(transform=center_crop(size, fraction=0.875))
    # Both hold the same records, so both are divided alike.
    return shuffled.split(0.2)[0], ordered.split(0.2)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="textures", help="textures, a Hub name or a folder")
    parser.add_argument("--split", default="train", help="its split; a fifth of it is held out")
    parser.add_argument("--pictures", type=int, default=250, help="of each texture")
    parser.add_argument("--size", type=int, default=48, help="pixels an edge, after the crop")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--steps", type=int, help="stop after so many; to go on, ask for more")
    parser.add_argument("--seed", type=int, default=0, help="of the model, the order and the crops")
    parser.add_argument("--init-from", help="a workdir or a file of weights to begin with")
    parser.add_argument("--workdir", type=Path, default=Path("runs/photos"))
    args = parser.parse_args()
    if (args.workdir / "checkpoints").exists():
        print(f"Going on with the run in {args.workdir}; delete it to begin anew.")

    dataset = args.dataset
    if dataset == "textures":
        dataset = str(draw(args.workdir / "textures", args.pictures))
    train, held_out = load(dataset, args.split, args.size, args.seed)
    print(f"{len(train):,} pictures to train on, {len(held_out):,} held out")
    whole = args.epochs * len(train) // BATCH
    rate = optax.cosine_onecycle_schedule(whole, peak_value=1e-2)
    result = Trainer(
        CNN(train.features["label"].num_classes, rngs=nnx.Rngs(args.seed)),
        train,
        optimizer=optax.adamw(rate, weight_decay=1e-2),
        eval_source=held_out,
        batch_size=BATCH,
        steps=args.steps or whole,
        log_every=min(100, len(train) // BATCH),
        init_from=args.init_from,
        workdir=args.workdir,
        seed=args.seed,
    ).fit()
    print(f"of the time, the model waited for pictures: {result.input_stall:.0%}")
    loss, accuracy = result.metrics["eval/loss"], result.metrics["eval/accuracy"]
    print(f"held out: loss {loss:.4g}, accuracy {accuracy:.2%}  (see {args.workdir}/report.html)")


if __name__ == "__main__":
    main()
