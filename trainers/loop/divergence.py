"""Divergence: which step made a run not finite, which records did it, and the state before it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainers.data.batches import Feed
from trainers.data.skipped import name_of
from trainers.devices.arrays import Snapshot, as_carry
from trainers.loop import program
from trainers.loop.chunks import chunks
from trainers.loop.plan import Plan
from trainers.step.state import State

_LOSS, _GRADIENT, _PARAMETERS = 1, 2, 3
_WHAT = {
    _LOSS: "The loss of batch {batch} is not finite",
    _GRADIENT: "The loss of batch {batch} is finite, its gradient is not",
    _PARAMETERS: "Loss and gradient of batch {batch} are finite, the parameters after its update "
    "are not",
}
_RECORDS = 8  # at most so many are named


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first step of a run that is not finite.

    Args:
        step: Number of finished steps before it.
        batch: Number of its batch, as in `Trainer.batch_at`.
        what: What is not finite.
        rows: Rows of the batch that are not finite by themselves, eight at most.
        records: The same records by their number in the source; of a mixture, pairs.
        first: The run's step that began with batch 0.
        epoch: Number of finished epochs there, with its fraction.
        rows_seen: Number of records that counted before it.
    """

    step: int
    batch: int
    what: str
    rows: list[int]
    records: list[Any]
    first: int
    epoch: float
    rows_seen: int = 0  # which notes up to 0.1.0 lack

    def __str__(self) -> str:
        pairs = zip(self.rows, self.records, strict=True)
        named = ", ".join(f"row {row} (record {name_of(record)})" for row, record in pairs)
        many = len(self.rows) == _RECORDS
        who = (
            f"By itself, so is {named}{', perhaps among others' * many}"
            if named
            else "No record of it is so by itself"
        )
        advice = (
            "Where many records are at fault, the parameters have grown too large: lower the "
            "learning rate, or clip the gradient with optax.clip_by_global_norm."
            if many or not named
            else "Mend or leave out what is wrong there, or guard the loss against it."
        )
        return (
            f"The run diverged in step {self.step + 1}. {self.what}. {who}. Look at them with "
            f"trainer.batch_at({self.batch}); the model is kept as it was after step {self.step}. "
            f"{advice}"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched:
    """A state that stays as it is before the first step that is not finite.

    Args:
        state: The state.
        why: 0, or what was not finite in the step after `state`; int32.
        steps: Number of steps that were finite, int32.
    """

    state: State
    why: jax.Array
    steps: jax.Array

    @classmethod
    def start(cls, state: State) -> "Watched":
        """Returns the state to begin with."""
        # Made of the state, they are on its devices.
        zero = jnp.where(state.loss == state.loss, 0, 0).astype(jnp.int32)
        return cls(state, zero, jnp.copy(zero))


def watch(step: Callable) -> Callable[[Watched, Any, jax.Array], Watched]:
    """Returns the train step `step` under watch: it keeps the state before what is not finite.

    A gradient counts only where it reaches the parameters or the optimizer's state, so that
    `optax.apply_if_finite` may do its work.
    """

    def one(watched: Watched, data: Any, t: jax.Array) -> Watched:
        old = watched.state
        new, gradient = step(old, data, t, gradient=True)
        reached = _nonfinite_state(new) > _nonfinite_state(old)
        why = jnp.select(
            [
                ~jnp.isfinite(new.loss),
                reached & (_nonfinite(gradient) > 0),
                _nonfinite(new.params) > _nonfinite(old.params),
            ],
            [_LOSS, _GRADIENT, _PARAMETERS],
            0,
        )
        why = jnp.where(watched.why == 0, why, watched.why).astype(jnp.int32)
        fine = why == 0
        state = jax.tree.map(lambda x, y: jnp.where(fine, x, y), new, old)
        return Watched(state, why, watched.steps + fine)

    return one


def count_nonfinite(state: State) -> int | jax.Array:
    """Returns how many numbers of the parameters and the optimizer's state are not finite."""
    leaves = _floats((state.params, state.optimizer))
    if jax.default_backend() == "cpu" and all(leaf.is_fully_addressable for leaf in leaves):
        # NumPy reads these arrays where they lie. A program of XLA's takes half a second to compile
        # for a transformer of six layers, before its first step.
        return sum(leaf.size - np.count_nonzero(np.isfinite(leaf)) for leaf in leaves)
    return _nonfinite_state(state)  # not fetched yet


@jax.jit
def _nonfinite_state(state: State) -> jax.Array:
    return _nonfinite((state.params, state.optimizer))


def _nonfinite(tree: Any) -> jax.Array:
    floats = _floats(tree)
    return sum((jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in floats), jnp.int32(0))


def _floats(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def find(
    plan: Plan,
    feed: Feed,
    snapshot: Snapshot,
    begin: int,
    stop: int,
    first: int,
) -> tuple[Divergence, State] | None:
    """Runs steps again, under watch.

    Args:
        plan: What the run does.
        feed: Gives the data from step `begin` on.
        snapshot: The state after `begin` steps.
        begin: Where to begin.
        stop: Where to end.
        first: The step that began with batch 0.

    Returns:
        The first step that is not finite and the state before it, None where all are finite.
    """
    size = plan.batches.batch_size
    everyone, watched = np.arange(size, dtype=np.int32), Watched.start(snapshot.restored())
    loop = program.loop(
        plan,
        watched,
        (plan.batches.data, everyone),
        around=watch,
        rows=_picked(plan.batches.rows),
        goes_on=lambda watched: watched.why == 0,
    )
    blocks, every = feed.blocks(begin, stop), plan.log_every
    for data, step, end in chunks(blocks, lambda t: every - t % every):
        watched = loop(watched, (data, everyone), step, end)
        if why := int(watched.why):
            break
        if end % every == 0:  # as after a log
            window = plan.layout.replicate(watched.state.window.begun_anew())
            watched = Watched.start(dataclasses.replace(watched.state, window=window))
        else:
            watched = Watched.start(watched.state)
    else:
        return None
    step, state = step + int(watched.steps), watched.state

    def fails(rows: np.ndarray) -> bool:
        picks = np.resize(rows, size).astype(np.int32)
        return bool(loop(Watched.start(as_carry(state)), (data, picks), step, step + 1).why)

    batch, data = step - first, feed.block(step)[0]
    order = plan.batches.in_order(everyone)  # as `batch_at` has them
    rows = _culprits(order, fails, _RECORDS)
    records = feed.records(step)[rows].tolist()
    rows = np.argsort(order)[rows].tolist()
    what = _WHAT[why].format(batch=batch)
    place = float(feed.epoch_at(step)), feed.rows_at(step)
    return Divergence(step, batch, what, rows, records, first, *place), state


def _picked(rows):
    """Returns `rows` with the records of each batch replaced by some of them."""

    def picked(data, stages, t):
        data, picks = data
        batch, valid, stages = rows(data, stages, t)
        return jax.tree.map(lambda column: column[picks], batch), valid[picks], stages

    return picked


def _culprits(rows: np.ndarray, fails: Callable[[np.ndarray], bool], most: int) -> list[int]:
    """Returns the rows that fail by themselves, up to `most`, by halving."""
    if most < 1 or not fails(rows):
        return []
    if len(rows) == 1:
        return [int(rows[0])]
    middle = len(rows) // 2
    found = _culprits(rows[:middle], fails, most)
    return found + _culprits(rows[middle:], fails, most - len(found))
