"""The profile of a run: a JAX trace of some of its steps."""

import logging
import os

import jax
from etils import epath

logger = logging.getLogger(__name__)


class Profile:
    """Traces the steps `first` to `last`, counted from 1, into `<workdir>/profile`.

    TensorBoard's profile plugin and https://ui.perfetto.dev show what it writes.

    Args:
        steps: `(first, last)`, or None to trace nothing.
        workdir: The run's directory.
    """

    def __init__(self, steps: tuple[int, int] | None, workdir: epath.Path | None):
        self._traces = jax.process_index() == 0  # the others do the same
        self._begin, self._end = bounds(steps)
        self._directory = None if workdir is None else workdir / "profile"
        self._runs = False

    def begin(self, step: int) -> None:
        """Begins tracing if it is time to, after `step` finished steps."""
        if self._directory is None or not self._traces or self._runs:
            return
        if not self._begin <= step < self._end:
            return
        try:
            jax.profiler.start_trace(os.fspath(self._directory))
            self._runs = True
        except RuntimeError as error:  # somebody else is tracing
            logger.warning("There is no profile: %s. Training goes on.", error)
            self._traces = False

    def end(self, step: int) -> None:
        """Ends tracing if it is time to, after `step` finished steps."""
        if step >= self._end:
            self.close()

    def close(self) -> None:
        """Ends tracing."""
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
            logger.info("The profile is in %s.", self._directory)


def bounds(steps: tuple[int, int] | None) -> tuple[int, int]:
    """Returns after how many finished steps tracing begins and ends: -1 where it never does."""
    return (-1, -1) if steps is None else (steps[0] - 1, steps[1])
