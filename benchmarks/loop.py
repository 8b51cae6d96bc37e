"""The training loop, beside loops written by hand.

    python -m benchmarks.loop [--dataset FOLDER] [--only mlp|cnn|order]

About two minutes on two CPU cores. A ratio is the hand-written loop's time over the trainer's.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import models
from benchmarks.timing import Rival, Turns, seconds, versions
from datarax.order import epoch_seed, window
from datarax.sources import EagerSourceBase
from examples.mnist import CNN
from trainers import Trainer, every

ROUNDS = 15
LENGTHS = (2**31 - 1, 1_000_000, 60_000, 10_000, 1_797, 500, 256, 180, 150, 128, 10, 2)


def mlp(source: EagerSourceBase, pairs: int) -> Turns:
    """`fit`, logging every 100 steps, against one `lax.scan` of 500 steps without any log."""
    rival = models.scanned(models.MLP(rngs=nnx.Rngs(0)), source.data, 500)
    turns = Turns(500, {"lax.scan": Rival(rival, 500)}, pairs)
    return against(turns, models.MLP(rngs=nnx.Rngs(0)), source)


def cnn(source: EagerSourceBase, pairs: int) -> Turns:
    """`fit` of the MNIST example's model against a jitted step called from Python."""
    rival = models.stepped(CNN(28, rngs=nnx.Rngs(params=0, dropout=1)), source.data, 10)
    turns = Turns(10, {"jax.jit": Rival(rival, 10)}, pairs)
    return against(turns, CNN(28, rngs=nnx.Rngs(params=0, dropout=1)), source)


def against(turns: Turns, model: nnx.Module, source: EagerSourceBase) -> Turns:
    """Trains with everything inferred, and the rivals in between."""
    callbacks = [every(turns.steps, turns)]
    Trainer(model, source, batch_size=models.BATCH, steps=turns.total, callbacks=callbacks).fit()
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
    parser.add_argument("--only", choices=("mlp", "cnn", "order"), help="default: all three")
    parser.add_argument("--quick", action="store_true", help="two rounds each: only to try it")
    args = parser.parse_args()
    rounds = 2 if args.quick else ROUNDS

    print(versions("jax", "flax", "optax"), jax.default_backend())
    if args.only in (None, "mlp", "cnn"):
        source = models.source(args.dataset)
        if args.only != "cnn":
            print(f"MLP 784-128-10, batch {models.BATCH}: hand-written time / trainer's time")
            print(mlp(source, rounds), flush=True)
        if args.only != "mlp":
            print(f"CNN of examples/mnist.py, batch {models.BATCH}: hand-written / trainer's time")
            print(cnn(source, rounds), flush=True)
    if args.only in (None, "order"):
        print(f"Shuffled order inside a scan, {models.BATCH} records: microseconds a batch")
        for length in LENGTHS[:: 4 if args.quick else 1]:
            times = order_of(length, rounds)
            print(f"  {length:13,} {statistics.median(times):8.1f}   (least {min(times):.1f})")


if __name__ == "__main__":
    main()
