"""Time to the first finished step in a fresh process, and memory while training.

    python -m benchmarks.first_step [--pairs 3]

A six-layer transformer on the CPU, five minutes: `Trainer.fit` without a workdir beside a step that
is jitted and called by hand. They run in turn, each in a process of its own that compiles anew. The
clock starts with the model and the data at hand, after all imports; memory is the peak of what the
process holds from the first step to the last. Ratios are the trainer's over the hand-written one's;
on a busy machine the processor's seconds say more than the wall's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.models import LanguageModel
from benchmarks.timing import peak_megabytes, versions
from datarax import MemorySource, MemorySourceConfig
from examples.lm import LENGTH, VOCABULARY
from trainers import Trainer, every

BATCH, ROWS = 16, 1024


def hand_written(model: nnx.Module, rows: np.ndarray, steps: int, first: Callable[[], None]):
    """Trains with one jitted, donated step; calls `first` when a step is finished."""
    optimizer = optax.adamw(1e-3)
    definition, params = nnx.split(model)

    def loss(params, tokens):
        logits = nnx.merge(definition, params)(tokens)[:, :-1]
        targets = tokens[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit(donate_argnums=(0, 1))
    def step(params, state, tokens):
        value, gradients = jax.value_and_grad(loss)(params, tokens)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state = jax.jit(optimizer.init)(params)
    random = np.random.default_rng(0)
    for t in range(steps):
        batch = rows[random.integers(0, ROWS, BATCH)]
        params, state, value = step(params, state, batch)
        if t == 0:
            value.block_until_ready()
            first()
    value.block_until_ready()


def fitted(model: nnx.Module, rows: np.ndarray, steps: int, first: Callable[[], None]):
    """Trains with `fit`; calls `first` when a step is finished."""
    source = MemorySource(MemorySourceConfig(shuffle=True), {"input_ids": rows})

    def called(run):
        if run.step == 1:
            first()

    Trainer(
        model, source, steps=steps, batch_size=BATCH, eval_every=steps, callbacks=[every(1, called)]
    ).fit()


SIDES = {"hand": hand_written, "fit": fitted}


def measure(side: str, steps: int) -> dict[str, float]:
    """Returns the time to the first step, and megabytes at the peak of the steps after it."""
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH), dtype=np.int32)
    model = LanguageModel(256, 6, 8, rngs=nnx.Rngs(0))
    jax.block_until_ready(jnp.zeros(()) + 0)  # JAX is up
    found = {}
    begun, cpu = time.perf_counter(), time.process_time()

    def first():
        found["seconds"] = time.perf_counter() - begun
        found["CPU seconds"] = time.process_time() - cpu
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here

    SIDES[side](model, rows, steps, first)
    return {**found, "megabytes": peak_megabytes()}


def in_a_process(side: str, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_step", "--side", side, "--steps", str(steps)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of each process")
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    parser.add_argument("--quick", action="store_true", help="one pair, two steps")
    args = parser.parse_args()
    if args.side is not None:
        print(json.dumps(measure(args.side, args.steps)))
        return
    pairs, steps = (1, 2) if args.quick else (args.pairs, args.steps)
    print(versions("jax", "flax", "optax"), "cpu")
    found = [{side: in_a_process(side, steps) for side in SIDES} for _ in range(pairs)]
    for what in ("seconds", "CPU seconds", "megabytes"):
        ratios = [pair["fit"][what] / pair["hand"][what] for pair in found]
        each = ", ".join(f"{p['fit'][what]:.1f} / {p['hand'][what]:.1f}" for p in found)
        print(f"  {what:12} {statistics.median(ratios):6.3f}   (fit / by hand: {each})", flush=True)


if __name__ == "__main__":
    main()
