"""The clock of a run: where its time went."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_IMPORTED = time.perf_counter()

PHASES = "loading", "compiling", "computing", "evaluating", "saving", "reporting"


class Clock:
    """Adds up the seconds of each phase of a run.

    Attributes:
        seconds: Seconds by phase.
        before: Seconds from the import of `trainers` to this run; None in an interactive session,
            where they say how long its user thought.
    """

    def __init__(self):
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
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
    def total(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._begun


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
