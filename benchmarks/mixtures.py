"""Mixtures and views of eager sources, beside one source of the same records.

    python -m benchmarks.mixtures [--only loop|order] [--quick]

About two minutes on two CPU cores. A ratio is the time of one source over the mixture's or view's.
"""

import argparse
import statistics
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import models
from benchmarks.timing import Rival, Turns, seconds, versions
from datarax import MemorySource, MemorySourceConfig, MixedSource
from datarax.sources import EagerSourceBase
from trainers import Trainer, every

ROUNDS = 15
STEPS = 500
RECORDS = 1_000_000
STEPS_SCANNED = 2_000


class Paused:
    """A run of another trainer, which goes on for some steps whenever it is told to.

    Args:
        source: Its data.
        total: Number of its steps.
    """

    def __init__(self, source: object, total: int):
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._trainer = Trainer(
            models.MLP(rngs=nnx.Rngs(0)),
            source,
            batch_size=models.BATCH,
            steps=total,
            callbacks=[every(STEPS, self._pause)],
        )
        threading.Thread(target=self._fit, daemon=True).start()

    def __call__(self) -> None:
        """Lets it run for `STEPS` steps."""
        self._go.release()
        self._done.acquire()

    def _fit(self) -> None:
        self._go.acquire()
        self._trainer.fit()

    def _pause(self, run: object) -> None:
        self._done.release()
        self._go.acquire()


def loops(source: EagerSourceBase, rounds: int) -> str:
    """Returns the ratios of the others to one source."""
    half = len(source) // 2
    data = jax.tree.map(np.asarray, source.data)
    parts = [
        MemorySource(MemorySourceConfig(shuffle=True, seed=n), {k: x[own] for k, x in data.items()})
        for n, own in enumerate((slice(0, half), slice(half, None)))
    ]
    views = [source.select(slice(0, half)), source.select(slice(half, None))]
    others = {
        "mixture of two sources": MixedSource(parts, [0.7, 0.3]),
        "mixture of two views": MixedSource(views, [0.7, 0.3]),
        "fold": source.fold(0, of=5)[0],
        "balanced": source.balanced("label"),
        "weighted": source.weighted(np.arange(len(source))),
    }
    total = STEPS * (rounds + 1)
    rivals = {name: Rival(Paused(one, total), STEPS) for name, one in others.items()}
    turns = Turns(STEPS, rivals, rounds)
    model = models.MLP(rngs=nnx.Rngs(0))
    callbacks = [every(STEPS, turns)]
    Trainer(model, source, batch_size=models.BATCH, steps=total, callbacks=callbacks).fit()
    ours = f"  (one source {statistics.median(turns.ours) * 1e6:,.0f} us a step)"
    lines = []
    for name in rivals:
        low, median, high = statistics.quantiles(
            [1 / ratio for ratio in turns.ratios(name)], n=4, method="inclusive"
        )
        lines.append(f"  {name:32} {median:8.3f}   (quartiles {low:.3f} to {high:.3f})")
    return "\n".join([*lines, ours])


def orders(rounds: int) -> str:
    """Returns microseconds for the records of one batch of some views, beside a scan without."""
    classes = np.random.default_rng(0).integers(0, 10, RECORDS)
    rare = np.searchsorted(np.cumsum(1 / np.arange(1, 51) ** 2), classes / 10 + 0.55)
    source = MemorySource(MemorySourceConfig(shuffle=True), {"label": classes.astype(np.int32)})
    views = {
        "select": source.select(slice(None, None, -1)),
        "fold": source.fold(0, of=5)[0],
        "balanced, 10 classes alike": source.balanced("label"),
        "balanced, small classes": source.balanced(rare),
        "weighted, uniform": source.weighted(np.ones(RECORDS)),
        "weighted, Pareto": source.weighted(np.random.default_rng(0).pareto(1.0, RECORDS)),
    }
    empty = scan_of(lambda _, start: start + jnp.arange(models.BATCH, dtype=jnp.uint32), None)
    lines = []
    for name, view in views.items():
        batch = lambda order, start: order.window(start >> 17, start, models.BATCH)  # noqa: E731
        run = scan_of(batch, jax.tree.map(jnp.asarray, view.order))
        times = [(seconds(run) - seconds(empty)) / STEPS_SCANNED * 1e6 for _ in range(rounds)]
        lines.append(f"  {name:32} {statistics.median(times):8.1f}   (least {min(times):.1f})")
    return "\n".join(lines)


def scan_of(batch: Callable, order: object) -> Callable[[], object]:
    """Returns a program that sums the records of many batches, `batch(order, start)` each."""

    @jax.jit
    def scan(order, first):
        def add(total, t):
            start = (first + t).astype(jnp.uint32) * np.uint32(models.BATCH)
            return total + batch(order, start).sum(dtype=jnp.uint32), None

        return jax.lax.scan(add, jnp.uint32(0), jnp.arange(STEPS_SCANNED))[0]

    run = lambda: scan(order, 0).block_until_ready()  # noqa: E731
    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("loop", "order"), help="default: both")
    parser.add_argument("--quick", action="store_true", help="two rounds each: only to try it")
    args = parser.parse_args()
    rounds = 2 if args.quick else ROUNDS
    print(versions("jax", "flax", "optax"), jax.default_backend())
    if args.only != "order":
        print(f"MLP 784-128-10, batch {models.BATCH}: time of one source / time")
        print(loops(models.source(None), rounds), flush=True)
    if args.only != "loop":
        print(f"{models.BATCH} positions of {RECORDS:,} records inside a scan: microseconds")
        print(orders(rounds), flush=True)


if __name__ == "__main__":
    main()
