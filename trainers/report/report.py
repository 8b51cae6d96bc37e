"""The report of a run: `report.html`, one page with all that one wants to see of it."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from flax import nnx
from tqdm import tqdm

from trainers.devices import agreement
from trainers.devices.variables import named
from trainers.loop.clock import Clock
from trainers.loop.plan import Plan, configuration
from trainers.loop.progress import some, told_of_stall
from trainers.report import chart, page, samples
from trainers.run import Run
from trainers.writers import JsonLines, Writer, Writers, written_hparams

_SHARE = 0.005  # of a run's time goes into its report, at most
_SPIKES = 20  # the last ones are shown
_SECONDS = 5  # between two versions of the page, at least


class Report:
    """Writes the page anew as the run goes on; a writer as others.

    Args:
        path: The file.
        plan: What the run does.
        run: The run.
        clock: Where its time goes.
    """

    def __init__(self, path: epath.Path, plan: Plan, run: Run, clock: Clock):
        self._path = path
        self._plan, self._run, self._clock = plan, run, clock
        self._rates: list[tuple[float, float]] = []
        self._mark = run.step, clock.training
        self._constant: str | None = None  # the part that never changes
        self._next = 0.0
        self._hparams: Mapping[str, Any] = {}

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Notes the rate, and writes the page if it is time to."""
        before, seconds = self._mark
        self._mark = step, self._clock.training
        if step > before:
            rate = (step - before) * self._plan.batches.batch_size / (self._mark[1] - seconds)
            self._rates.append((step, rate))
        if time.perf_counter() >= self._next:
            self._write()

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Notes the configuration, which the page shows."""
        self._hparams = hparams

    def flush(self) -> None:
        """Writes the page."""
        self._write()

    def close(self) -> None:
        """Writes the page for the last time."""
        self._write(closed=True)

    # --- the page --------------------------------------------------------------------------------

    def _write(self, *, closed: bool = False) -> None:
        begun = time.perf_counter()
        if self._constant is None:
            self._constant = self._data() + self._parameters() + self._configuration()
        run = self._run
        status = (run.status or "ended early") if closed else "running"
        title = f"{type(self._plan.model).__name__} on {name_of(self._plan)}"
        head = self._head(title, status) + self._curves()
        body = head + self._spikes() + self._time() + self._constant
        refresh = None if closed else 2 * _SECONDS
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(page.page(f"{title}: {status}", body, refresh=refresh))
        temporary.replace(self._path)
        now = time.perf_counter()
        self._next = now + max(_SECONDS, (now - begun) / _SHARE)

    def _head(self, title: str, status: str) -> str:
        run, plan = self._run, self._plan
        steps = run.steps or plan.end.expected
        done = 0.0 if steps is None else min(1.0, run.step / steps)
        of = "" if steps is None else f" of {steps:,}"
        place = f"step {run.step:,}{of}, epoch {run.epoch:.2f}"
        best = run.best(plan.checkpoint.best)
        values = {name: chart.value(name, value) for name, value in run.metrics.items()}
        if best is not None and plan.checkpoint.best is not None:
            name = plan.checkpoint.best[0]
            values[f"best {name}, step {best[0]:,}"] = chart.value(name, best[1])
        last = run.history[-1] if run.history else {}
        seen = [name for name in ("rows_seen", "tokens_seen") if name in last]
        values |= {name.replace("_", " "): f"{last[name]:,.0f}" for name in seen}
        if self._rates:
            values["examples/s"] = chart.number(self._rates[-1][1])
        values["since the start"] = tqdm.format_interval(self._clock.total)
        return (
            f'<header><h1>{page.text(title)}</h1><span class="status {page.text(status)}">'
            f'{page.text(status)}</span></header><p class="lead">{place}</p>'
            f'<div class="bar progress"><i style="width: {done:.2%}"></i></div>{page.tiles(values)}'
        )

    def _curves(self) -> str:
        figures = page.figures(self._run.history)
        if len(self._rates) > 1:
            figures.append(
                page.figure("examples/s", chart.lines({"rate": self._rates}, label="step"))
            )
        return f'<h2>Curves</h2><div class="charts">{"".join(figures)}</div>' if figures else ""

    def _spikes(self) -> str:
        rows, batches = [], self._plan.batches
        for spike in self._run.spikes[-_SPIKES:]:
            records = batches.numbered_at(spike["batch"])
            numbers = "" if records is None else some(records, 64)
            rows.append([f"{spike['batch']:,}", f"{spike['deviations']:.1f}", page.text(numbers)])
        if not rows:
            return ""
        lead = "Above those of the last 1,000 steps. <code>Trainer(..., skip=records)</code> goes "
        table = page.table(("batch", "deviations", "records"), rows, numbers=(0, 1))
        lead = f'<p class="lead">{lead}on without records from a checkpoint before.</p>'
        return f"<h2>Losses that stand out</h2>{lead}{table}"

    def _time(self) -> str:
        spent = self._clock.seconds
        parts = {**spent, "other": max(0.0, self._clock.total - sum(spent.values()))}
        before = ""
        if self._clock.before is not None:
            before = f"Before fit(): {self._clock.before:,.1f} s since trainers was imported."
        lead = f'<p class="lead">{before}</p>' if before else ""
        stall = f'<p class="lead">{told_of_stall(self._clock.input_stall)}</p>'
        return f"<h2>Where the time went</h2>{lead}{page.shares(parts)}{stall}"

    def _data(self) -> str:
        batches, source = self._plan.batches, self._plan.pipeline.source
        rows = [
            [page.text(name), f"<code>{page.text(kind)}</code>"]
            for name, kind in _kinds(source.element_spec(), source.features)
        ]
        length = "an unknown number of" if batches.length is None else f"{batches.length:,}"
        lead = f"{length} records in batches of {batches.batch_size:,}"
        if batches.steps_per_epoch is not None:
            lead += f", {batches.steps_per_epoch:,} steps an epoch"
        cards = samples.cards(self._plan.pipeline)
        wide = "" if "<img" in cards else " wide"
        return (
            f'<h2>Data</h2><p class="lead">{lead}</p>{page.table((), rows)}'
            f'<div class="samples{wide}">{cards}</div>'
        )

    def _parameters(self) -> str:
        sizes = named(nnx.state(self._plan.model, nnx.Param))
        trained = named(nnx.state(self._plan.model, self._plan.update.wrt))
        total = sum(value.size for value in sizes.values()) or 1
        frozen = sum(value.size for name, value in sizes.items() if name not in trained)
        rows = [
            [
                f"<code>{page.text(name)}</code>",
                "×".join(map(str, value.shape)) or "1",
                page.text(value.dtype),
                f"{value.size:,}",
                f'<div class="share"><i style="width: {value.size / total:.1%}"></i></div>',
            ]
            for name, value in sizes.items()
        ]
        table = page.table(("name", "shape", "dtype", "number", ""), rows, numbers=(3,))
        lead = f"{total:,} in all, {total - frozen:,} trained and {frozen:,} frozen"
        return f'<h2>Parameters</h2><p class="lead">{lead}</p>{table}'

    def _configuration(self) -> str:
        rows = [
            [page.text(name), f"<code>{page.text(value)}</code>"]
            for name, value in self._hparams.items()
        ]
        return f"<h2>Configuration</h2>{page.table((), rows)}"


def writers_of(plan: Plan, run: Run, clock: Clock) -> Writers:
    """Returns where a run's metrics go: nowhere but in the first process."""
    own: list[Writer] = []
    if not agreement.is_first():
        return Writers(own)
    if plan.workdir is not None:
        own.append(JsonLines(plan.workdir / "metrics.jsonl", run.history))
        own.append(Report(plan.workdir / "report.html", plan, run, clock))
    writers = Writers([*own, *plan.writers])
    writers.resume(run.reported)
    writers.write_hparams({**configuration(plan), "resumes": _resumes(plan, run)})
    return writers


def _resumes(plan: Plan, run: Run) -> str | None:
    """Returns from which steps the run went on, and when; None where it begins."""
    if not run.step:
        return None
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    before = None if plan.workdir is None else written_hparams(plan.workdir).get("resumes")
    return "; ".join([*([before] if before else []), f"step {run.step} at {now}"])


def name_of(plan: Plan) -> str:
    """Returns what the data is called."""
    return plan.pipeline.source.dataset_name


def _kinds(spec: Mapping[str, Any], features: Mapping[str, Any]):
    """Yields each column's name and what it holds."""
    for name, column in spec.items():
        feature = features.get(name)
        shapes = jax.tree.map(
            lambda x: f"{x.dtype}{list(x.shape)}" if x.shape else str(x.dtype), column
        )
        kind = shapes if isinstance(shapes, str) else str(shapes).replace("'", "")
        yield name, kind if feature is None else f"{kind}, {type(feature).__name__}"
