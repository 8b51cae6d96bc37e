"""What the benchmarks train: the data, the models, and the loops one would write by hand."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from datarax import HFEagerConfig, HFEagerSource, MemorySource, MemorySourceConfig
from datarax.sources import EagerSourceBase

BATCH = 128


class MLP(nnx.Module):
    """784-128-10.

    Args:
        rngs: Stream `params`.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(784, 128, rngs=rngs)
        self.logits = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.logits(nnx.relu(self.hidden(image.reshape(len(image), -1))))


def source(dataset: str | None) -> EagerSourceBase:
    """Returns a shuffled source of 28x28 `uint8` images.

    Args:
        dataset: A local folder or a Hub name with MNIST's columns; None: 60,000 random images.
    """
    if dataset is not None:
        return HFEagerSource(HFEagerConfig(name=dataset, split="train", shuffle=True))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60_000, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, 60_000, dtype=np.int32)
    return MemorySource(MemorySourceConfig(shuffle=True), {"image": images, "label": labels})


def permutations(length: int, steps: int) -> jax.Array:
    """Returns the records of `steps` batches, epoch after epoch, of shape `(steps, BATCH)`."""
    random = np.random.default_rng(0)
    per_epoch = length // BATCH
    epochs = [
        random.permutation(length)[: per_epoch * BATCH] for _ in range(-(-steps // per_epoch))
    ]
    return jnp.asarray(np.concatenate(epochs).reshape(-1, BATCH)[:steps], jnp.int32)


def hand_written(model: nnx.Module) -> tuple[tuple, Callable]:
    """Returns the first carry and `step(carry, images, labels, records) -> carry, loss`.

    The plainest fast step: the model's state split once, one gather, the mean loss and
    `optax.adamw(1e-3)`. No metrics beside the loss, no partial batches.
    """
    optimizer = optax.adamw(1e-3)
    definition, params, rest = nnx.split(model, nnx.Param, ...)
    # Copies: the carry is donated, and the model's own arrays would go with it.
    params, rest = jax.tree.map(lambda x: jnp.array(x, copy=True), (params, rest))

    def loss(params, rest, images, labels):
        model = nnx.merge(definition, params, rest, copy=True)
        logits = model(images.astype(jnp.float32)[..., None] / 255)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), nnx.split(model, nnx.Param, ...)[2]

    def step(carry, images, labels, records):
        params, rest, state = carry
        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(
            params, rest, images[records], labels[records]
        )
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), rest, state), value

    return (params, rest, optimizer.init(params)), step


def scanned(model: nnx.Module, data: dict[str, jax.Array], steps: int) -> Callable[[], np.ndarray]:
    """Returns a function that trains for `steps` steps in one `lax.scan` and gives the losses."""
    carry, step = hand_written(model)
    records = permutations(len(data["label"]), steps)

    @jax.jit(donate_argnums=0)
    def train(carry, images, labels, records):
        return jax.lax.scan(lambda carry, r: step(carry, images, labels, r), carry, records)

    def run():
        nonlocal carry
        carry, losses = train(carry, data["image"], data["label"], records)
        return np.asarray(losses)

    return run


def stepped(model: nnx.Module, data: dict[str, jax.Array], steps: int) -> Callable[[], np.ndarray]:
    """Returns a function that calls a jitted, donated step `steps` times; gives the last loss."""
    carry, step = hand_written(model)
    step = jax.jit(step, donate_argnums=0)
    records = list(permutations(len(data["label"]), steps))

    def run():
        nonlocal carry
        for r in records:
            carry, loss = step(carry, data["image"], data["label"], r)
        return np.asarray(loss)

    return run
