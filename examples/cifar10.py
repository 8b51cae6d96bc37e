"""Photographs of ten classes with a small convolutional network, sized for two CPU cores.

    python examples/cifar10.py                             # uoft-cs/cifar10 from the Hub
    python examples/cifar10.py --dataset path/to/cifar10   # a local folder of 32 x 32 images
    python examples/cifar10.py --bfloat16 --epochs 40      # on an accelerator

A step takes 0.26 s on two CPU cores, an epoch 105 s: ten epochs are made for 20 minutes. The
accuracy on CIFAR-10 has not been measured.

The recipe is that of airbench (https://arxiv.org/abs/2404.00498) at half its width: a first layer
that whitens patches and is not trained, convolutions that begin as the identity, random crop and
flip, label smoothing, Nesterov momentum. Here the rate follows a cosine, what is evaluated is a
moving average of the parameters, and the last line also averages over each image and its mirror.
The same command goes on where the last one ended.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from datarax import HFEagerSource, Pipeline
from datarax.hub.load import load_split
from datarax.stages import Map, OneHot, RandomFlip, RandomTranslate
from trainers import Trainer

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's channels
SMOOTHING = 0.2


def whitening(images: np.ndarray) -> np.ndarray:
    """Returns a kernel whose outputs are uncorrelated on `images`, and its negative beside it.

    Args:
        images: `(images, height, width, 3)` uint8.

    Returns:
        `(2, 2, 3, 24)` float32: the eigenvectors of the patches' covariance, each over the square
        root of its eigenvalue.
    """
    x = normalized(images / np.float32(255))
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    scaled = (vectors / np.sqrt(values + 5e-4)).reshape(2, 2, 3, 12)
    return np.concatenate([scaled, -scaled], axis=-1).astype(np.float32)


def normalized(x):
    """Returns images in [0, 1] with mean 0 and standard deviation 1 in each channel."""
    mean, std = (np.asarray(values, x.dtype) for values in (MEAN, STD))
    return (x - mean) / std


def identity(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Initializes a kernel of which the first filters return their inputs."""
    kernel = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    inputs = jnp.arange(shape[2])
    middle = jnp.zeros(shape[:3] + shape[2:3], dtype).at[1, 1, inputs, inputs].set(1)
    return kernel.at[..., inputs].set(middle)


def halved(x: jax.Array) -> jax.Array:
    """Returns the largest of each 2 x 2 pixels.

    On a CPU the gradient of these four slices takes 6 ms where that of `nnx.max_pool` takes 97.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


class Block(nnx.Module):
    """Two convolutions, with a halving behind the first.

    Args:
        inputs: Channels of its input.
        outputs: Channels of its output; at least as many.
        rngs: Stream `params`.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        def conv(channels):
            size, init = (3, 3), identity
            return nnx.Conv(channels, outputs, size, use_bias=False, kernel_init=init, rngs=rngs)

        self.conv1, self.conv2 = conv(inputs), conv(outputs)
        self.norm1 = nnx.BatchNorm(outputs, momentum=0.9, use_scale=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(outputs, momentum=0.9, use_scale=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.gelu(self.norm1(halved(self.conv1(x))))
        return nnx.gelu(self.norm2(self.conv2(x)))


class Net(nnx.Module):
    """A whitening that is not trained, three blocks, and a linear layer.

    Args:
        kernel: The whitening's kernel, `(2, 2, 3, 24)`.
        widths: Channels of each block.
        classes: Number of classes.
        rngs: Stream `params`.
    """

    def __init__(self, kernel: np.ndarray, widths: list[int], classes: int, *, rngs: nnx.Rngs):
        self.whitening = nnx.Variable(jnp.asarray(kernel))  # no nnx.Param: it is not trained
        pairs = zip([kernel.shape[-1], *widths], widths, strict=False)
        self.blocks = nnx.List([Block(*pair, rngs=rngs) for pair in pairs])
        self.linear = nnx.Linear(widths[-1], classes, use_bias=False, rngs=rngs)

    def __call__(self, img: jax.Array) -> jax.Array:
        x, kernel = normalized(img), self.whitening[...].astype(img.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
        x = nnx.gelu(x)
        for block in self.blocks:
            x = block(x)
        return self.linear(x.max(axis=(1, 2))) / 9


def load(dataset: str, seed: int) -> tuple[HFEagerSource, HFEagerSource]:
    """Returns the sources of the training and the test split, with the columns img and label."""
    try:
        splits = [load_split(dataset, split).dataset for split in ("train", "test")]
    except (ConnectionError, FileNotFoundError) as error:
        sys.exit(
            f"{error}\nThe images are not at hand. With a network connection the Hub's are loaded "
            "by themselves; otherwise write --dataset FOLDER, a folder of Parquet files, or of "
            "folders train and test that hold a folder of PNGs for each class."
        )
    if "image" in splits[0].features:  # as a folder of pictures calls them
        splits = [split.rename_column("image", "img") for split in splits]
    train, test = (split.select_columns(["img", "label"]) for split in splits)
    shuffled = HFEagerSource.from_dataset(train, shuffle=True, seed=seed)
    return shuffled, HFEagerSource.from_dataset(test)


def mirrored(model: Net, batch: dict) -> jax.Array:
    """Returns the mean of the logits of each image and of its mirror image."""
    image = batch["img"].astype(jnp.float32) / 255
    return (model(image) + model(image[:, :, ::-1])) / 2


def main() -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="a Hub name or a folder")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="in place of epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128, 128], help="of blocks")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="of the model and of the order")
    parser.add_argument("--workdir", type=Path, help="where to keep checkpoints and the report")
    args = parser.parse_args()

    train, test = load(args.dataset, args.seed)
    classes = train.features["label"].num_classes
    stages = [
        RandomTranslate("img", 2, fill="reflect"),
        RandomFlip("img"),
        OneHot("label", classes),
        Map("label", lambda rows: optax.smooth_labels(rows, SMOOTHING)),
    ]
    rngs, size = nnx.Rngs(args.seed), args.batch_size
    pipeline = Pipeline(source=train, stages=stages, batch_size=size, rngs=rngs)
    steps = args.steps or args.epochs * len(pipeline)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3 * size, steps // 5, steps)
    trainer = Trainer(
        Net(whitening(np.asarray(train[:5000]["img"])), args.widths, classes, rngs=rngs),
        pipeline,
        # The decay is for kernels; the biases of normalisation have one axis.
        optimizer=optax.chain(
            optax.add_decayed_weights(1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
            optax.sgd(rate, momentum=0.9, nesterov=True),
        ),
        eval_source=test,
        eval_every=2 * len(pipeline),
        steps=steps,
        ema=0.995,
        precision=jnp.bfloat16 if args.bfloat16 else None,
        workdir=args.workdir,
    )
    result = trainer.fit()
    found = trainer.predict(test, mirrored).argmax(-1)
    accuracy = float((found == np.asarray(test.data["label"])).mean())
    print(
        f"test accuracy: {result.metrics['eval/accuracy']:.2%}, with mirror images {accuracy:.2%}"
    )
    return accuracy


if __name__ == "__main__":
    main()
