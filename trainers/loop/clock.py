"""The clock of a run: where its time went."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PHASES = "loading", "compiling", "computing", "evaluating", "saving", "reporting"


class Clock:
    """Adds up the seconds of each phase of a run.

    Attributes:
        seconds: Seconds by phase.
        before: Seconds that the process had run before, None where nobody knows.
    """

    def __init__(self):
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.before = _age()
        self._begun = time.perf_counter()

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


def _age() -> float | None:
    """Returns the age of a script's process in seconds; only Linux tells."""
    if hasattr(sys, "ps1") or "ipykernel" in sys.modules or not sys.platform.startswith("linux"):
        return None
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
