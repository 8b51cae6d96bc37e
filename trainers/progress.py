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
    """

    def __init__(self, steps: int, batch_size: int):
        self._steps = steps
        self._batch_size = batch_size
        self._bar = tqdm(total=steps, unit="step", dynamic_ncols=True) if _terminal() else None
        self._begun: tuple[float, int] | None = None
        self._said = -float("inf")

    def advance(self, step: int) -> None:
        """Notes that `step` steps are finished."""
        now = time.perf_counter()
        if self._begun is None:  # the first chunk's time is the compilation's
            self._begun = (now, step)
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
        if self._begun is None or step <= self._begun[1]:
            return ""
        rate = (step - self._begun[1]) / (time.perf_counter() - self._begun[0])
        left = tqdm.format_interval((self._steps - step) / rate)
        return f"{rate * self._batch_size:,.0f} examples/s  {left} left"


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
