"""The result of a sweep: each member's, a table of all, and which is the best."""

import dataclasses
import math
from typing import Any

from trainers.report.result import Result
from trainers.run import Status
from trainers.sweeps.settings import Settings, told


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The end of a sweep.

    Args:
        settings: What each member was given, such as `{"learning_rate": 1e-3, "seed": 0}`.
        results: Each member's result, as a run of its own would have it; one that diverged is
            frozen before the batch that is not finite.
        metric: `(metric, "min" | "max")` by which the best is chosen.
        best: Number of the best member; None where all have diverged.
        status: How the sweep ended.

    Example:
        >>> SweepResult([{"learning_rate": 0.1}], [], ("train/loss", "min"), None, "finished").best
    """

    settings: list[Settings]
    results: list[Result]
    metric: tuple[str, str]
    best: int | None
    status: Status

    @property
    def table(self) -> list[dict[str, Any]]:
        """One dict a member: its number, settings, step, status and last metrics."""
        return [
            {"member": i, **own, "step": r.step, "status": r.status, **r.metrics}
            for i, (own, r) in enumerate(zip(self.settings, self.results, strict=True))
        ]

    @property
    def model(self) -> Any:
        """The best member's model, None where all have diverged."""
        return None if self.best is None else self.results[self.best].model

    def __repr__(self) -> str:
        rows = self.table
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
        if self.best is not None:
            name, value = self.metric[0], self.results[self.best].metrics[self.metric[0]]
            lines.append(f"best: {told(self.settings[self.best])} ({name} {value:.4g})")
        return "\n".join(lines)


def best_of(results: list[Result], metric: tuple[str, str]) -> int | None:
    """Returns the number of the member with the best last value, of those that are finite."""
    name, mode = metric
    sign = 1 if mode == "min" else -1
    values = {
        i: sign * result.metrics[name]
        for i, result in enumerate(results)
        if result.status != "diverged" and math.isfinite(result.metrics.get(name, math.nan))
    }
    return min(values, key=lambda i: values[i], default=None)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
