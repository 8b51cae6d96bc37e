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
        begun = time.perf_counter()
        yield
        self.seconds = max(time.perf_counter() - begun, 1e-6)
        self._steps = max(1, min(int(steps * SECONDS / self.seconds), 8 * self._steps))
