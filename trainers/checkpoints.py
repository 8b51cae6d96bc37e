"""Checkpoints: one Orbax composite a step, each array under a checksum of its own."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import args

from datarax.errors import expect_between
from trainers.checksum import checksums

logger = logging.getLogger(__name__)

FORMAT = 1
_ARRAYS = ("model", "training")


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save and what to keep.

    The last step is always saved, and so is the step at which a run is stopped or preempted.

    Args:
        every: Steps between two checkpoints.
        keep: How many of the newest to keep.
        best: `(metric, "min" | "max")`, such as `("eval/accuracy", "max")`: the checkpoint with the
            best value is kept beside them, under `<workdir>/best`.
        every_minutes: Minutes between two checkpoints, beside `every`.

    Raises:
        ValueError: If a number is not positive or `best` is no such pair.
    """

    every: int = 1000
    keep: int = 3
    best: tuple[str, str] | None = None
    every_minutes: float | None = None

    def __post_init__(self):
        expect_between("every", self.every, 1, 2**31 - 1)
        expect_between("keep", self.keep, 1, 2**31 - 1)
        if self.best is not None and (len(self.best) != 2 or self.best[1] not in ("min", "max")):
            raise ValueError(f'best={self.best!r}: expected a pair as ("eval/accuracy", "max").')
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(f"every_minutes={self.every_minutes}: expected a positive number.")


class DamagedError(Exception):
    """A checkpoint cannot be read whole; the message says why."""


class Store:
    """The checkpoints in one directory.

    Args:
        directory: Where they are; made when the first is saved.
        keep: How many of the newest to keep; None for all.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = None):
        self.directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, arrays: dict[str, Any], data: dict, run: dict) -> None:
        """Saves a checkpoint; the writing goes on in the background.

        Args:
            step: Its number.
            arrays: The pytrees `model` and `training`; they may be donated once this returns.
            data: The source's state.
            run: What else the run must remember, JSON-able.

        Raises:
            OSError: If this or the checkpoint before could not be written.
        """
        arrays = {name: without_keys(arrays[name]) for name in _ARRAYS}
        run = {**run, "format": FORMAT, "checksums": checksums(arrays), "data": _digest(data)}
        items = {name: args.StandardSave(tree) for name, tree in arrays.items()}
        items["data"] = args.JsonSave(data)
        items["run"] = args.JsonSave({**run, "digest": _digest(run)})
        self._manager.save(step, args=args.Composite(**items), force=True)

    def read(self, step: int) -> tuple[dict, dict]:
        """Returns the `data` and the `run` of a checkpoint.

        Raises:
            DamagedError: If they are not what was saved.
            ValueError: If a newer version of this library saved them.
        """
        items = {"data": args.JsonRestore(), "run": args.JsonRestore()}
        found = self._restored(step, items)
        data, run = found["data"], found["run"]
        digest = run.pop("digest", None) if isinstance(run, dict) else None
        if digest is None or digest != _digest(run) or run["data"] != _digest(data):
            raise DamagedError("its run or data item is not what was saved")
        if run["format"] > FORMAT:
            raise ValueError(
                f"{self._path(step)} has format {run['format']}, this version reads up to "
                f"{FORMAT}: update datarax to go on with this run."
            )
        return data, run

    def restore(self, step: int, like: dict[str, Any], run: dict) -> dict[str, Any]:
        """Returns the arrays of a checkpoint, checked.

        Args:
            step: Its number.
            like: Pytrees of the same structure, whose shapes, dtypes and shardings the arrays get;
                None for nested dicts of NumPy arrays, with PRNG keys as the words they are made of.
            run: What `read` returned of it.

        Raises:
            DamagedError: If an array is not what was saved.
        """
        items = {name: args.StandardRestore(_abstract(like[name])) for name in like}
        found = self._restored(step, items)
        arrays = {name: found[name] for name in like}
        sums = checksums(arrays)
        wrong = [path for path in sums if run["checksums"].get(path) != sums[path]]
        if wrong:
            raise DamagedError(f"{len(wrong)} of its arrays are not what was saved: {wrong[0]}")
        return {name: with_keys(arrays[name], like[name]) for name in like}

    def newest(self, take: Callable[[int], Any]) -> Any:
        """Returns `take(step)` of the newest checkpoint that is whole, None where there are none.

        A damaged one is set aside with a warning, and the one before is taken.

        Args:
            take: Reads a checkpoint; raises `DamagedError` where it is not whole.

        Raises:
            RuntimeError: If there are checkpoints and all are damaged.
        """
        reasons = {}
        for step in reversed(self.steps()):
            try:
                return take(step)
            except DamagedError as error:
                reasons[step] = str(error)
                logger.warning("%s is damaged: %s. It is set aside.", self._path(step), error)
        if not reasons:
            return None
        each = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
        raise RuntimeError(
            f"Every checkpoint in {self.directory} is damaged ({each}). Restore the directory from "
            "a copy, or begin anew in another workdir."
        )

    def set_aside(self, step: int) -> None:
        """Moves a checkpoint out of the way, so that its step can be saved again."""
        path = self._path(step)
        path.rename(self.directory / f"damaged-{step}-{os.urandom(3).hex()}")
        self._manager.reload()

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: If something could not be written.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the threads."""
        self._manager.close()

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _restored(self, step, items):
        try:
            return self._manager.restore(step, args=args.Composite(**items))
        except (PermissionError, ConnectionError, TimeoutError):
            raise  # says nothing of the checkpoint
        except Exception as error:  # what Orbax raises on damage is of many types
            reason = str(error).strip().splitlines() or [""]
            raise DamagedError(f"{type(error).__name__}: {reason[0]:.200}") from error


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_key(array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def without_keys(tree: Any) -> Any:
    """Returns `tree` with PRNG keys as the words they are made of."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def with_keys(tree: Any, like: Any) -> Any:
    """Returns `tree` with PRNG keys where `like` has them; where that is None, as it is."""
    if like is None:
        return tree

    def wrap(x, y):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(y)) if _is_key(y) else x

    return jax.tree.map(wrap, tree, like)


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
