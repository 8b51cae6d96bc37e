"""The page of a sweep: all members' curves, and a table of them."""

import time
from collections.abc import Sequence

from etils import epath

from trainers.report import chart, page
from trainers.run import PLACE, Run
from trainers.sweeps.settings import Settings, told

_SECONDS = 5  # between two versions of the page, at least


class Page:
    """Writes `report.html` as a sweep goes on.

    Args:
        path: The file; None: nothing is written.
        title: What is swept.
        settings: What each member is given.
        run: The sweep; a metric of member `i` is called `i/train/loss` in its history.
    """

    def __init__(self, path: epath.Path | None, title: str, settings: Sequence[Settings], run: Run):
        self._path, self._title, self._settings, self._run = path, title, settings, run
        self._next = 0.0

    def write(self, best: int | None = None, *, closed: bool = False) -> None:
        """Writes the page, if it is time to.

        Args:
            best: Number of the best member, once it is known.
            closed: Whether it is the last time.
        """
        if self._path is None or not (closed or time.perf_counter() >= self._next):
            return
        status = (self._run.status or "ended early") if closed else "running"
        body = self._head(status) + self._curves() + self._table(best)
        refresh = None if closed else 2 * _SECONDS
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(page.page(f"{self._title}: {status}", body, refresh=refresh))
        temporary.replace(self._path)
        self._next = time.perf_counter() + _SECONDS

    def _head(self, status: str) -> str:
        colours = [f"hsl({360 * i // len(self._settings)} 65% 50%)" for i, _ in self._members()]
        style = "".join(f".m{i} {{ --train: {c}; }}" for i, c in enumerate(colours))
        keys = "".join(f"--m{i}: {c};" for i, c in enumerate(colours))
        steps = "" if self._run.steps is None else f" of {self._run.steps:,}"
        return (
            f"<style>:root {{ {keys} }} {style}</style><header><h1>{page.text(self._title)}</h1>"
            f'<span class="status {status}">{status}</span></header>'
            f'<p class="lead">{len(self._settings)} members, step {self._run.step:,}{steps}</p>'
        )

    def _curves(self) -> str:
        charts: dict[str, dict[str, list]] = {}
        for row in self._run.history:
            for name, value in row.items():
                if name not in PLACE:
                    number, _, metric = name.partition("/")
                    curves = charts.setdefault(metric, {})
                    curves.setdefault(f"m{number}", []).append((row["step"], value))
        figures = "".join(
            page.figure(metric, chart.lines(curves, label="step"), curves)
            for metric, curves in charts.items()
        )
        return f'<h2>Curves</h2><div class="charts">{figures}</div>' if figures else ""

    def _table(self, best: int | None) -> str:
        metrics = self._run.metrics
        names = list(dict.fromkeys(name.partition("/")[2] for name in metrics))
        rows = []
        for i, own in self._members():
            values = [metrics.get(f"{i}/{name}") for name in names]
            mark = " (best)" if i == best else ""
            key = f'<span style="color: var(--m{i})">&#9632;</span> m{i}{mark}'
            cells = ["" if value is None else chart.number(value) for value in values]
            rows.append([key, page.text(told(own)), *cells])
        numbers = range(2, 2 + len(names))
        return f"<h2>Members</h2>{page.table(('', 'settings', *names), rows, numbers=numbers)}"

    def _members(self) -> list[tuple[int, Settings]]:
        return list(enumerate(self._settings))
