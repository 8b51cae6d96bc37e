"""Large files that are mapped, and opened to be read where their memory would be looked at."""

import os
import weakref
from collections.abc import Iterable

import numpy as np

from datarax.columns.file_reads import FileReads
from datarax.columns.mapped import Range, cut_off

_MOST = 256  # files that are open, at most: on most systems a process may open 1,024


class OpenedFiles:
    """Files behind memory. What is read from them is copied, and never mapped.

    To map a page of a file and to let go of it takes longer than to read a row of 784 bytes. Both
    copy from the kernel's page cache, which is not the process's memory.

    Args:
        ranges: The memory that maps the files.

    Raises:
        OSError: A file is gone, too many would be open, or the system has no `io_submit`.
    """

    def __init__(self, ranges: Iterable[Range]):
        self._ranges = sorted(ranges)
        opened: dict[str, int] = {}
        weakref.finalize(self, _close, opened)
        self._files = np.array([_opened(part, opened) for part in self._ranges])
        self._sizes = {path: os.fstat(file).st_size for path, file in opened.items()}
        self._starts = np.array([part.start for part in self._ranges])
        self._ends = self._starts + [part.size for part in self._ranges]
        self._shifts = self._starts - [part.offset for part in self._ranges]
        self._reads = FileReads()

    def hold(self, starts: np.ndarray, ends: np.ndarray) -> bool:
        """Returns whether memory lies in the files.

        Args:
            starts: Addresses, int64 of shape `(k,)`.
            ends: The ends of the memory from there, likewise.
        """
        places = np.searchsorted(self._starts, starts, side="right") - 1
        return bool((places >= 0).all() and (ends <= self._ends[places]).all())

    def read(self, addresses: np.ndarray, out: np.ndarray) -> bool:
        """Copies rows of bytes; other threads run meanwhile.

        Args:
            addresses: Their addresses, int64 of shape `(k,)`; the files hold their memory.
            out: A contiguous array of shape `(k, ...)`.

        Returns:
            Whether it could be done; the memory is still there to be looked at otherwise.

        Raises:
            OSError: A file was cut off, or cannot be read.
        """
        places = np.searchsorted(self._starts, addresses, side="right") - 1
        offsets = addresses - self._shifts[places]
        try:
            found = self._reads.read(self._files[places], offsets, out)
        except OSError:
            return False
        wrong = np.flatnonzero(found != out[:1].nbytes)
        if len(wrong):
            file = self._ranges[places[wrong[0]]]
            if found[wrong[0]] < 0:
                number = -int(found[wrong[0]])
                raise OSError(number, os.strerror(number), file.path)
            size = os.fstat(int(self._files[places[wrong[0]]])).st_size
            raise cut_off(file.path, size, self._sizes[file.path])
        return True


def _opened(part: Range, opened: dict[str, int]) -> int:
    """Returns the descriptor of a range's file."""
    if part.path not in opened:
        if len(opened) == _MOST:
            raise OSError(f"More than {_MOST} files.")
        opened[part.path] = os.open(part.path, os.O_RDONLY)
    found = os.fstat(opened[part.path])
    if found.st_ino != part.inode or found.st_size < part.offset + 1:
        raise FileNotFoundError(part.path)
    return opened[part.path]


def _close(opened: dict[str, int]) -> None:
    for file in opened.values():
        os.close(file)
