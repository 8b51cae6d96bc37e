"""One run of `Trainer.fit`, from the first step, or the newest checkpoint, to the last."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Self

import jax
from flax import nnx

from trainers.callbacks import expect_metrics
from trainers.data.batches import Feed
from trainers.devices import agreement, memory
from trainers.devices.arrays import as_carry
from trainers.loop import divergence, program
from trainers.loop.cadence import Cadence
from trainers.loop.clock import Clock, Pace
from trainers.loop.ended import Ended
from trainers.loop.pending import Pending
from trainers.loop.plan import Plan, decisions, metrics_of
from trainers.loop.profile import Profile
from trainers.loop.progress import Progress, told_of_end, told_of_skips, told_of_start
from trainers.loop.reporter import Reporter, ask
from trainers.loop.signals import Signals
from trainers.loop.watch import Watch
from trainers.report.report import writers_of
from trainers.run import Run, Status
from trainers.step.compiled import Loop
from trainers.weights.initialize import initialize
from trainers.workdir import diverged
from trainers.workdir.checkpointer import Checkpointer

logger = logging.getLogger(__name__)


class Fit:
    """A run in progress.

    Args:
        plan: What to do.
        checkpointer: Holds the run's workdir.
        uncollected: Closed when the first steps are sent off.
        before: The end of the run before, from which it goes on where there is no workdir.

    Attributes:
        run: Step and history, as callbacks see them.
        state: The state after `run.step` steps.
        clock: Where the time went.
        ended: The end of this run, where there is no workdir to go on from.
    """

    def __init__(
        self,
        plan: Plan,
        checkpointer: Checkpointer,
        uncollected: contextlib.ExitStack,
        before: Ended | None = None,
    ):
        self.plan, self.ended = plan, before
        self.state = program.initial_state(plan)
        self.run = Run(plan.end.steps, self._model, lambda: as_carry(self.state.optimizer))
        self.clock, self._signals = Clock(), Signals()
        self._checkpointer, self._uncollected = checkpointer, uncollected
        best = plan.checkpoint.best
        self._progress = Progress(plan.end.expected, plan.batches.batch_size, best and best[0])
        self._rewound, self._skips_more = None, False

    @classmethod
    @contextlib.contextmanager
    def opened(cls, plan: Plan, before: Ended | None = None) -> Iterator[Self]:
        """Makes a run, and holds its workdir until the block ends."""
        with Checkpointer(plan).opened() as checkpointer, memory.uncollected() as uncollected:
            yield cls(plan, checkpointer, uncollected, before)

    def __call__(self) -> Status:
        """Runs to the end and returns how it ended; `run` and `state` hold the rest."""
        plan, run = self.plan, self.run
        with self._signals.watched():
            with self.clock.spent("compiling"):
                self._skip()
                loop = self._traced()
            restored, data_state = self._checkpointer.restore(run, self.state), None
            if restored is None and self.ended is not None:
                restored = self.ended.taken_up(run, self.state)
            if restored is not None:
                self.state, data_state = restored
                if self._skip():  # the run left out others before
                    loop = self._traced()
                if (status := self._ended()) is not None:
                    return status
                self._progress.say(told_of_start(run.step, plan.workdir, plan.init_from))
            elif (path := plan.init_from) is not None:
                agreement.together(lambda: initialize(plan.model, path))
                self.state = program.initial_state(plan)
            self._progress.say("" if restored is not None else plan.task.inferred)
            self._progress.say(told_of_skips(run.skips))
            if not self._signals.asked():
                with self.clock.spent("compiling"), self._progress.patience("Compiling ..."):
                    self._compile(loop)
            diverged.forget(plan.workdir)
            feed = plan.batches.feed(run.step, run.data_start, data_state, run.rows_seen)
            self.clock.waited = feed.waited
            with (
                contextlib.closing(feed),
                contextlib.closing(Profile(plan.profile, plan.workdir)) as profile,
                contextlib.closing(writers_of(plan, run, self.clock)) as writers,
                contextlib.closing(self._progress),
            ):
                self._progress.begin(run.step)
                if restored is None:
                    self._checkpointer.rehearse(run, self.state, feed.state_at(run.step))
                with self._progress.patience("Reading the first batches ..."):
                    run.moves_to(run.step, feed.epoch_at(run.step))
                cadence = Cadence(plan, run)
                reporter = Reporter(
                    plan, run, self.clock, self._signals, writers, self._progress, cadence
                )
                run.status = self._train(loop, feed, profile, reporter, cadence)
                self._finish(feed)
            self._progress.say(told_of_end(run.status, run.step, plan.workdir))
            return run.status

    def _train(
        self, loop: Loop, feed: Feed, profile: Profile, reporter: Reporter, cadence: Cadence
    ) -> Status:
        """The loop. The order of its parts is important."""
        plan, run, signals, checkpointer = self.plan, self.run, self._signals, self._checkpointer
        pace = Pace()
        pending = Pending(reporter, cadence, pace)
        with self.clock.spent("compiling"):
            watch = Watch(plan, feed, self.state, run)
        while True:
            # 1. What is due at this step, once: the log, the evaluation, the callbacks. A signal
            #    leaves it undone; the next start does it, with the same state.
            run.stopped = False
            if run.step > run.reported and not pending.is_open:
                self._report(reporter, feed, watch)
            if run.is_last(run.step) and run.step == run.reported:
                return "finished"
            # 2. What clocks and signals say, all processes agree on, here and nowhere else: two
            #    that run the loop to different steps wait for each other for ever.
            steps, late, keep, *heard = agreement.least(
                pace.steps(), -checkpointer.is_late(), -watch.is_due(), *signals.votes()
            )
            signals.settle(*heard)
            asked = late or signals.preempted or signals.interrupted
            if asked and not self._is_finite(watch, thoroughly=True):
                return "diverged"
            if asked and pending.is_open:
                reporter.reached(self.state.window, pace)
                pending.is_open = False
                self._report(reporter, feed, watch)
            if signals.preempted:
                return "preempted"
            if run.stopped or signals.interrupted:
                return "stopped"
            # 3. Save after that and before the data moves on, so that the model, the data and the
            #    history never disagree by one.
            if late or cadence.saves(run.step):
                with self.clock.spent("saving"):
                    checkpointer.save(run, self.state, data_state=feed.state_at(run.step))
            # 4. A chunk of steps: up to the next thing that is due, or about two seconds.
            profile.begin(run.step)
            with self.clock.spent("loading"), self._saved_before_raising(feed, watch):
                data, served = feed.block(run.step)
            stop = min(cadence.next(run.step), run.step + steps, served)
            if signals.platform_preempts(run.step, stop):
                continue
            if stop - run.step >= loop.inner and cadence.is_long(steps):
                with self.clock.spent("compiling"):
                    loop.compile_inner()
            if not pending.is_open:
                pace.begin(run.step)
            with self.clock.spent("computing"):
                self.state = loop(pending.taken(self.state), data, run.step, stop)
            self._uncollected.close()
            # 5. Where nothing but a log was due before the chunk, it is done now that the chunk is
            #    sent off, so that the devices do not wait for it. Both are within two seconds then.
            self.state, finite = pending.settled(self.state)
            taken, run.step, run.rows_seen = stop - run.step, stop, feed.rows_at(stop)
            if stop == served:  # the next data are waited for: until then the devices compute
                reporter.settle(self.state.window)
            with self.clock.spent("loading"), self._saved_before_raising(feed, watch):
                run.moves_to(stop, feed.epoch_at(stop))
            if plan.end.epochs is not None and run.epoch >= plan.end.epochs:
                run.steps = stop
            pending.is_open = finite and not keep and stop < served and pending.opens(stop, taken)
            if pending.is_open:
                continue
            reporter.reached(self.state.window, pace)
            profile.end(stop)
            # 6. Nothing is logged, evaluated or saved of a state that is not finite.
            if not self._is_finite(watch, thoroughly=cadence.uses(stop), keep=bool(keep)):
                return "diverged"

    # --- before the first step -------------------------------------------------------------------

    def _traced(self) -> Loop:
        """Traces all programs, which comes before compiling and finds what is wrong with them."""
        plan = self.plan
        expect_metrics(plan.checkpoint.best, plan.callbacks, metrics_of(plan))
        loop = agreement.together(lambda: program.loop(plan, self.state, plan.batches.data))
        if jax.process_count() > 1:
            agreement.expect_same(decisions(plan))
        agreement.expect_same_program(lambda: loop.lowered, "the compiled program")
        for evaluator in plan.evaluators.values():
            evaluator.trace(*self.evaluated())
        return loop

    def _skip(self) -> bool:
        """Leaves out records from this step on; returns whether that changes the program."""
        self._skips_more = self.run.skip(self.plan.skip)
        return self.plan.batches.skip(self.run.skips)

    def _compile(self, loop: Loop) -> None:
        loop.compile()
        memory.give_back()
        agreement.together(
            lambda: memory.expect_fits(loop.program, self.state, self.plan.batches.data)
        )
        self._checkpointer.compile(self.state)

    def _ended(self) -> Status | None:
        """Returns how a run that was taken up had ended, None where it goes on."""
        plan, run = self.plan, self.run
        found = diverged.noted(plan.workdir, run.step, run.data_start)
        if found is not None and not self._skips_more:
            self._say(found)
            return "diverged"
        if plan.end.epochs is not None and run.epoch >= plan.end.epochs:
            run.steps = run.step
        if run.is_last(run.step) and run.step == run.reported:
            self._progress.say(f"Finished already, at step {run.step}: nothing is left to do.")
            return "finished"
        # Callbacks may have changed in between: those of today decide.
        if run.stopped and ask(Cadence(plan, run).calls(run.step, True), run):
            return "stopped"
        return None

    # --- parts of the loop -----------------------------------------------------------------------

    def _report(self, reporter: Reporter, feed: Feed, watch: Watch) -> None:
        """Does what is due at this step, and saves it where it is the best so far."""
        run = self.run
        with self._saved_before_raising(feed, watch):
            self.state, run.stopped = reporter.report(self.state)
        if self._checkpointer.is_best(run):
            with self.clock.spent("saving"):
                self._checkpointer.save_best(run, self.state, feed.state_at(run.step))

    @contextlib.contextmanager
    def _saved_before_raising(self, feed: Feed, watch: Watch) -> Iterator[None]:
        """Saves the run before an exception of a callback or of the data ends it on all processes.

        What is due at this step is undone then; the next start does it, with the same state.
        """
        run = self.run
        try:
            yield
        except Exception:
            run.forget_report()
            if watch.is_finite(self.state, run.step, thoroughly=True):
                self._finish(feed, raises=False)
            raise

    def _finish(self, feed: Feed, *, raises: bool = True) -> None:
        """Saves the last step, or keeps it for the next `fit` where there is no workdir."""
        # The feed is past this step after a divergence.
        data_state = self._rewound or feed.state_at(self.run.step)
        with self.clock.spent("saving"):
            self._checkpointer.finish(self.run, self.state, data_state, raises=raises)
        if self.plan.workdir is None:
            self.ended = Ended(self.run, self.state, data_state)

    def _is_finite(self, watch: Watch, **how: bool) -> bool:
        """Returns whether the state is finite; otherwise goes back to the last one that is."""
        plan, run = self.plan, self.run
        if watch.is_finite(self.state, run.step, **how):
            return True
        found = watch.find(self.state, run.step)
        if found is None:
            return True
        found, self.state, self._rewound = found
        run.goes_back(found.step, found.epoch, found.rows_seen)
        diverged.note(plan.workdir, found)
        self._say(found)
        return False

    def _say(self, found: divergence.Divergence) -> None:
        logger.error("%s%s", found, diverged.remedy(self.plan.workdir))

    # --- the model -------------------------------------------------------------------------------

    def evaluated(self) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        """Returns the model in evaluation mode: graph, parameters or their average, the rest."""
        return program.evaluated(self.plan, self.state)

    def _model(self) -> nnx.Module:
        definition, params, rest = self.evaluated()
        return nnx.merge(definition, *as_carry((params, rest)))
