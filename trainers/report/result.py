"""The result of a run: what `fit` returns, and how a notebook shows it."""

import dataclasses
import html
from typing import Any

from flax import nnx

from trainers.report import chart, page
from trainers.run import NO_STALL, InputStall, Status

_HEIGHT = 460  # pixels of the frame, until it knows the height of its page


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a run.

    Args:
        step: Number of finished steps.
        model: The trained model: the one that was given, trained in place.
        ema: A model with the moving average of the parameters, or None.
        metrics: The last value of every metric, such as `train/loss` and `eval/accuracy`.
        history: One dict a log, in order, each with its `step`, `epoch` and `rows_seen`, and where
            there is a loss a token, `tokens_seen`, the sum of their weights so far.
        best: `(step, value)` of the best evaluation where one is asked for, else None.
        status: How the run ended.
        input_stall: The share of its time in which the devices waited for data; 0 of eager data.
    """

    step: int
    model: nnx.Module = dataclasses.field(repr=False)
    ema: nnx.Module | None = dataclasses.field(repr=False)
    metrics: dict[str, float]
    history: list[dict[str, Any]] = dataclasses.field(repr=False)
    best: tuple[int, float] | None
    status: Status
    input_stall: InputStall = NO_STALL

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: metrics and curves, in a frame with styles of its own."""
        name = page.text(type(self.model).__name__)
        status = f'<span class="status {self.status}">{self.status}</span>'
        values = {name: chart.value(name, value) for name, value in self.metrics.items()}
        if self.best is not None:
            values[f"best, step {self.best[0]:,}"] = chart.number(self.best[1])
        curves = "".join(page.figures(self.history))
        body = (
            f'<header><h1>{name}</h1>{status}</header><p class="lead">step {self.step:,}</p>'
            f'{page.tiles(values)}<div class="charts" style="margin-top: 14px">{curves}</div>'
        )
        inner = html.escape(page.page(name, body), quote=True)
        style = f"width: 100%; height: {_HEIGHT}px; border: 0"
        fit = "this.style.height = this.contentDocument.documentElement.scrollHeight + 'px'"
        return f'<iframe srcdoc="{inner}" style="{style}" onload="{fit}"></iframe>'
