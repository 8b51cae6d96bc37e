"""The store of a run's checkpoints: one Orbax composite a step, each array under a checksum."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from trainers.devices import agreement
from trainers.devices.arrays import with_keys, without_keys
from trainers.devices.checksum import checksums
from trainers.workdir import backend

logger = logging.getLogger(__name__)

FORMAT = 1
CHECKPOINTS, BEST = "checkpoints", "best"
"""The directories of the checkpoints within a workdir."""

_ARRAYS = ("model", "training")
_REPLACED = "replaced-"
_TURN = threading.Lock()  # two saves begun at once on two threads get one number (Orbax 0.12)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns a path that stays the same wherever the process goes; Orbax takes no other."""
    path = epath.Path(os.fspath(path).removeprefix("file://"))
    return path if "://" in os.fspath(path) else path.expanduser().absolute()


class DamagedError(Exception):
    """A checkpoint cannot be read whole; the message says why."""


class Store:
    """The checkpoints in one directory.

    Args:
        directory: Where they are.
        keep: How many of the newest to keep of those it saves; None: it is only read, and nothing
            in it is touched.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int | None = None):
        self.directory = absolute(directory)
        self._writes = keep is not None
        self._reader = backend.reader()
        if self._writes:
            self._on_first_process(lambda: self.directory.mkdir(parents=True, exist_ok=True))
            self._clear()
        alone = not self._writes and jax.process_count() > 1
        self._manager = backend.manager(self.directory, keep, _ARRAYS, alone=alone)
        self._pending: int | None = None  # the last step whose saving began
        self._unread: int | None = None  # the same, until it is read back
        self._replaces = False
        self._failed_once = False

    def steps(self) -> list[int]:
        """Returns the steps of whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, arrays: dict[str, Any], data: dict, run: dict) -> None:
        """Saves a checkpoint; the writing goes on in the background.

        One of the same step is replaced, and kept until the new one is whole.

        Args:
            step: Its number.
            arrays: The pytrees `model` and `training`; they may be donated once this returns.
            data: The source's state.
            run: What else the run must remember, JSON-able.

        Raises:
            OSError: If this one, or the one before, could not be written.
        """
        self.wait()
        if step in self.steps():
            replaced = self.directory / f"{_REPLACED}{step}"
            self._on_first_process(lambda: self._path(step).rename(replaced))
            self._manager.reload()
            self._replaces = True
        # The history goes on growing while it is written.
        data, run = json.loads(json.dumps([data, run]))
        arrays = {name: without_keys(arrays[name]) for name in _ARRAYS}
        run = {**run, "format": FORMAT, "arrays": checksums(arrays), "data": _digest(data)}
        run["digest"] = _digest(run)
        self._pending = step
        with self._writing(), _TURN:
            self._manager.save(step, args=backend.written(arrays, data, run), force=True)
            self._unread = step

    def read(self, step: int) -> tuple[dict | None, dict]:
        """Returns the `data` and the `run` of a checkpoint; None where there is no data item.

        Raises:
            DamagedError: If they are not what was saved.
            ValueError: If a newer version of this library saved them.
        """
        has_data = (self._path(step) / "data").exists()
        names = ("run", "data") if has_data else ("run",)
        found = self._restored(step, lambda: backend.texts(names))
        data, run = found["data"] if has_data else None, found["run"]
        digest = run.pop("digest", None) if isinstance(run, dict) else None
        whole = digest is not None and digest == _digest(run)
        if not whole or (has_data and run["data"] != _digest(data)):
            raise DamagedError("its run or data item is not what was saved")
        if run["format"] > FORMAT:
            raise ValueError(
                f"{self._path(step)} has format {run['format']}, this version reads up to "
                f"{FORMAT}: update datarax to go on with this run."
            )
        return data, run

    def restore(self, step: int, like: dict[str, Any], run: dict) -> dict[str, Any]:
        """Returns the arrays of a checkpoint, checked.

        Args:
            step: Its number.
            like: Pytrees whose shapes, dtypes and shardings the arrays get, a dict of each item;
                of its names on top some may be left out, and are then checked and left out. None
                for nested dicts of NumPy arrays, with PRNG keys as the words they are made of.
            run: What `read` returned of it.

        Raises:
            DamagedError: If an array is not what was saved.
        """

        def items():
            whole = {name: backend.saved_shapes(self._path(step) / name) for name in like}
            return backend.trees({name: {**whole[name], **(like[name] or {})} for name in like})

        found = self._restored(step, items)
        arrays = {name: found[name] for name in like}
        sums = checksums(arrays)
        saved = {path: sum for path, sum in run["arrays"].items() if path.split(".")[0] in like}
        wrong = [path for path in saved | sums if saved.get(path) != sums.get(path)]
        if wrong:
            raise DamagedError(f"{len(wrong)} of its arrays are not what was saved: {wrong[0]}")
        for name, tree in like.items():
            if tree is not None:
                arrays[name] = with_keys({key: arrays[name][key] for key in tree}, tree)
        return arrays

    def newest(self, take: Callable[[int], Any]) -> Any:
        """Returns `take(step)` of the newest checkpoint that is whole, None where there are none.

        Damaged ones are passed over with a warning and, in a store that is written to, moved out of
        the way, so that their steps can be saved again.

        Args:
            take: Reads a checkpoint; raises `DamagedError` where it is not whole.

        Raises:
            RuntimeError: If there are checkpoints and all are damaged; they stay where they are.
        """
        reasons: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                found = take(step)
            except DamagedError as error:
                reasons[step] = str(error)
                continue
            for damaged, reason in reasons.items():
                place = f" It is set aside as {self._set_aside(damaged)}." if self._writes else ""
                logger.warning(
                    "The checkpoint %s is damaged: %s.%s Step %d before it is taken.",
                    self._path(damaged),
                    reason,
                    place,
                    step,
                )
            return found
        if not reasons:
            return None
        each = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
        raise RuntimeError(
            f"Every checkpoint in {self.directory} is damaged ({each}). Restore the directory from "
            "a copy, or begin anew in another workdir."
        )

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: If something could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
            if self._unread is not None:
                step, self._unread = self._unread, None
                self.read(step)
            if self._replaces:
                self._clear()
                self._replaces = False

    def close(self) -> None:
        """Waits and frees the threads; what cannot be written is for `wait` to say."""
        # Not together with the other processes: where an exception ends this one, they do not come.
        with contextlib.suppress(Exception):  # Orbax raises what it likes
            self._manager.wait_until_finished()
        self._manager.close()
        self._reader.close()
        # Only now has every thread of a save that failed ended, and leaves nothing any more.
        if (self._replaces or self._failed_once) and agreement.is_first():
            with contextlib.suppress(OSError):
                self._remove_unfinished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Makes what Orbax raises an `OSError`, and forgets what is half written."""
        caught = None
        try:
            yield
        except Exception as error:  # Orbax raises what it likes, its own book-keeping is off then
            caught = error
        failed = self._failed(caught)
        if failed is not None:
            self._failed_once = True
            self._clear()
            self._manager.reload()
            raise OSError(f"Step {self._pending} could not be saved: {failed}") from caught

    def _clear(self):
        """Removes what killed or failed runs left half written: it may fill the disk."""
        self._on_first_process(self._remove_unfinished)

    def _remove_unfinished(self):
        # No glob: the directory's own name may hold a pattern's characters, as `run[lr=0.1]`.
        for path in list(self.directory.iterdir()):
            if backend.UNFINISHED in path.name:
                _remove(path)
            elif path.name.startswith(_REPLACED):
                new = self._path(int(path.name.removeprefix(_REPLACED)))
                path.rmtree() if new.exists() else path.rename(new)

    def _set_aside(self, step: int) -> str:
        name = agreement.of_first(lambda: f"damaged-{step}-{os.urandom(3).hex()}")
        place = self.directory / name
        self._on_first_process(lambda: self._path(step).rename(place))
        self._manager.reload()
        return place.name

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _restored(self, step: int, items: Callable[[], Any]) -> Any:
        found = caught = None
        try:
            found = self._reader.restore(self._path(step), args=items())
        except (PermissionError, ConnectionError, TimeoutError):
            raise  # says nothing of the checkpoint
        except Exception as error:  # what Orbax raises on damage is of many types
            caught = error
        failed = self._failed(caught)
        if failed is not None:
            raise DamagedError(failed) from caught
        return found

    def _on_first_process(self, do: Callable[[], Any]) -> None:
        """Does something to the directory: one process does, and all wait for it."""
        agreement.together(do if agreement.is_first() else lambda: None)

    def _failed(self, error: Exception | None) -> str | None:
        """Returns why something failed, on this process or on another that does the same."""
        own = None if error is None else _reason(error)
        if not self._writes:
            return own
        reasons = agreement.collected(own)
        return own or next((f"{r} (process {i})" for i, r in enumerate(reasons) if r), None)


def _remove(path: epath.Path) -> None:
    """Removes a directory into which a thread of a save that failed may write still."""
    for _ in range(50):
        try:
            return path.rmtree()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
            time.sleep(0.1)
    path.rmtree()


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first:.300}"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
