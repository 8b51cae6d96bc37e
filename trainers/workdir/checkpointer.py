"""The keeper of a run: saves it into its workdir and takes it up again."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from flax import nnx

from datarax.errors import closest, listed
from trainers.data.eager import Feed
from trainers.data.stream import StreamFeed
from trainers.devices import agreement
from trainers.devices.arrays import as_carry, without_keys
from trainers.devices.checksum import checksums, dotted, kind
from trainers.loop.clock import Clock
from trainers.loop.config import configuration
from trainers.loop.plan import Plan
from trainers.report.report import Report
from trainers.run import Run
from trainers.step.state import State
from trainers.weights import BEST, CHECKPOINTS
from trainers.workdir import compilation
from trainers.workdir.lock import locked
from trainers.workdir.store import Store
from trainers.writers import JsonLines, Writers

logger = logging.getLogger(__name__)


class Keeper:
    """Saves a run into its workdir and takes it up again; without a workdir it does nothing.

    Args:
        plan: What the run does.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self._store: Store | None = None
        self._best: Store | None = None
        self._saved: tuple[int, int] | None = None  # step, and the last step reported by then
        self._data: dict[str, Any] | None = None  # the source's state that was restored
        self._feed: Feed | StreamFeed | None = None
        self._best_at: int | None = None
        self._best_is_missed = False
        self._saved_at = time.monotonic()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the workdir, its lock and its compilation cache until the block ends.

        Raises:
            OSError: If the workdir cannot be written.
            RuntimeError: If another run holds it.
        """
        workdir, options = self._plan.workdir, self._plan.checkpoint
        if workdir is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            # The first process holds the lock for all.
            agreement.together(lambda: stack.enter_context(_held(workdir)))
            stack.enter_context(compilation.cached(workdir))
            self._store = Store(workdir / CHECKPOINTS, keep=options.keep)
            stack.callback(self._store.close)
            if options.best is not None:
                self._best = Store(workdir / BEST, keep=1)
                stack.callback(self._best.close)
            yield

    def compile(self, state: State) -> None:
        """Compiles what saving takes, so that the first save takes no longer than others."""
        if self._store is not None:
            checksums(without_keys(_arrays(state)))

    def writers(self, run: Run, clock: Clock) -> Writers:
        """Returns where the run's metrics go: nowhere but in the first process."""
        own, workdir = [], self._plan.workdir
        if not agreement.is_first():
            return Writers([])
        if workdir is not None:
            report = Report(workdir / "report.html", self._plan, run, clock)
            own = [JsonLines(workdir / "metrics.jsonl", run.history), report]
        writers = Writers([*own, *self._plan.writers])
        writers.write_hparams(configuration(self._plan))
        return writers

    # --- taking up -------------------------------------------------------------------------------

    def restore(self, run: Run, state: State) -> State | None:
        """Takes up the newest whole checkpoint.

        Args:
            run: Gets the step and the history.
            state: The state of a run that begins, for its structure.

        Returns:
            The state, or None where there is no checkpoint.

        Raises:
            ValueError: If the checkpoint is of another model, other data or another batch size.
            RuntimeError: If there are checkpoints and all are damaged.
        """
        if self._store is None:
            return None
        like = _arrays(state)

        def take(step: int):
            data, saved = self._store.read(step)
            self._expect_kinds(step, saved, _kinds(like))
            first = self._first(step, data, saved)
            return data, saved | {"first": first}, self._store.restore(step, like, saved)

        found = self._store.newest(take)
        if found is None:
            return None
        data, saved, arrays = found
        run.step, run.reported, run.first = saved["step"], saved["reported"], saved["first"]
        run.history[:], run.stopped = saved["history"], saved["stopped"]
        run.epoch = saved["epoch"]
        self._saved, self._data = (run.step, run.reported), data
        instead = ", not from init_from" if self._plan.init_from is not None else ""
        logger.info("Going on from step %d in %s%s.", run.step, self._plan.workdir, instead)
        state = _with_arrays(state, arrays, self._plan.update.wrt)
        self.save_best(run, state)  # it is missing, where the run was killed while writing it
        return state

    def _expect_kinds(self, step: int, saved: dict, own: dict[str, str]) -> None:
        """Raises unless a checkpoint is of this model, optimizer and metrics."""
        other = {name: text.rpartition(" ")[0] for name, text in saved["arrays"].items()}
        different = [name for name in own | other if own.get(name) != other.get(name)]
        if different:
            name = different[0]
            raise ValueError(
                f"{self._where(step)} is of another run: {len(different)} arrays differ. Its "
                f"{name} is {other.get(name, 'missing')}, this run's {own.get(name, 'missing')}. "
                "Go on with the model, optimizer, metrics and ema it had, or begin anew in another "
                "workdir."
            )

    def _first(self, step: int, data: dict | None, saved: dict) -> int:
        """Returns the step that begins with batch 0; refuses a checkpoint of other batches."""
        try:
            if data is None:
                own = self._plan.pipeline.source.get_state()
                raise ValueError(
                    "It holds no state of the data; this run's has the fingerprint "
                    f"{own.get('fingerprint')!r}."
                )
            self._plan.batches.check(data)
            for name, own in _config(self._plan).items():
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

    def feed(self, run: Run) -> Feed | StreamFeed:
        """Returns what gives the run its data, from the step on where it stands."""
        state = self._data if run.first < run.step else None
        self._feed = self._plan.batches.feed(run.step, run.first, state)
        return self._feed

    def rewind(self, data: dict[str, Any]) -> None:
        """Notes the source's state at the step to save, where the feed has passed that."""
        self._feed, self._data = None, data

    # --- saving ----------------------------------------------------------------------------------

    def is_late(self) -> bool:
        """Returns whether a checkpoint is due by the clock."""
        minutes = self._plan.checkpoint.every_minutes
        if self._store is None or minutes is None:
            return False
        return time.monotonic() - self._saved_at > 60 * minutes

    def save(self, run: Run, state: State) -> None:
        """Saves this step, unless it is saved as it is; the writing goes on in the background.

        What cannot be written is said; training goes on, and earlier checkpoints stay.
        """
        if self._store is None or self._saved == (run.step, run.reported):
            return
        if self._best_at != run.step:
            # The history tells of the best checkpoint, so that must be whole before this one is.
            self._try(self._best, Store.wait)
        self._saved, self._saved_at = (run.step, run.reported), time.monotonic()
        self._try(self._store, self._put, run, state)

    def save_best(self, run: Run, state: State) -> None:
        """Saves this step beside the others if its evaluation is the best so far."""
        of = self._plan.checkpoint.best
        best = run.best(of)
        if best is None and of is not None and not self._best_is_missed:
            self._miss_best(run, of[0])
        if self._best is None or best is None or best[0] != run.step:
            return
        if run.step not in self._best.steps():  # it is, where a killed run had come further
            self._best_at = run.step
            self._try(self._best, self._put, run, state)

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

    def finish(self, run: Run, state: State) -> None:
        """Saves the last step and waits until everything is written.

        Raises:
            OSError: If the last step could not be written, not even at the second attempt.
        """
        if self._store is None:
            return
        self.save(run, state)
        self._try(self._best, Store.wait)
        self._try(self._store, Store.wait)
        if self._saved is None:
            self._put(self._store, run, state)
            self._store.wait()

    def _try(self, store: Store | None, write: Callable[..., None], *arguments: Any) -> None:
        if store is None:
            return
        try:
            write(store, *arguments)
        except OSError as error:
            self._saved = None if store is self._store else self._saved
            logger.warning("%s. Training goes on; the checkpoints before it are whole.", error)

    def _put(self, store: Store, run: Run, state: State) -> None:
        item = {
            "step": run.step,
            "epoch": run.epoch,
            "reported": run.reported,
            "stopped": run.stopped,
            "first": run.first,
            "history": run.history,
            "config": _config(self._plan),
        }
        data = self._data if self._feed is None else self._feed.state_at(run.step)
        store.save(run.step, _arrays(state), data, item)


@contextlib.contextmanager
def _held(workdir: epath.Path) -> Iterator[None]:
    if not agreement.is_first():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(workdir))
        except OSError as error:
            raise OSError(
                f"workdir={os.fspath(workdir)!r} cannot be written: {error}. Give a directory that "
                "can, or workdir=None to save nothing."
            ) from error
        yield


def _config(plan: Plan) -> dict[str, Any]:
    """Returns what decides the batches, beside the source's state."""
    config: dict[str, Any] = {"batch_size": plan.batches.batch_size}
    # Without stages nothing is drawn from the key, whatever seed it was made of.
    if not plan.pipeline.stages.is_empty:
        config["rngs of the Pipeline"] = jax.random.key_data(plan.batches.key).tolist()
    return config


def _arrays(state: State) -> dict[str, Any]:
    """Returns a state as two dicts: the model's variables, nested by name, and the rest by path."""
    leaves = jax.tree_util.tree_leaves_with_path(_without_model(state))
    return {
        "model": nnx.to_pure_dict(nnx.merge_state(state.params, state.rest)),
        "training": {dotted(path): leaf for path, leaf in leaves},
    }


def _with_arrays(state: State, arrays: dict[str, Any], wrt: Any) -> State:
    """Returns a state with the arrays that `_arrays` gave."""
    model = nnx.merge_state(state.params, state.rest)
    nnx.replace_by_pure_dict(model, arrays["model"])
    params, rest = nnx.split_state(model, wrt, ...)
    training = jax.tree_util.tree_map_with_path(
        lambda path, _: arrays["training"][dotted(path)], _without_model(state)
    )
    return as_carry(dataclasses.replace(training, params=params, rest=rest))


def _without_model(state: State) -> State:
    return dataclasses.replace(state, params=None, rest=None)


def _kinds(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(without_keys(tree))
    return {dotted(path): kind(leaf) for path, leaf in leaves}
