"""What a run says while it goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping

import jax
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
        self._speaks = jax.process_index() == 0
        if self._speaks and sys.stderr is not None and sys.stderr.isatty():
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
        if not self._speaks or (self._bar is None and not self._is_due(row["step"], values)):
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        shown = f"{shown}  {self._rate(row['step'])}".rstrip()
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
        else:
            place = f"step {row['step']}/{self._steps}  epoch {row['epoch']:.2f}"
            print(f"{place}  {shown}", flush=True)

    def _is_due(self, step: int, values: Mapping[str, float]) -> bool:
        """Returns whether a line is due, and notes that it is written."""
        now = time.perf_counter()
        evaluated = any(name.startswith("eval/") for name in values)
        due = evaluated or step == self._steps or now - self._said > _SECONDS_BETWEEN_LINES
        self._said = now if due else self._said
        return due

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
