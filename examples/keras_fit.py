"""A source in Keras' own `fit`, on the JAX backend: `pip install keras`.

    python examples/keras_fit.py

Test accuracy to expect: digits, which come with scikit-learn, 97 %, in 10 s on two CPU cores. The
batches are those of the trainer, and the order of an epoch a function of the seed. `BATCH` records
a step, also at an epoch's end: `get_batch` runs on into the next one.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from mnist import load

from datarax import HFEagerSource

BATCH = 64


def batches(source: HFEagerSource) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields what Keras takes, pairs of inputs and labels, for ever."""
    while True:
        batch = source.get_batch(BATCH)
        yield np.asarray(batch["image"]), np.asarray(batch["label"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the model and of the order")
    parser.add_argument("--workdir", type=Path, help="where to keep the weights")
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    training, test = load("digits", args.seed)
    model = keras.Sequential(
        [
            keras.Input(training.element_spec()["image"].shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(2e-3), loss, metrics=["accuracy"])
    # The source shuffles.
    model.fit(batches(training), steps_per_epoch=args.steps, shuffle=False, verbose=2)

    held_out = test[:]  # all of its records, in host memory
    _, accuracy = model.evaluate(held_out["image"], held_out["label"], verbose=0)
    print(f"test accuracy: {accuracy:.2%}")
    if args.workdir is not None:
        args.workdir.mkdir(parents=True, exist_ok=True)
        model.save_weights(args.workdir / "model.weights.h5")


if __name__ == "__main__":
    main()
