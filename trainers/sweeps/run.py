"""One run of a sweep, from the first step, or the newest checkpoint, to the last."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from trainers.data.batches import Feed
from trainers.devices import agreement, memory
from trainers.loop import program
from trainers.loop.cadence import Cadence
from trainers.loop.clock import Clock, Pace
from trainers.loop.plan import Plan
from trainers.loop.progress import Progress, told_of_end, told_of_start
from trainers.loop.signals import Signals
from trainers.run import Run, Status
from trainers.step.compiled import Loop
from trainers.sweeps import program as together
from trainers.sweeps.page import Page
from trainers.sweeps.settings import Settings
from trainers.workdir.checkpointer import Checkpointer
from trainers.writers import JsonLines, Writers

_MEMBERS = "sweep.json"


class SweepRun:
    """A sweep in progress.

    Args:
        plans: What each member does; the first tells of the steps, the data and the workdir.
        settings: What each member is given.

    Attributes:
        run: Step and history; a metric of member `i` is called `i/train/loss`.
        state: The members' states after `run.step` steps.
        page: The page with all curves.
    """

    def __init__(self, plans: Sequence[Plan], settings: Sequence[Settings]):
        self.plan, self._settings = plans[0], list(settings)
        self.state = together.initial_state(plans)
        self.run = Run(self.plan.end.steps, _no_one_model, lambda: self.state.optimizer)
        self._signals, self._clock = Signals(), Clock()
        self._checkpointer = Checkpointer(self.plan)
        self._progress = Progress(self.plan.end.expected, self.plan.batches.batch_size)
        workdir, source = self.plan.workdir, self.plan.pipeline.source
        title = f"Sweep of {type(self.plan.model).__name__} on {source.dataset_name}"
        path = None if workdir is None else workdir / "report.html"
        self.page = Page(path, title, self._settings, self.run)

    def __call__(self) -> Status:
        """Runs to the end and returns how it ended; `run` and `state` hold the rest."""
        plan, run = self.plan, self.run
        with self._checkpointer.opened(), self._signals.watched():
            self._expect_members()
            with memory.uncollected():
                loop = together.loop(plan, self.state)
                restored, data_state = self._checkpointer.restore(run, self.state), None
                if restored is not None:
                    self.state, data_state = restored
                    self._progress.say(told_of_start(run.step, plan.workdir, None))
                loop.compile()
            memory.expect_fits(loop.program, self.state, plan.batches.data)
            feed = plan.batches.feed(run.step, run.data_start, data_state, run.rows_seen)
            with (
                contextlib.closing(feed),
                contextlib.closing(self._writers()) as writers,
                contextlib.closing(self._progress),
            ):
                self._progress.begin(run.step)
                if restored is None:
                    self._checkpointer.rehearse(run, self.state, feed.state_at(run.step))
                run.moves_to(run.step, feed.epoch_at(run.step))
                run.status = self._train(loop, feed, writers)
                self._checkpointer.finish(run, self.state, feed.state_at(run.step))
            self._progress.say(told_of_end(run.status, run.step, plan.workdir))
        return run.status

    def going_on(self) -> list[int]:
        """Returns the numbers of the members that have not diverged."""
        return np.flatnonzero(np.isfinite(jax.device_get(self.state.loss))).tolist()

    def _train(self, loop: Loop, feed: Feed, writers: Writers) -> Status:
        """The loop, in the order of that of one run: report, agree, save, compute."""
        plan, run, pace, cadence = self.plan, self.run, Pace(), Cadence(self.plan, self.run)
        while True:
            if run.step > run.reported:
                self._report(cadence, writers)
            if run.is_last(run.step) and run.step == run.reported:
                return "finished"
            if not self.going_on():
                return "diverged"
            steps, late, *heard = agreement.least(
                pace.steps(), -self._checkpointer.is_late(), *self._signals.votes()
            )
            self._signals.settle(*heard)
            if self._signals.preempted or self._signals.interrupted:
                return "preempted" if self._signals.preempted else "stopped"
            if late or cadence.saves(run.step):
                self._checkpointer.save(run, self.state, feed.state_at(run.step))
            data, served = feed.block(run.step)
            stop = min(cadence.next(run.step), run.step + steps, served)
            if stop - run.step >= loop.inner and cadence.is_long(steps):
                loop.compile_inner()
            with pace.measured(stop - run.step):
                self.state = loop(self.state, data, run.step, stop)
                jax.block_until_ready(self.state.loss)
            run.step, run.rows_seen = stop, feed.rows_at(stop)
            run.moves_to(stop, feed.epoch_at(stop))
            if plan.end.epochs is not None and run.epoch >= plan.end.epochs:
                run.steps = stop
            self._progress.advance(stop, pace.seconds)

    def _report(self, cadence: Cadence, writers: Writers) -> None:
        """Logs and evaluates, where that is due, each member that goes on."""
        plan, run = self.plan, self.run
        logs, evaluates = cadence.logs(run.step), cadence.evaluates(run.step)
        window = jax.device_get(self.state.window) if logs else None
        for i in self.going_on():
            row: dict[str, Any] = {}
            if window is not None:
                own = jax.tree.map(lambda x, i=i: x[i], window)
                row |= {f"train/{name}": value for name, value in own.compute().items()}
            for name, evaluator in plan.evaluators.items() if evaluates else ():
                model = program.evaluated(plan, together.member(self.state, i))
                prefix = f"eval/{name}/" if name else "eval/"
                row |= {f"{prefix}{n}": value for n, value in (evaluator(*model) or {}).items()}
            if row:
                run.log({f"{i}/{name}": float(value) for name, value in row.items()})
        if logs:
            self.state = together.begun_anew(self.state)
        run.reported = run.step
        if run.history and run.history[-1]["step"] == run.step:
            row = run.history[-1]
            writers.write_scalars(run.step, {k: v for k, v in row.items() if k != "step"})
            self._progress.report(row)
            self.page.write()

    def _writers(self) -> Writers:
        workdir, run = self.plan.workdir, self.run
        own: list[Any] = []
        if workdir is not None and agreement.is_first():
            own.append(JsonLines(workdir / "metrics.jsonl", run.history))
        writers = Writers([*own, *self.plan.writers])
        writers.resume(run.reported)
        return writers

    def _expect_members(self) -> None:
        """Raises where the workdir is of a sweep with other members, else notes these.

        Raises:
            ValueError: If its members are others.
        """
        if (workdir := self.plan.workdir) is None:
            return
        path = workdir / _MEMBERS
        before = json.loads(path.read_text()) if path.exists() else self._settings
        if before != self._settings:
            raise ValueError(
                f"The sweep in {workdir} has the members {before}, this one {self._settings}: give "
                "it the settings it had, or begin another in another workdir."
            )
        agreement.together(
            lambda: path.write_text(json.dumps(self._settings)) if agreement.is_first() else None
        )


def _no_one_model() -> Any:
    raise ValueError("A sweep has a model of each member: see its result.")
