"""Damages a checkpoint in every way that a disk does, and looks whether anybody is told.

    python -m benchmarks.damage [--size 65536] [--seed 0]

Every 4 KB block of the newer of two checkpoints is overwritten in turn (random bytes, zeros, one
flipped bit), every file is truncated (to nothing, to half, by one byte) and deleted in turn. After
each, the checkpoint must be read as it was saved, or the one before it with a warning; anything
else is wrong. At the default size, about two minutes on two CPU cores.
"""

import argparse
import collections
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from trainers.workdir.store import Store

BLOCK = 4096
OLDER, NEWER = 1, 2


def build(directory: Path, size: int) -> dict[int, tuple]:
    """Saves two checkpoints and returns what is in them.

    Args:
        directory: Where.
        size: Number of parameters.
    """
    store, saved = Store(directory, keep=2), {}
    for step in (OLDER, NEWER):
        keys = jax.random.split(jax.random.key(step), 4)
        model = {
            "kernel": jax.random.normal(keys[0], (size // 64, 64)),
            "bias": jax.random.normal(keys[1], (64,)),
            "count": jax.numpy.int32(step),
        }
        training = {"mu": jax.random.normal(keys[2], (size // 64, 64)), "loss": jax.numpy.ones(())}
        data, run = {"epoch": step, "index": 7}, {"step": step, "history": [{"loss": 1 / step}]}
        store.save(step, {"model": model, "training": training}, data, run)
        arrays = jax.tree.map(np.asarray, {"model": model, "training": training})
        saved[step] = (data, run, arrays)
    store.close()
    return saved


def cases(directory: Path, rng: random.Random) -> Iterator[tuple[str, Path, bytes | None]]:
    """Yields each damage of the newer checkpoint: its kind, the file, and what is left in it."""
    for path in sorted(p for p in (directory / str(NEWER)).rglob("*") if p.is_file()):
        whole = path.read_bytes()
        yield "deleted file", path, None
        for kind, length in {
            "emptied": 0,
            "halved": len(whole) // 2,
            "cut": len(whole) - 1,
        }.items():
            if 0 <= length < len(whole):
                yield f"{kind} file", path, whole[:length]
        for start in range(0, len(whole), BLOCK):
            block = whole[start : start + BLOCK]
            bit = 1 << rng.randrange(8 * len(block))
            flipped = (int.from_bytes(block, "big") ^ bit).to_bytes(len(block), "big")
            blocks = {"random": rng.randbytes(len(block)), "zeroed": bytes(len(block))}
            for kind, new in {**blocks, "one bit of a": flipped}.items():
                if new != block:
                    yield f"{kind} block", path, whole[:start] + new + whole[start + len(block) :]


def outcome(directory: Path, saved: dict[int, tuple]) -> str:
    """Returns what a reader of the store gets: "the same", "the one before" or "WRONG"."""
    store, said = Store(directory), _Said()
    logging.getLogger("trainers.workdir.store").addHandler(said)
    like = dict.fromkeys(("model", "training"))

    def take(step):
        data, run = store.read(step)
        return step, data, run, store.restore(step, like, run)

    try:
        step, data, run, arrays = store.newest(take)
    finally:
        logging.getLogger("trainers.workdir.store").removeHandler(said)
        store.close()
    right = saved[step][:2] == (data, {name: run[name] for name in saved[step][1]})
    leaves, expected = jax.tree.leaves(arrays), jax.tree.leaves(saved[step][2])
    right &= jax.tree.structure(arrays) == jax.tree.structure(saved[step][2])
    right &= all(x.tobytes() == y.tobytes() for x, y in zip(leaves, expected, strict=False))
    if right and step == NEWER:
        return "the same"
    return "the one before" if right and said.count == 1 else "WRONG"


class _Said(logging.Handler):
    """Counts warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record):
        self.count += 1


def damage(size: int, seed: int) -> collections.Counter[tuple[str, str]]:
    """Tries every case and returns how often each kind had each outcome."""
    root = Path(tempfile.mkdtemp(prefix="datarax-damage-"))
    saved, found = build(root, size), collections.Counter()
    for kind, path, left in cases(root, random.Random(seed)):
        whole = path.read_bytes()
        path.unlink() if left is None else path.write_bytes(left)
        try:
            result = outcome(root, saved)
        except Exception as error:  # nobody expects one: it is a finding
            result = f"{type(error).__name__}"
        path.write_bytes(whole)
        found[kind, result] += 1
        if result not in ("the same", "the one before"):
            print(f"{kind} {path.relative_to(root)}: {result}", flush=True)
    shutil.rmtree(root)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=65536, help="number of parameters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few parameters: only to try it")
    args = parser.parse_args()
    found = damage(1024 if args.quick else args.size, args.seed)
    for (kind, result), count in sorted(found.items()):
        print(f"{count:5} {kind}: {result}")
    wrong = sum(n for (_, r), n in found.items() if r not in ("the same", "the one before"))
    print(f"{sum(found.values())} cases, {wrong} wrong")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
