"""The length of a chunk: about two seconds of steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 2.0


class Pace:
    """Chooses how many steps to run before looking up: few at first, then as the rate allows.

    Attributes:
        seconds: How long the last chunk took.
    """

    def __init__(self):
        self._steps = 8
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
