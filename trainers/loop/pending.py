"""A pending log: one that is done while the next chunk of steps runs already."""

import dataclasses

import jax

from trainers.loop.cadence import Cadence
from trainers.loop.clock import Pace
from trainers.loop.reporter import Reporter
from trainers.step.state import State, Window


class Pending:
    """A log that waits until the next chunk is sent off, so that no device waits for the log.

    On two CPU cores an MLP's step of 0.45 ms gains 2 % where every 100th step is logged.

    Attributes:
        is_open: Whether the last chunk may run still, and its log is not done.
    """

    def __init__(self, reporter: Reporter, cadence: Cadence, pace: Pace):
        self._reporter, self._cadence, self._pace = reporter, cadence, pace
        self._window: Window | None = None
        self.is_open = False

    def opens(self, step: int, steps: int) -> bool:
        """Returns whether the log of `step`, after a chunk of `steps` steps, may wait."""
        quick = 2 * steps <= self._pace.steps() and jax.process_count() == 1
        return quick and self._cadence.only_logs(step)

    def taken(self, state: State) -> State:
        """Returns the state for the next chunk; sums that wait for their log stay here."""
        if self.is_open:
            state, self._window = self._reporter.begin_window(state)
        return state

    def settled(self, state: State) -> tuple[State, bool]:
        """Does the log that waits, and returns the state and whether the log was finite."""
        window, self._window = self._window, None
        if window is None:
            return state, True
        self._reporter.reached(window, self._pace)
        if self._reporter.log(window):
            return state, True
        # Put back for the watch to see: a chunk sent off in the meantime changes nothing.
        return dataclasses.replace(state, window=window), False
