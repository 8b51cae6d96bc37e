"""The checkpointer of a run: saves it into its workdir and takes it up again."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np

from datarax.errors import closest, listed
from trainers.data.skipped import skips_of
from trainers.devices import agreement
from trainers.devices.arrays import without_keys
from trainers.devices.checksum import checksums
from trainers.loop.arguments import Checkpoints
from trainers.loop.plan import Plan
from trainers.run import Run
from trainers.step import average
from trainers.step.state import State
from trainers.workdir import compilation, items
from trainers.workdir.lock import held
from trainers.workdir.store import BEST, CHECKPOINTS, DamagedError, Store

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves a run into its workdir and takes it up again; without a workdir it does nothing.

    Args:
        plan: What the run does.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self._store: Store | None = None
        self._best: Store | None = None
        self._saved: tuple[int, int] | None = None  # step, and the last step reported by then
        self._best_at: int | None = None
        self._best_is_missed = False
        self._saved_at = time.monotonic()

    @contextlib.contextmanager
    def opened(self) -> Iterator[Self]:
        """Holds the workdir, its lock and its compilation cache until the block ends.

        Raises:
            OSError: If the workdir cannot be written.
            RuntimeError: If another run holds it.
        """
        workdir, options = self._plan.workdir, self._plan.checkpoint
        if workdir is None:
            if options != Checkpoints(best=options.best) and agreement.is_first():
                logger.warning("%s saves nothing without a workdir: write workdir=.", options)
            yield self
            return
        with contextlib.ExitStack() as stack:
            # The first process holds the lock for all.
            agreement.together(lambda: stack.enter_context(held(workdir)))
            stack.enter_context(compilation.cached(workdir))
            self._store = Store(workdir / CHECKPOINTS, keep=options.keep)
            stack.callback(self._store.close)
            if options.best is not None:
                self._best = Store(workdir / BEST, keep=1)
                stack.callback(self._best.close)
            yield self

    def compile(self, state: State) -> None:
        """Compiles what saving takes, so that the first save takes no longer than others."""
        if self._store is not None:
            checksums(without_keys(self._arrays(state)))

    # --- taking up -------------------------------------------------------------------------------

    def restore(self, run: Run, state: State) -> tuple[State, dict[str, Any] | None] | None:
        """Takes up the newest whole checkpoint.

        Args:
            run: Gets the step and the history.
            state: The state of a run that begins, for its structure.

        Returns:
            The state of the run, and that of its data, None where they begin anew; or None where
            there is no checkpoint.

        Raises:
            ValueError: If the checkpoint is of another model, other data or another batch size.
            RuntimeError: If there are checkpoints and all are damaged.
        """
        store = self._store
        if store is None:
            return None
        first = self._arrays(state)

        def take(step: int):
            data, saved = store.read(step)
            kinds = {name: text.rpartition(" ")[0] for name, text in saved["arrays"].items()}
            like = items.taken_up(first, kinds)
            self._expect_alike(step, like, kinds)
            start = self._data_start(step, data, saved)
            return data, saved, start, store.restore(step, like, saved)

        found = store.newest(take)
        if found is None:
            return None
        data, saved, start, arrays = found
        run.step, run.reported, run.data_start = saved["step"], saved["reported"], start
        run.history[:], run.stopped = saved["history"], saved["stopped"]
        run.epoch, run.epoch_start = saved["epoch"], saved.get("epoch_start", 0)
        run.rows_seen = saved.get("rows_seen", self._plan.batches.counted(run.step))
        told = saved if start == saved["first"] else {}  # other data's records have other numbers
        run.skips[:], run.spikes[:] = skips_of(told.get("skips", [])), told.get("spikes", [])
        self._saved = run.step, run.reported
        state = items.with_arrays(state, arrays, self._plan.update.wrt)
        self.save_best(run, state, data)  # it is missing, where the run was killed while writing it
        return state, data if start < run.step else None

    def _arrays(self, state: State) -> dict[str, Any]:
        """Returns a state as a checkpoint holds it, with the average that evaluation means."""
        averaged = average.of(state, self._plan.update.ema)
        return items.arrays_of(dataclasses.replace(state, ema=averaged))

    def _expect_alike(self, step: int, like: dict[str, Any], saved: dict[str, str]) -> None:
        """Raises unless a checkpoint is of this model, optimizer and average."""
        different = items.differing(like, saved)
        if different:
            name, own = different[0], items.kinds(like)
            raise ValueError(
                f"{self._where(step)} is of another run: {len(different)} arrays differ. Its "
                f"{name} is {saved.get(name, 'missing')}, this run's {own.get(name, 'missing')}. "
                "Go on with the model, optimizer and ema it had, or begin anew in another workdir."
            )

    def _data_start(self, step: int, data: dict | None, saved: dict) -> int:
        """Returns the step that began with batch 0; refuses a checkpoint of other batches."""
        try:
            if data is None:
                own = self._plan.pipeline.source.get_state()
                raise ValueError(
                    "It holds no state of the data; this run's has the fingerprint "
                    f"{own.get('fingerprint')!r}."
                )
            self._plan.batches.check(data)
            for name, own in items.config_of(self._plan).items():
                had = saved["config"].get(name, own)  # without stages it notes no rngs
                if had != own:
                    raise ValueError(f"It had {name} {had}, this run has {own}.")
        except (ValueError, TypeError) as error:
            if self._plan.resume_data == "restart":
                logger.warning("%s is of other data: they begin anew.", self._where(step))
                return step
            raise ValueError(
                f"{self._where(step)} cannot go on with this data. {error} To begin the data anew "
                'and keep the model, write Trainer(..., resume_data="restart").'
            ) from error
        return saved["first"]

    def _where(self, step: int) -> str:
        return f"The checkpoint of step {step} in {self._plan.workdir}"

    # --- saving ----------------------------------------------------------------------------------

    def rehearse(self, run: Run, state: State, data_state: dict[str, Any]) -> None:
        """Saves a likeness of the first state, at most one number an array, and reads it back.

        So what cannot be saved is found before the first step, not at the first checkpoint.

        Raises:
            ValueError: If two variables have one name, or something in the run is no number.
            OSError: If what is written cannot be read back.
        """
        if self._store is None:
            return
        item, arrays = self._item(run), without_keys(self._arrays(state))
        small = jax.tree.map(lambda x: np.zeros([min(n, 1) for n in x.shape], x.dtype), arrays)
        place = self._store.directory / "trial"
        trial = Store(place, keep=1)
        try:
            trial.save(0, small, data_state, item)
            trial.wait()
            trial.restore(0, dict.fromkeys(small), trial.read(0)[1])
        except (OSError, DamagedError) as error:
            raise OSError(
                f"The state of this run cannot be saved in {self._plan.workdir} and read back: "
                f"{error}. Write another workdir, or None to save nothing."
            ) from error
        finally:
            trial.close()
            agreement.together(lambda: place.rmtree() if agreement.is_first() else None)

    def is_late(self) -> bool:
        """Returns whether a checkpoint is due by the clock."""
        minutes = self._plan.checkpoint.every_minutes
        if self._store is None or minutes is None:
            return False
        return time.monotonic() - self._saved_at > 60 * minutes

    def save(self, run: Run, state: State, data_state: dict[str, Any]) -> None:
        """Saves this step, unless it is saved as it is; the writing goes on in the background.

        What cannot be written is said; training goes on, and earlier checkpoints stay.

        Args:
            run: The run.
            state: Its state; it may be donated once this returns.
            data_state: The source's state at the same step.
        """
        if self._store is None or self._saved == (run.step, run.reported):
            return
        if self._best_at != run.step:
            # The history tells of the best checkpoint, so that must be whole before this one is.
            self._try(self._best, Store.wait)
        self._saved, self._saved_at = (run.step, run.reported), time.monotonic()
        self._try(self._store, self._put, run, state, data_state)

    def is_best(self, run: Run) -> bool:
        """Returns whether this step's evaluation is the best so far, and is to be saved."""
        of = self._plan.checkpoint.best
        best = run.best(of)
        if best is None and of is not None and not self._best_is_missed:
            self._miss_best(run, of[0])
        return self._best is not None and best is not None and best[0] == run.step

    def save_best(self, run: Run, state: State, data_state: dict[str, Any] | None) -> None:
        """Saves this step beside the others if its evaluation is the best so far."""
        # An earlier start of this run may have saved it before it was killed.
        if self.is_best(run) and self._best is not None and run.step not in self._best.steps():
            self._best_at = run.step
            self._try(self._best, self._put, run, state, data_state)

    def _miss_best(self, run: Run, metric: str) -> None:
        """Says once, after a log and an evaluation, that nothing has the metric of the best."""
        names = sorted(run.metrics)
        parts = ["train/", "eval/"] if self._plan.evaluators else ["train/"]
        if all(any(name.startswith(part) for name in names) for part in parts):
            # No error: a callback may add the metric later.
            self._best_is_missed = True
            logger.warning(
                "best=%r, but no log up to step %d has that metric, so there is no best yet: there "
                "are %s.%s",
                *(self._plan.checkpoint.best, run.step, listed(names), closest(metric, names)),
            )

    def finish(
        self, run: Run, state: State, data_state: dict[str, Any], *, raises: bool = True
    ) -> None:
        """Saves the last step and waits until everything is written.

        Args:
            run: The run.
            state: Its state.
            data_state: The source's state at the same step.
            raises: Whether to try again, and raise, where it could not be written.

        Raises:
            OSError: If the last step could not be written, not even at the second attempt.
        """
        if self._store is None:
            return
        self.save(run, state, data_state)
        self._try(self._best, Store.wait)
        self._try(self._store, Store.wait)
        if self._saved is None and raises:
            self._put(self._store, run, state, data_state)
            self._store.wait()

    def _try(self, store: Store | None, write: Callable[..., None], *arguments: Any) -> None:
        if store is None:
            return
        try:
            write(store, *arguments)
        except OSError as error:
            self._saved = None if store is self._store else self._saved
            logger.warning("%s. Training goes on; the checkpoints before it are whole.", error)

    def _put(self, store: Store, run: Run, state: State, data_state: dict[str, Any]) -> None:
        store.save(run.step, self._arrays(state), data_state, self._item(run))

    def _item(self, run: Run) -> dict[str, Any]:
        return {
            "step": run.step,
            "epoch": run.epoch,
            "epoch_start": run.epoch_start,
            "rows_seen": run.rows_seen,
            "reported": run.reported,
            "stopped": run.stopped,
            "first": run.data_start,  # its name since format 1
            "history": run.history,
            "skips": run.skips,
            "spikes": run.spikes,
            "config": items.config_of(self._plan),
        }
