"""What a run gives back."""

import dataclasses
from typing import Any, Literal

from flax import nnx

Status = Literal["finished", "stopped", "preempted", "diverged"]


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a run.

    Args:
        step: Number of finished steps.
        model: The trained model: the one that was given, trained in place.
        ema: A model with the moving average of the parameters, or None.
        metrics: The last value of every metric, such as `train/loss` and `eval/accuracy`.
        history: One dict a log, in order, each with its `step` and `epoch`.
        best: `(step, value)` of the best evaluation where one is asked for, else None.
        status: How the run ended.
    """

    step: int
    model: nnx.Module
    ema: nnx.Module | None
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    best: tuple[int, float] | None
    status: Status
