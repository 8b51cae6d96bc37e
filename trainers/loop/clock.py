"""The clock of a run: where its time went, and how long a chunk of steps may be."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from trainers.run import InputStall

_IMPORTED = time.perf_counter()

PHASES = "loading", "compiling", "computing", "evaluating", "saving", "reporting"
SECONDS = 2.0  # of a chunk


class Clock:
    """Adds up the seconds of each phase of a run.

    Attributes:
        seconds: Seconds by phase.
        waited: Seconds that the devices waited for data; see `Feed`.
        before: Seconds from the import of `trainers` to this run; None in an interactive session,
            where they say how long its user thought.
    """

    def __init__(self):
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.waited = np.zeros(3)
        self._begun = time.perf_counter()
        self.before = None if _is_interactive() else self._begun - _IMPORTED

    @contextmanager
    def spent(self, phase: str) -> Iterator[None]:
        """Counts the block's time as `phase`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begun

    @property
    def input_stall(self) -> InputStall:
        """The share of the run's time so far in which the devices waited for data."""
        running = max(sum(self.seconds.values()) - self.seconds["compiling"], 1e-9)
        return InputStall(*(self.waited / running).tolist())

    @property
    def training(self) -> float:
        """Seconds of steps: devices compute them while a log is written, so these count, too."""
        others = "loading", "compiling", "evaluating", "saving"
        return self.total - sum(self.seconds[phase] for phase in others)

    @property
    def total(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._begun


class Pace:
    """Chooses how many steps to run before looking up: few at first, then as the rate allows.

    Attributes:
        seconds: How long the last chunk took.
    """

    def __init__(self):
        self._steps = 8
        self._step, self._begun = 0, time.perf_counter()
        self.seconds = 0.0

    def steps(self) -> int:
        """Returns how many steps the next chunk may have."""
        return self._steps

    @contextmanager
    def measured(self, steps: int) -> Iterator[None]:
        """Learns from the time that the block, a chunk of `steps` steps, takes."""
        self.begin(0)
        yield
        self.end(steps)

    def begin(self, step: int) -> None:
        """Notes that a chunk begins at `step`."""
        self._step, self._begun = step, time.perf_counter()

    def end(self, step: int) -> None:
        """Learns from the time up to `step`, where another chunk may have begun."""
        steps, begun = step - self._step, self._begun
        self.begin(step)
        self.seconds = max(self._begun - begun, 1e-6)
        self._steps = max(1, min(int(steps * SECONDS / self.seconds), 8 * self._steps))


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
