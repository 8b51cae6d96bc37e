"""The watch over a run: whether it is finite still, and the last state that is known to be."""

import contextlib
import math
import time
from typing import Any

import jax

from trainers.data.batches import Feed
from trainers.devices.arrays import Snapshot
from trainers.loop.clock import SECONDS
from trainers.loop.divergence import Divergence, count_nonfinite, find
from trainers.loop.plan import Plan
from trainers.run import Run
from trainers.step.state import State

_SHARE = 0.0025  # of the time goes into snapshots, at most; a chunk's time is soon run again


class Watch:
    """Looks at a run between chunks of steps, and keeps a snapshot to run again from.

    A loss that is not finite shows in the sum of the window, whatever the later steps did, so no
    step waits for its own.

    Args:
        plan: What the run does.
        feed: What gives it its data.
        state: The state at its start.
        run: The run.
    """

    def __init__(self, plan: Plan, feed: Feed, state: State, run: Run):
        self._plan = plan
        self._feed = feed
        self._run, self._first = run, run.data_start
        # Such as the -inf of a mask: not ours to judge.
        self._nonfinite = int(count_nonfinite(state))
        self._take(state, run.step, time.perf_counter())

    def is_due(self) -> bool:
        """Returns whether it is time for another snapshot."""
        return time.perf_counter() - self._taken > max(SECONDS, self._cost / _SHARE)

    def is_finite(
        self, state: State, step: int, *, thoroughly: bool = False, keep: bool = False
    ) -> bool:
        """Returns whether a state is finite, as far as the losses tell.

        Args:
            state: The state after `step` steps.
            step: The number of finished steps.
            thoroughly: Whether to look at the parameters as well, which costs a pass over them.
            keep: Whether to take a snapshot of it, if it is.
        """
        begun = time.perf_counter()
        count = count_nonfinite(state) if thoroughly or keep else 0
        # One fetch; a log, which comes after a thorough look, finds the window in host memory.
        window = state.window if thoroughly else None
        losses = state.loss, state.window.loss
        *losses, count, _ = jax.device_get((*losses, count, window))
        if not _are_finite(*losses) or count > self._nonfinite:
            return False
        if keep:
            self._take(state, step, begun)
        return True

    def find(self, state: State, step: int) -> tuple[Divergence, State, dict[str, Any]] | None:
        """Runs the steps since the snapshot again, where a state is not finite.

        Args:
            state: The state, which stays as it is.
            step: The number of finished steps it claims.

        Returns:
            What was found, the state before it and the source's state there; None where it was
            nothing: an infinity that a finite gradient left in the optimizer's state.
        """
        feed = self._plan.batches.feed(self._step, self._first, self._data, self._rows)
        with contextlib.closing(feed):
            found = find(self._plan, feed, self._snapshot, self._step, step, self._first)
            if found is not None:
                return *found, feed.state_at(found[0].step)
        if _are_finite(state.loss, state.window.loss):
            self._nonfinite = int(count_nonfinite(state))
            return None
        batch = self._step - self._first
        what = (
            f"A loss is not finite in one of the batches {batch} to {step - self._first - 1}, and "
            "was when they were run again: the computation is not the same each time"
        )
        found = Divergence(self._step, batch, what, [], [], self._first, self._epoch, self._rows)
        return found, self._snapshot.restored(), self._data

    def _take(self, state: State, step: int, begun: float) -> None:
        self._snapshot, self._step = Snapshot(state), step
        self._data = self._feed.state_at(step)
        self._epoch, self._rows = self._run.epoch, self._run.rows_seen
        self._taken = time.perf_counter()
        self._cost = self._taken - begun


def _are_finite(*losses: Any) -> bool:
    return all(math.isfinite(float(loss)) for loss in losses)
