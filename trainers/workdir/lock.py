"""A lock on a workdir: two runs on one would destroy each other's checkpoints."""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from etils import epath

from trainers.devices import agreement

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""How often a lease is renewed."""


@contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Makes the workdir and holds its lock until the block ends; the first process does for all.

    Raises:
        OSError: If it cannot be written.
        RuntimeError: If another run holds it.
    """
    if not agreement.is_first():
        yield
        return
    with ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(workdir))
        except OSError as error:
            raise OSError(
                f"workdir={os.fspath(workdir)!r} cannot be written: {error}. Give a directory that "
                "can, or workdir=None to save nothing."
            ) from error
        yield


@contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Holds the workdir's lock until the block ends.

    The operating system gives the lock back when the process ends in whatever way, so a killed run
    blocks nobody. Where the file system has no locks (a bucket), a lease takes their place.

    Raises:
        RuntimeError: If another run holds it.
    """
    if "://" in os.fspath(workdir):
        with leased(workdir):
            yield
        return
    with open(workdir / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RuntimeError(_taken(workdir, file.read())) from error
        file.truncate(0)
        file.write(_own())
        file.flush()
        yield


@contextmanager
def leased(workdir: epath.Path, seconds: float = SECONDS) -> Iterator[None]:
    """Holds a lease on the workdir until the block ends: a file that changes while its run lives.

    A lease that does not change for three periods is of a run that was killed, and is taken over.
    No two machines' clocks are compared.

    Args:
        workdir: The directory.
        seconds: The period.

    Raises:
        RuntimeError: If another run holds it.
    """
    path, ended = workdir / "lease", threading.Event()
    before = _text(path)
    if before is not None:
        logger.warning("%s: is the run %s alive? Waiting to see.", workdir, before.strip())
        deadline = time.monotonic() + 3 * seconds
        while time.monotonic() < deadline and _text(path) == before:
            time.sleep(seconds / 4)
        if _text(path) not in (before, None):
            raise RuntimeError(_taken(workdir, before))

    def renew():
        beat = 0
        while not ended.wait(seconds):
            beat += 1
            try:
                path.write_text(f"{_own()}{beat}\n")
            except OSError as error:  # the next beat may get through
                logger.warning("The lease %s could not be renewed: %s", path, error)

    path.write_text(_own())
    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _text(path: epath.Path) -> str | None:
    return path.read_text() if path.exists() else None


def _own() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}\n"


def _taken(workdir: epath.Path, owner: str) -> str:
    return (
        f"Another run uses workdir={os.fspath(workdir)!r} ({owner.strip()}): wait for it to end, "
        "or write another workdir."
    )
