"""The training loop, beside loops written by hand.

    python -m benchmarks.loop [--dataset FOLDER] [--only mlp|cnn|transformer|order]

About four minutes on two CPU cores, where the transformer gets few tokens. A ratio is the
hand-written loop's time over the trainer's. On a GPU a pair has more steps, as they are short.
"""

import argparse
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import models
from benchmarks.timing import Rival, Turns, seconds, versions
from datarax import MemorySource, MemorySourceConfig
from datarax.order import epoch_seed, window
from datarax.sources import EagerSourceBase
from examples.lm import VOCABULARY
from examples.mnist import CNN
from trainers import Trainer, every

ROUNDS = 15
PARTS = "mlp", "cnn", "transformer", "order"
ON_GPU = jax.default_backend() == "gpu"
TOKENS = (16, 512) if ON_GPU else (2, 64)
LENGTHS = (2**31 - 1, 1_000_000, 60_000, 10_000, 1_797, 500, 256, 180, 150, 128, 10, 2)


def mlp(source: EagerSourceBase, pairs: int, log_every: int) -> Turns:
    """`fit` with its logs against one `lax.scan` of as many steps without any log."""
    steps = 5_000 if ON_GPU else max(500, log_every)
    rival = models.scanned(models.MLP(rngs=nnx.Rngs(0)), source.data, steps)
    turns = Turns(steps, {"lax.scan": Rival(rival, steps)}, pairs)
    return against(turns, models.MLP(rngs=nnx.Rngs(0)), source, log_every=log_every)


def cnn(source: EagerSourceBase, pairs: int) -> Turns:
    """`fit` of the MNIST example's model against a jitted step called from Python."""
    steps = 1_000 if ON_GPU else 10
    rival = models.stepped(CNN(28, rngs=nnx.Rngs(params=0, dropout=1)), source.data, steps)
    turns = Turns(steps, {"jax.jit": Rival(rival, steps)}, pairs)
    return against(turns, CNN(28, rngs=nnx.Rngs(params=0, dropout=1)), source)


def transformer(pairs: int) -> Turns:
    """`fit` in `bfloat16` against a jitted, donated step called from Python."""
    steps, batch = 200 if ON_GPU else 2, TOKENS[0]
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (1024, TOKENS[1]), dtype=np.int32)
    source = MemorySource(MemorySourceConfig(shuffle=True), {"input_ids": rows})

    def model():
        return models.LanguageModel(512, 6, 8, TOKENS[1], rngs=nnx.Rngs(0))

    how = {"mean_loss": models.of_tokens, "precision": jnp.bfloat16}
    rival = models.stepped(model(), source.data, steps, batch, **how)
    turns = Turns(steps, {"jax.jit": Rival(rival, steps)}, pairs)
    return against(turns, model(), source, batch_size=batch, precision=jnp.bfloat16)


def against(turns: Turns, model: nnx.Module, source: EagerSourceBase, **arguments: Any) -> Turns:
    """Trains with the task and the optimizer inferred, and the rivals in between."""
    arguments = {"batch_size": models.BATCH, "callbacks": [every(turns.steps, turns)], **arguments}
    Trainer(model, source, steps=turns.total, **arguments).fit()
    return turns


def order_of(length: int, rounds: int) -> list[float]:
    """Returns microseconds for the records of one shuffled batch, inside a scan, a round each."""
    steps = 2_000 if length > 5_000 else 200
    per_epoch = -(-length // models.BATCH)

    def batch(t):
        start = (t % per_epoch).astype(jnp.uint32) * np.uint32(models.BATCH)
        seed = epoch_seed(0, t // per_epoch)
        return window(start, models.BATCH, num_records=length, seed=seed)

    def stored(t):
        start = (t % per_epoch).astype(jnp.uint32) * np.uint32(models.BATCH)
        return window(start, models.BATCH, num_records=length)

    def scan_of(records):
        @jax.jit
        def scan(first):
            add = lambda total, t: (total + records(first + t).sum(), None)  # noqa: E731
            return jax.lax.scan(add, jnp.int32(0), jnp.arange(steps))[0]

        scan(0).block_until_ready()
        return lambda: scan(0).block_until_ready()

    shuffled, plain = scan_of(batch), scan_of(stored)
    return [(seconds(shuffled) - seconds(plain)) / steps * 1e6 for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a folder with MNIST's columns; default: random images")
    parser.add_argument("--only", choices=PARTS, default=PARTS, nargs="+", help="default: all")
    parser.add_argument("--quick", action="store_true", help="two rounds each: only to try it")
    args = parser.parse_args()
    rounds = 2 if args.quick else ROUNDS

    print(versions("jax", "flax", "optax"), jax.devices()[0].device_kind)
    print("Hand-written time / trainer's time")
    if "mlp" in args.only:
        for log_every in (100, 1_000):
            print(f"MLP 784-128-10, batch {models.BATCH}, a log every {log_every} steps")
            print(mlp(models.source(args.dataset), rounds, log_every), flush=True)
    if "cnn" in args.only:
        print(f"CNN of examples/mnist.py, batch {models.BATCH}")
        print(cnn(models.source(args.dataset), rounds), flush=True)
    if "transformer" in args.only:
        print("Transformer of six layers, width 512, {} x {} tokens, bfloat16".format(*TOKENS))
        print(transformer(rounds), flush=True)
    if "order" in args.only:
        print(f"Shuffled order inside a scan, {models.BATCH} records: microseconds a batch")
        for length in LENGTHS[:: 4 if args.quick else 1]:
            times = order_of(length, rounds)
            print(f"  {length:13,} {statistics.median(times):8.1f}   (least {min(times):.1f})")


if __name__ == "__main__":
    main()
