"""Callbacks: functions `run -> bool | None`, called at exact steps on every process; True stops."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from datarax.errors import closest, expect_between, listed
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
        object.__setattr__(self, "steps", self.steps.__index__())  # it may be one of NumPy's

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
        metric: A name in the history, such as `"eval/accuracy"`; NaN is no improvement.
        patience: Number of evaluations without an improvement; 0 stops at the first one.
        mode: `"min"` or `"max"`.
        least: The least change that counts as an improvement.

    Example:
        >>> early_stopping("eval/accuracy", mode="max", patience=5).patience
        5
    """
    expect_between("patience", patience, 0, 2**31 - 1)
    return EarlyStopping(metric, patience, _sign(mode), least)


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """What `early_stopping` returns; `sign` is 1 where less is better, else -1."""

    metric: str
    patience: int
    sign: int
    least: float

    def __call__(self, run: Run) -> bool:
        best, since = float("inf"), 0
        for row in run.history:
            if self.metric in row:
                value = self.sign * row[self.metric]
                best, since = (value, 0) if value < best - self.least else (best, since + 1)
        return since >= max(self.patience, 1)


def best_so_far(metric: str = "eval/accuracy", *, mode: str = "max") -> Callback:
    """Adds `best/<metric>`, the best value up to then, to each row of the history with the metric.

    Args:
        metric: A name in the history; NaN is never the best.
        mode: `"min"` or `"max"`.
    """
    _sign(mode)
    return BestSoFar(metric, mode)


@dataclasses.dataclass(frozen=True)
class BestSoFar:
    """What `best_so_far` returns."""

    metric: str
    mode: str

    def __call__(self, run: Run) -> None:
        best, last = run.best((self.metric, self.mode)), run.history[-1:]
        if best is not None and last[0]["step"] == run.step and self.metric in last[0]:
            run.log({f"best/{self.metric}": best[1]})


def log_learning_rate(schedule: Callable[[int], float]) -> Callback:
    """Logs `train/learning_rate`, the rate of the last step, at each step where it is called.

    Args:
        schedule: The schedule the optimizer was given, from step number to rate.
    """
    return LearningRate(schedule)


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """What `log_learning_rate` returns."""

    schedule: Callable[[int], float]

    def __call__(self, run: Run) -> None:
        run.log({"train/learning_rate": float(self.schedule(run.step - 1))})


def expect_metrics(best: tuple[str, str] | None, callbacks: Sequence[Callback], names: set) -> None:
    """Raises where the best checkpoint or `early_stopping` waits for a metric that never comes.

    Where there is a callback of the user's own, that may log any metric, so nothing is known.

    Args:
        best: `Checkpoints.best`.
        callbacks: The run's callbacks.
        names: The metrics that the run logs and evaluates by itself.

    Raises:
        ValueError: If the name is none of those; it names the nearest.
    """
    inner = [one.callback if isinstance(one, every) else one for one in callbacks]
    if not all(isinstance(one, EarlyStopping | BestSoFar | LearningRate) for one in inner):
        return
    names = names | {f"best/{one.metric}" for one in inner if isinstance(one, BestSoFar)}
    names |= {"train/learning_rate" for one in inner if isinstance(one, LearningRate)}
    waits = [(f"best={best!r}", best[0])] if best is not None else []
    waits += [
        (f"early_stopping({one.metric!r})", one.metric)
        for one in inner
        if isinstance(one, EarlyStopping)
    ]
    for what, name in waits:
        if name not in names:
            evaluates = any(known.startswith("eval/") for known in names)
            hint = closest(name, names)
            if name.startswith("eval/") and not evaluates:
                hint = " Give eval_source= as well."
            raise ValueError(
                f"{what} waits for a metric that no log will have: there are "
                f"{listed(sorted(names))}.{hint}"
            )


def _sign(mode: str) -> int:
    if mode not in ("min", "max"):
        raise ValueError(f'mode={mode!r}: expected "min" or "max".')
    return 1 if mode == "min" else -1
