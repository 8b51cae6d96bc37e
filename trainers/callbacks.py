"""Callbacks: functions `run -> bool | None`, called at exact steps on every process; True stops."""

import dataclasses
from collections.abc import Callable
from typing import Any

from datarax.errors import expect_between
from trainers.run import Run

Callback = Callable[[Run], bool | None]


@dataclasses.dataclass(frozen=True)
class every:
    """Calls a callback every `steps` steps, in place of at each log.

    Args:
        steps: Number of steps between two calls.
        callback: `run -> bool | None`.

    Example:
        >>> every(100, lambda run: print(run.step)).steps
        100
    """

    steps: int
    callback: Callback

    def __post_init__(self):
        expect_between("steps", self.steps, 1, 2**31 - 1)
        object.__setattr__(self, "steps", self.steps.__index__())

    def __call__(self, run: Run) -> bool | None:
        return self.callback(run)


def stops(callback: Callback, run: Run) -> bool:
    """Calls a callback and returns whether it stops the run.

    Raises:
        TypeError: If it returns neither True, False nor None, nor a 0, which says no.
    """
    answer: Any = callback(run)
    is_array = hasattr(answer, "dtype")
    if (is_array and answer.dtype == bool and answer.size == 1) or answer is True:
        return bool(answer)
    # A lambda may return what it was not meant to, such as a model, which is not a wish to stop.
    if answer is not None and (is_array or answer):
        name = getattr(callback, "__qualname__", type(callback).__name__)
        raise TypeError(
            f"The callback {name} returned a {type(answer).__name__}: return True to stop the run, "
            "None to go on."
        )
    return False


def early_stopping(
    metric: str = "eval/loss", *, patience: int = 3, mode: str = "min", least: float = 0.0
) -> Callback:
    """Stops once a metric has not improved for `patience` evaluations in a row.

    Args:
        metric: A name in the history, such as `"eval/accuracy"`.
        patience: Number of evaluations.
        mode: `"min"` or `"max"`.
        least: The least change that counts as an improvement.
    """
    sign = _sign(mode)

    def stop(run: Run) -> bool:
        values = [sign * value for value in _values(run, metric)]
        best, since = float("inf"), 0
        for value in values:
            best, since = (value, 0) if value < best - least else (best, since + 1)
        return since >= patience

    return stop


def best_so_far(metric: str = "eval/accuracy", *, mode: str = "max") -> Callback:
    """Adds `best/<metric>`, the best value up to then, to each row of the history with the metric.

    Args:
        metric: A name in the history.
        mode: `"min"` or `"max"`.
    """
    best = {1: min, -1: max}[_sign(mode)]

    def note(run: Run) -> None:
        if metric in run.history[-1]:
            run.history[-1][f"best/{metric}"] = best(_values(run, metric))

    return note


def log_learning_rate(schedule: Callable[[int], float]) -> Callback:
    """Adds `train/learning_rate`, the rate of the last step, to each row of the history.

    Args:
        schedule: The schedule the optimizer was given, from step number to rate.
    """

    def note(run: Run) -> None:
        run.history[-1]["train/learning_rate"] = float(schedule(run.step - 1))

    return note


def _values(run: Run, metric: str) -> list[float]:
    return [row[metric] for row in run.history if metric in row]


def _sign(mode: str) -> int:
    if mode not in ("min", "max"):
        raise ValueError(f'mode={mode!r}: expected "min" or "max".')
    return 1 if mode == "min" else -1
