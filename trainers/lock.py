"""A lock on a workdir: two runs on one would destroy each other's checkpoints."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from etils import epath


@contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Holds the workdir's lock until the block ends.

    The operating system gives the lock back when the process ends in whatever way, so a killed run
    blocks nobody. Where the file system has no locks (a bucket), there is none.

    Raises:
        RuntimeError: If another run holds it.
    """
    if "://" in os.fspath(workdir):
        yield
        return
    with open(workdir / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RuntimeError(
                f"Another run uses workdir={os.fspath(workdir)!r} ({file.read().strip()}): wait "
                "for it to end, or write another workdir."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
