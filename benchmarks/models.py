"""What the benchmarks train: the data, the models, and the loops one would write by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from datarax import HFEagerConfig, HFEagerSource, MemorySource, MemorySourceConfig
from datarax.sources import EagerSourceBase
from examples.lm import LENGTH, Transformer

BATCH = 128

MeanLoss = Callable[[nnx.Module, dict[str, jax.Array]], jax.Array]


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


class LanguageModel(Transformer):
    """The transformer of `examples/lm.py` on rows of one document each.

    Args:
        width: Numbers a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        length: Tokens of a row at most.
        rngs: Stream `params`.
    """

    def __init__(self, width: int, depth: int, heads: int, length: int = LENGTH, *, rngs: nnx.Rngs):
        super().__init__(width, depth, heads, rngs=rngs)
        scale = nnx.initializers.normal(0.02)
        self.places = nnx.Embed(length, width, embedding_init=scale, rngs=rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        return super().__call__(input_ids, jnp.ones_like(input_ids), positions)


def of_labels(model: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the mean loss of a classifier of images."""
    logits = model(batch["image"].astype(jnp.float32)[..., None] / 255)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def of_tokens(model: nnx.Module, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the mean loss of a language model, whose logits may be `bfloat16`."""
    tokens = batch["input_ids"]
    logits = model(tokens).astype(jnp.float32)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def permutations(length: int, steps: int, batch: int = BATCH) -> jax.Array:
    """Returns the records of `steps` batches, epoch after epoch, of shape `(steps, batch)`."""
    random = np.random.default_rng(0)
    per_epoch = length // batch
    epochs = [
        random.permutation(length)[: per_epoch * batch] for _ in range(-(-steps // per_epoch))
    ]
    return jnp.asarray(np.concatenate(epochs).reshape(-1, batch)[:steps], jnp.int32)


def hand_written(
    model: nnx.Module, mean_loss: MeanLoss = of_labels, precision: Any = jnp.float32
) -> tuple[tuple, Callable]:
    """Returns the first carry and `step(carry, data, records) -> carry, loss`.

    The plainest fast step: the model's state split once, one gather, the mean loss of the
    parameters in `precision`, and `optax.adamw(1e-3)`. No metrics beside the loss, no partial
    batches.
    """
    optimizer = optax.adamw(1e-3)
    definition, params, rest = nnx.split(model, nnx.Param, ...)
    # Copies: the carry is donated, and the model's own arrays would go with it.
    params, rest = jax.tree.map(lambda x: jnp.array(x, copy=True), (params, rest))

    def loss(params, rest, batch):
        lowered = jax.tree.map(lambda x: x.astype(precision), params)
        model = nnx.merge(definition, lowered, rest, copy=True)
        return mean_loss(model, batch), nnx.split(model, nnx.Param, ...)[2]

    def step(carry, data, records):
        params, rest, state = carry
        batch = jax.tree.map(lambda column: column[records], data)
        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(params, rest, batch)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), rest, state), value

    return (params, rest, optimizer.init(params)), step


def scanned(model: nnx.Module, data: dict[str, jax.Array], steps: int) -> Callable[[], np.ndarray]:
    """Returns a function that trains for `steps` steps in one `lax.scan` and gives the losses."""
    carry, step = hand_written(model)
    records = permutations(len(data["label"]), steps)

    @jax.jit(donate_argnums=0)
    def train(carry, data, records):
        return jax.lax.scan(lambda carry, r: step(carry, data, r), carry, records)

    def run():
        nonlocal carry
        carry, losses = train(carry, data, records)
        return np.asarray(losses)

    return run


def stepped(
    model: nnx.Module, data: dict[str, jax.Array], steps: int, batch: int = BATCH, **how: Any
) -> Callable[[], np.ndarray]:
    """Returns a function that calls a jitted, donated step `steps` times; gives the last loss.

    Args:
        model: The model.
        data: The columns.
        steps: Number of steps of a call.
        batch: Records of a step.
        **how: As of `hand_written`.
    """
    carry, step = hand_written(model, **how)
    step = jax.jit(step, donate_argnums=0)
    records = list(permutations(len(next(iter(data.values()))), steps, batch))

    def run():
        nonlocal carry
        for r in records:
            carry, loss = step(carry, data, r)
        return np.asarray(loss)

    return run
