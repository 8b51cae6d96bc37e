"""What a run says while it goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10


class Progress:
    """Shows the step, metrics, records a second and the time left.

    Args:
        steps: Number of steps of the run.
        batch_size: Records in a step.
        done: Number of steps that are finished already.
    """

    def __init__(self, steps: int, batch_size: int, done: int = 0):
        self._steps = steps
        self._batch_size = batch_size
        self._first = self._done = done
        self._seconds = 0.0
        self._begun = time.perf_counter()
        self._bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True)
        self._said = -float("inf")

    def advance(self, step: int, seconds: float) -> None:
        """Notes that `step` steps are finished, the latest of them in `seconds`."""
        self._seconds += seconds
        self._done = step
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, row: Mapping[str, float]) -> None:
        """Shows a row of metrics; lines between evaluations are at least ten seconds apart."""
        values = {name: value for name, value in row.items() if name not in ("step", "epoch")}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(f"{shown}  {self._rate(row['step'])}", refresh=False)
            return
        now = time.perf_counter()
        last = row["step"] == self._steps
        evaluated = any(name.startswith("eval/") for name in values)
        if evaluated or last or now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            place = f"step {row['step']}/{self._steps}  epoch {row['epoch']:.2f}"
            print(f"{place}  {shown}  {self._rate(row['step'])}".rstrip(), flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _rate(self, step: int) -> str:
        finished = step - self._first
        if not finished:
            return ""
        rate = finished / self._seconds
        passed = (time.perf_counter() - self._begun) / finished  # with evaluating and saving
        left = tqdm.format_interval((self._steps - step) * passed)
        return f"{rate * self._batch_size:,.0f} examples/s  {left} left"
