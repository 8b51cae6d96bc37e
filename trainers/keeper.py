"""The keeper of a run: saves it into its workdir and takes it up again."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from trainers import compilation
from trainers.checkpoints import Store
from trainers.checksum import dotted
from trainers.lock import locked
from trainers.plan import Plan
from trainers.run import Run
from trainers.state import State, strong
from trainers.weights import CHECKPOINTS
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
        self._saved: int | None = None
        self._saved_at = time.monotonic()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the workdir, its lock and its compilation cache until the block ends."""
        workdir, options = self._plan.workdir, self._plan.checkpoint
        if workdir is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(workdir))
            stack.enter_context(compilation.cached(workdir))
            self._store = Store(workdir / CHECKPOINTS, keep=options.keep)
            stack.callback(self._store.close)
            if options.best is not None:
                self._best = Store(workdir / "best", keep=1)
                stack.callback(self._best.close)
            yield

    def writers(self, run: Run) -> Writers:
        """Returns where the run's metrics go."""
        own = []
        if self._plan.workdir is not None:
            own = [JsonLines(self._plan.workdir / "metrics.jsonl", run.reported)]
        return Writers([*own, *self._plan.writers])

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

        def take(step: int):
            data, saved = self._store.read(step)
            first = self._first_step(step, data, saved, _config(self._plan, state))
            return saved | {"first": first}, self._store.restore(step, _arrays(state), saved)

        found = self._store.newest(take)
        if found is None:
            return None
        saved, arrays = found
        run.step, run.reported, run.first = saved["step"], saved["reported"], saved["first"]
        run.history[:] = saved["history"]
        self._saved = run.step
        logger.info("Going on from step %d in %s.", run.step, self._plan.workdir)
        return _with_arrays(state, arrays, self._plan.update.wrt)

    def _first_step(self, step: int, data: dict, saved: dict, config: dict) -> int:
        """Returns the step that begins with batch 0; refuses one that is not of this run."""
        where = f"The checkpoint of step {step} in {self._plan.workdir}"
        for name, own in config.items():
            if saved["config"].get(name) != own:
                raise ValueError(
                    f"{where} has {name} {saved['config'].get(name)}, this run {own}: go on with "
                    "what it had, or begin anew in another workdir."
                )
        try:
            self._plan.batches.check(data)
        except (ValueError, TypeError) as error:
            if self._plan.resume_data == "restart":
                return step
            raise ValueError(
                f"{where} cannot go on with this data. {error} To begin the data anew and keep the "
                'model, write Trainer(..., resume_data="restart").'
            ) from error
        return saved["first"]

    # --- saving ----------------------------------------------------------------------------------

    def is_due(self, run: Run) -> bool:
        """Returns whether a checkpoint is due at this step."""
        options = self._plan.checkpoint
        if self._store is None:
            return False
        if run.step > 0 and run.step % options.every == 0:
            return True
        minutes = options.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def save(self, run: Run, state: State) -> None:
        """Saves this step, unless it is saved already; the writing goes on in the background.

        What cannot be written is said; training goes on, and earlier checkpoints stay.
        """
        if self._store is not None and self._saved != run.step:
            self._save_in(self._store, run, state)
            self._saved, self._saved_at = run.step, time.monotonic()

    def save_best(self, run: Run, state: State) -> None:
        """Saves this step beside the others if its evaluation is the best so far."""
        best = run.best(self._plan.checkpoint.best)
        if self._best is not None and best is not None and best[0] == run.step:
            self._save_in(self._best, run, state)

    def finish(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: If the last checkpoint could not be written.
        """
        for store in (self._store, self._best):
            if store is not None:
                store.wait()

    def _save_in(self, store: Store, run: Run, state: State) -> None:
        item = {
            "step": run.step,
            "reported": run.reported,
            "first": run.first,
            "history": run.history,
            "config": _config(self._plan, state),
        }
        data = self._plan.batches.state_at(run.step - run.first)
        try:
            store.save(run.step, _arrays(state), data, item)
        except Exception:  # a full disk, say: Orbax raises what it likes
            logger.exception("Step %d could not be saved; training goes on.", run.step)


def _config(plan: Plan, state: State) -> dict[str, Any]:
    """Returns what must be the same when the run goes on."""
    arrays = _arrays(state)
    return {
        "batch_size": plan.batches.batch_size,
        "model": _shapes(arrays["model"]),
        "optimizer and metrics": _shapes(arrays["training"]),
    }


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
    return strong(dataclasses.replace(training, params=params, rest=rest))


def _without_model(state: State) -> State:
    return dataclasses.replace(state, params=None, rest=None)


def _shapes(tree: Any) -> str:
    """Returns a digest of a pytree's paths, shapes and dtypes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    text = json.dumps([(dotted(path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
