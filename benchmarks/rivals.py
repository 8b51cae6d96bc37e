"""The trainer, beside what a user would pick instead: the same MLP on the same data.

    python -m benchmarks.rivals [--dataset FOLDER]

About two minutes on two CPU cores. A ratio is the rival's time a step over the trainer's. Rivals
that are not installed are left out. All train with AdamW at 1e-3, batch 128, from `uint8` images in
memory. Rivals compute the loss and no metric; the trainer logs loss and accuracy.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import datasets
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import models
from benchmarks.timing import PAIRS, Rival, Turns, versions
from trainers import Trainer, every

STEPS = 500
Data = dict[str, np.ndarray]


def forever(epoch: Callable[[], Any]):
    """Yields the batches of one epoch after another."""
    while True:
        yield from epoch()


def jitted(batches, steps: int) -> Rival:
    """An `nnx.jit` step, fed by an iterator of batches: the loop of Flax's own tutorials."""
    model = models.MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def mean_loss(model):
            logits = model(images.astype(jnp.float32) / 255)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = nnx.value_and_grad(mean_loss)(model)
        optimizer.update(model, gradients)
        return loss

    def run():
        for _ in range(steps):
            batch = next(batches)
            loss = step(model, optimizer, batch["image"], batch["label"])
        return loss.block_until_ready()

    return Rival(run, steps)


def with_grain(data: Data) -> Rival:
    """Grain's shuffled, repeated and batched records, and `nnx.jit`."""

    class Records:
        def __len__(self):
            return len(data["label"])

        def __getitem__(self, i):
            return {name: column[i] for name, column in data.items()}

    batches = grain.MapDataset.source(Records()).shuffle(seed=0).repeat().batch(models.BATCH)
    # Read in the loop: threads help where records come from disk, and here they cost more than
    # they bring, and read ahead while the others are timed.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return jitted(iter(batches.to_iter_dataset(options)), 100)


def with_datasets(data: Data) -> Rival:
    """`with_format("jax")`, shuffled by `datasets`, and `nnx.jit`."""
    features = datasets.Features(
        {"image": datasets.Array2D((28, 28), "uint8"), "label": datasets.Value("int32")}
    )
    ds = datasets.Dataset.from_dict(data, features=features).with_format("jax")

    def epoch():
        return ds.shuffle().iter(models.BATCH, drop_last_batch=True)

    return jitted(forever(epoch), 20)


def with_keras(data: Data) -> Rival:
    """Keras 3 on JAX with `steps_per_execution=50`; `fit` shuffles."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=50,
    )
    steps = 400
    images, labels = (data[name][: steps * models.BATCH] for name in ("image", "label"))
    return Rival(lambda: model.fit(images, labels, batch_size=models.BATCH, verbose=0), steps)


def with_torch(data: Data) -> Rival:
    """PyTorch, on a GPU where it finds one, with a shuffling `DataLoader` over tensors."""
    import torch

    torch.set_num_threads(1)  # faster than two for steps as small as these
    tensors = torch.from_numpy(data["image"].copy()), torch.from_numpy(data["label"]).long()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*tensors), models.BATCH, shuffle=True, drop_last=True
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    batches, steps = forever(lambda: loader), 100

    def run():
        for _ in range(steps):
            images, labels = (column.to(device) for column in next(batches))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images.float() / 255), labels)
            loss.backward()
            optimizer.step()
        return loss.item()

    return Rival(run, steps)


RIVALS = {
    "Keras 3 (JAX, 50 steps a call)": with_keras,
    "Grain + nnx.jit": with_grain,
    'with_format("jax") + nnx.jit': with_datasets,
    "torch DataLoader": with_torch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a folder with MNIST's columns; default: random images")
    parser.add_argument("--quick", action="store_true", help="two pairs: only to try it")
    args = parser.parse_args()

    source = models.source(args.dataset)
    data = {name: np.array(source.data[name]) for name in ("image", "label")}
    rivals = {}
    for name, rival in RIVALS.items():
        try:
            rivals[name] = rival(data)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error.name} is not installed")

    turns = Turns(STEPS, rivals, 2 if args.quick else PAIRS)
    Trainer(
        models.MLP(rngs=nnx.Rngs(0)),
        source,
        batch_size=models.BATCH,
        steps=turns.total,
        callbacks=[every(STEPS, turns)],
    ).fit()
    packages = "jax", "flax", "grain", "datasets", "keras", "torch"
    found = [one for one in packages if importlib.util.find_spec(one) is not None]
    print(versions(*found), jax.devices()[0].device_kind)
    print(f"MLP 784-128-10, batch {models.BATCH}: the rival's time / the trainer's")
    print(turns)


if __name__ == "__main__":
    main()
