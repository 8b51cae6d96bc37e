"""One run of `Trainer.fit`, from the first step, or the newest checkpoint, to the last."""

import contextlib
import dataclasses
import logging
import math
from typing import Any

import jax
from flax import nnx

from trainers.callbacks import stops
from trainers.devices import agreement, memory
from trainers.devices.arrays import as_carry
from trainers.loop import divergence, program
from trainers.loop.cadence import Schedule
from trainers.loop.clock import Clock
from trainers.loop.config import decisions
from trainers.loop.initial import initial_state
from trainers.loop.pace import Pace
from trainers.loop.plan import Plan
from trainers.loop.profile import Profile
from trainers.loop.signals import Signals
from trainers.loop.watch import Watch
from trainers.report.progress import Progress
from trainers.result import Status
from trainers.run import Run
from trainers.step.compiled import Loop
from trainers.step.model import split
from trainers.step.state import Window
from trainers.weights import initialize
from trainers.workdir.checkpointer import Keeper

logger = logging.getLogger(__name__)


class Fit:
    """A run in progress.

    Args:
        plan: What to do.

    Attributes:
        run: Step and history, as callbacks see them.
        state: The state after `run.step` steps.
        clock: Where the time went.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.state = initial_state(plan)
        self.run = Run(plan.steps, self._model)
        self._schedule = Schedule(plan)
        self._keeper = Keeper(plan)
        self._signals = Signals()
        self.clock = Clock()

    def __call__(self) -> Status:
        """Runs to the end and returns how it ended; `run` and `state` hold the rest."""
        plan, run = self.plan, self.run
        with self._keeper.opened(), self._signals.watched():
            # Tracing comes before compiling, and finds what is wrong with the losses and the data.
            with self.clock.spent("compiling"):
                loop = agreement.together(lambda: program.loop(plan, self.state, plan.batches.data))
                if jax.process_count() > 1:
                    agreement.expect_same(decisions(plan))
                agreement.expect_same_program(lambda: loop.lowered, "the compiled program")
                for evaluator in plan.evaluators.values():
                    evaluator.trace(*self.evaluated())
            restored = self._keeper.restore(run, self.state)
            if restored is not None:
                self.state = restored
                if (found := divergence.noted(plan.workdir, run.step, run.first)) is not None:
                    self._say(found)
                    return "diverged"
                if run.step >= plan.steps and run.step == run.reported:
                    return "finished"
                # Callbacks may have changed in between: those of today decide.
                if run.stopped and self._ask(True):
                    return "stopped"
            elif plan.init_from is not None:
                agreement.together(lambda: initialize(plan.model, plan.init_from))
                self.state = initial_state(plan)
            if not self._signals.asked():
                with self.clock.spent("compiling"):
                    loop.compile()
                    agreement.together(
                        lambda: memory.expect_fits(loop.program, self.state, plan.batches.data)
                    )
                    self._keeper.compile(self.state)
            divergence.forget(plan.workdir)
            with (
                contextlib.closing(self._keeper.feed(run)) as self._feed,
                contextlib.closing(Profile(plan.profile, plan.workdir)) as self._profile,
                contextlib.closing(self._keeper.writers(run, self.clock)) as self._writers,
                contextlib.closing(
                    Progress(plan.steps, plan.batches.batch_size, run.step)
                ) as self._progress,
            ):
                status = self._train(loop)
                with self.clock.spent("saving"):
                    self._keeper.finish(run, self.state)
                run.status = status
            return status

    def _train(self, loop: Loop) -> Status:
        """The loop. The order of its parts is important."""
        plan, run, signals, pace = self.plan, self.run, self._signals, Pace()
        schedule = self._schedule
        with self.clock.spent("compiling"):
            watch = Watch(plan, self._feed, self.state, run)
        ahead = False  # whether the last chunk runs still, and nothing but its log is due
        while True:
            # 1. What is due at this step, once: the log, the evaluation, the callbacks. A signal
            #    leaves it undone; the next start does it, with the same state.
            run.stopped = not ahead and run.step > run.reported and self._report()
            if run.step >= plan.steps and run.step == run.reported:
                return "finished"
            # 2. What clocks and signals say, all processes agree on, here and nowhere else: two
            #    that run the loop to different steps wait for each other for ever.
            steps, late, keep, *heard = agreement.least(
                pace.steps(), -self._keeper.is_late(), -watch.is_due(), *signals.votes()
            )
            signals.settle(*heard)
            asked = late or signals.preempted or signals.interrupted
            if asked and not self._is_finite(watch, thoroughly=True):
                return "diverged"
            if asked and ahead:
                self._reached(pace, self.state.window)
                ahead = self._report()
            if signals.preempted:
                return "preempted"
            if run.stopped or signals.interrupted:
                return "stopped"
            # 3. Save after that and before the data moves on, so that the model, the data and the
            #    history never disagree by one.
            if late or schedule.saves(run.step):
                with self.clock.spent("saving"):
                    self._keeper.save(run, self.state)
            # 4. A chunk of steps: up to the next thing that is due, or about two seconds.
            self._profile.begin(run.step)
            with self.clock.spent("loading"):
                data, served = self._feed.block(run.step)
            stop = min(schedule.next(run.step), run.step + steps, served)
            if signals.platform_preempts(run.step, stop):
                continue
            if not ahead:
                pace.begin(run.step)
            with self.clock.spent("computing"):
                window = self._begin_window() if ahead else None
                self.state = loop(self.state, data, run.step, stop)
            # 5. Where nothing but a log is due after a chunk, it is done once the next is sent off,
            #    so that the devices do not wait for it. Both are within two seconds then.
            finite = not ahead or self._log(window, pace)
            quick = 2 * (stop - run.step) <= steps and jax.process_count() == 1
            ahead = finite and quick and not keep and schedule.only_logs(stop)
            run.step, run.epoch = stop, self._feed.epoch_at(stop)
            if ahead:
                continue
            self._reached(pace, self.state.window)
            self._profile.end(stop)
            # 6. Nothing is logged, evaluated or saved of a state that is not finite.
            if not self._is_finite(watch, thoroughly=schedule.uses(stop), keep=bool(keep)):
                return "diverged"

    def _reached(self, pace: Pace, window: Window) -> None:
        """Waits until step `run.step` is finished, which gives `window`."""
        with self.clock.spent("computing"):
            jax.block_until_ready(window.loss)
        pace.end(self.run.step)
        self._progress.advance(self.run.step, pace.seconds)

    # --- divergence ------------------------------------------------------------------------------

    def _is_finite(self, watch: Watch, **how: bool) -> bool:
        """Returns whether the state is finite; otherwise goes back to the last one that is."""
        plan, run = self.plan, self.run
        if watch.is_finite(self.state, run.step, **how):
            return True
        found = watch.find(self.state, run.step)
        if found is None:
            return True
        found, self.state, data = found
        self._keeper.rewind(data)
        run.step, run.reported = found.step, min(found.step, run.reported)
        run.epoch = found.epoch
        run.history[:] = [row for row in run.history if row["step"] <= run.step]
        divergence.note(plan.workdir, found)
        self._say(found)
        return False

    def _say(self, found: divergence.Divergence) -> None:
        logger.error("%s%s", found, divergence.remedy(self.plan.workdir))

    # --- what is due at a step -------------------------------------------------------------------

    def _report(self) -> bool:
        """Logs, evaluates and asks the callbacks; returns whether one stops the run."""
        run = self.run
        log, evaluate = self._schedule.logs(run.step), self._schedule.evaluates(run.step)
        row = self._measured(log, evaluate)
        if row is None:
            return False
        if row:
            run.history.append({"step": run.step, "epoch": run.epoch, **row})
        stops = self._ask(bool(row))
        if stops and not (log and evaluate):  # so this is the last step
            missing = self._measured(not log, not evaluate)
            if missing is None:
                del run.history[len(run.history) - bool(row) :]
                return False
            if not row:
                run.history.append({"step": run.step, "epoch": run.epoch})
            run.history[-1] |= missing
        if log or stops:
            self._begin_window()
        run.reported = run.step
        if row or stops:
            self._write()
            with self.clock.spent("saving"):
                self._keeper.save_best(run, self.state)
        return stops

    def _log(self, window: Window, pace: Pace) -> bool:
        """Logs a window that the state has left behind; returns False where it is not finite."""
        run = self.run
        self._reached(pace, window)
        fetched = jax.device_get(window)
        if not math.isfinite(fetched.loss):
            # Put back for the watch to see: a chunk sent off in the meantime changes nothing.
            self.state = dataclasses.replace(self.state, window=window)
            return False
        row = _prefixed("train/", fetched.compute())
        run.history.append({"step": run.step, "epoch": run.epoch, **row})
        run.reported = run.step
        self._write()
        return True

    def _write(self) -> None:
        """Writes and shows the last row of the history."""
        row = self.run.history[-1]
        with self.clock.spent("reporting"):
            self._writers.write_scalars(row["step"], {k: v for k, v in row.items() if k != "step"})
            self._progress.report(row)

    def _begin_window(self) -> Window:
        """Begins a new window, and returns the one before, which no step changes any more."""
        window = self.plan.layout.replicate(Window.empty(self.plan.objective.metrics))
        before, self.state = self.state.window, dataclasses.replace(self.state, window=window)
        return before

    def _measured(self, log: bool, evaluate: bool) -> dict[str, float] | None:
        """Returns the metrics asked for, None where a signal came in between."""
        row = _prefixed("train/", self.state.window.compute()) if log else {}
        for name, evaluator in self.plan.evaluators.items() if evaluate else ():
            with self.clock.spent("evaluating"):
                values = evaluator(*self.evaluated(), ends=self._signals.asked)
            if values is None:
                return None
            row |= _prefixed(f"eval/{name}/" if name else "eval/", values)
        return row

    def _ask(self, logged: bool) -> bool:
        """Calls the callbacks that are due and returns whether one stops the run."""
        due = self._schedule.calls(self.run.step, logged)
        if not due:
            return False

        def ask() -> bool:
            answers = [stops(callback, self.run) for callback in due]
            self.run.settle()
            return any(answers)

        # A clock may decide what a callback says: one that stops, or raises, does so for all; the
        # history, by which all decide what is best, is the first process's.
        told = agreement.collected([agreement.together(ask), self.run.history[-1:]])
        self.run.history[-1:] = told[0][1]
        return any(one for one, _ in told)

    # --- the model -------------------------------------------------------------------------------

    def evaluated(self) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        """Returns the model in evaluation mode: graph, parameters or their average, the rest."""
        definition = split(self.plan.model, self.plan.update.wrt, training=False)[0]
        state = self.state
        return definition, state.params if state.ema is None else state.ema, state.rest

    def _model(self) -> nnx.Module:
        definition, params, rest = self.evaluated()
        return nnx.merge(definition, *as_carry((params, rest)))


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, float]:
    return {f"{prefix}{name}": float(value) for name, value in values.items()}
