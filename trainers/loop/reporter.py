"""The reporter of a run: what is due at a step, and where it goes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from trainers.callbacks import Callback, stops
from trainers.devices import agreement
from trainers.loop import program
from trainers.loop.cadence import Cadence
from trainers.loop.clock import Clock, Pace
from trainers.loop.plan import Plan
from trainers.loop.progress import Progress, told_of_spike
from trainers.loop.signals import Signals
from trainers.run import Run
from trainers.step.spike import DEVIATIONS, Spike
from trainers.step.state import State, Window
from trainers.writers import Writers

_SPIKES = 5  # of a run are said; the report has all


class Reporter:
    """Logs, evaluates and asks the callbacks, at the steps where that is due.

    Args:
        plan: What the run does.
        run: The run; its history gets the rows.
        clock: Where the run's time goes.
        signals: What may end an evaluation.
        writers: Where the rows go.
        progress: What shows them.
        cadence: Says what is due.
    """

    def __init__(
        self,
        plan: Plan,
        run: Run,
        clock: Clock,
        signals: Signals,
        writers: Writers,
        progress: Progress,
        cadence: Cadence,
    ):
        self._plan, self._run, self._clock, self._signals = plan, run, clock, signals
        self._writers, self._progress, self._cadence = writers, progress, cadence

    def report(self, state: State) -> tuple[State, bool]:
        """Does what is due at this step.

        Args:
            state: The state, known to be finite.

        Returns:
            The state, with new sums after a log, and whether a callback stops the run.
        """
        run = self._run
        log, evaluate = self._cadence.logs(run.step), self._cadence.evaluates(run.step)
        row = self._measured(state, log, evaluate)
        if row is None:
            return state, False
        if row:
            run.log(row)
        stops = ask(self._cadence.calls(run.step, bool(row)), run)
        if stops and not (log and evaluate):  # so this is the last step
            missing = self._measured(state, not log, not evaluate)
            if missing is None:
                run.forget_report()
                return state, False
            run.log(missing)
        run.reported = run.step
        if run.history and run.history[-1]["step"] == run.step:
            self._write()
        return self.begin_window(state)[0] if log or stops else state, stops

    def log(self, window: Window) -> bool:
        """Logs the sums of a window that the state has left behind.

        Returns:
            False where they are not finite, so that nothing is logged.
        """
        run, fetched = self._run, jax.device_get(window)
        if not math.isfinite(fetched.loss):
            return False
        run.log(self._trained(fetched))
        run.reported = run.step
        self._write()
        return True

    def begin_window(self, state: State) -> tuple[State, Window]:
        """Returns the state with new sums, and the old ones, which no step changes any more."""
        window = self._plan.layout.replicate(state.window.begun_anew())
        return dataclasses.replace(state, window=window), state.window

    def reached(self, window: Window, pace: Pace) -> None:
        """Waits until step `run.step` is finished, which gives `window`."""
        self.settle(window)
        pace.end(self._run.step)
        self._progress.advance(self._run.step, pace.seconds)

    def settle(self, window: Window) -> None:
        """Waits until the steps that give `window` are finished."""
        with self._clock.spent("computing"):
            jax.block_until_ready(window.loss)

    def _measured(self, state: State, log: bool, evaluate: bool) -> dict[str, float] | None:
        """Returns the metrics asked for, None where a signal came in between."""
        row = self._trained(jax.device_get(state.window)) if log else {}
        for name, evaluator in self._plan.evaluators.items() if evaluate else ():
            with self._clock.spent("evaluating"):
                model = program.evaluated(self._plan, state)
                values = evaluator(*model, ends=self._signals.asked)
            if values is None:
                return None
            row |= _prefixed(f"eval/{name}/" if name else "eval/", values)
        return row

    def _trained(self, window: Window) -> dict[str, float]:
        """Returns what a window's sums, in host memory, tell of the steps since the last log."""
        self._look_at(window.spike)
        row = _prefixed("train/", window.compute())
        if self._plan.task.has_tokens:
            logs = reversed(self._run.history)
            before = next((log["tokens_seen"] for log in logs if "tokens_seen" in log), 0.0)
            row["tokens_seen"] = before + float(window.weight)
        return row

    def _look_at(self, spike: Spike | None) -> None:
        """Notes a loss that stands out, and says whose it is."""
        run, batches = self._run, self._plan.batches
        if spike is None or spike.deviations <= DEVIATIONS:
            return
        found = {"batch": int(spike.step) - run.data_start, "deviations": float(spike.deviations)}
        if found not in run.spikes:  # it is, where a signal came before the log was done
            run.spikes.append(found)
            if len(run.spikes) <= _SPIKES:
                self._progress.say(told_of_spike(found, batches.numbered_at(found["batch"])))

    def _write(self) -> None:
        """Writes and shows the last row of the history."""
        row = self._run.history[-1]
        with self._clock.spent("reporting"):
            self._writers.write_scalars(row["step"], {k: v for k, v in row.items() if k != "step"})
            self._progress.report(row, self._clock.input_stall)


def ask(due: Sequence[Callback], run: Run) -> bool:
    """Calls callbacks, on all processes, and returns whether one of them stops the run."""
    if not due:
        return False

    def answers() -> bool:
        found = [stops(callback, run) for callback in due]
        run.settle()
        return any(found)

    # A clock may decide what a callback says: one that stops, or raises, does so for all; the
    # history, by which all decide what is best, is the first process's.
    told = agreement.collected([agreement.together(answers), run.history[-1:]])
    run.history[-1:] = told[0][1]
    return any(one for one, _ in told)


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}{name}": float(value) for name, value in values.items()}
