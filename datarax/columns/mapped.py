"""Files that are mapped behind columns: whether they are whole, and how much of them is held."""

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

HELD = 64 << 20  # bytes of mapped files that this process may hold, about

_MAPS, _STATM = Path("/proc/self/maps"), Path("/proc/self/statm")
_DONTNEED = 4  # of `madvise`, on every Linux


class MappedFiles:
    """Files in this process's memory, as Linux tells of them; on other systems none.

    A file that is cut off while it is mapped kills the process that looks at what is gone, with
    SIGBUS. And what was looked at counts as the process's memory until something else needs it.

    Args:
        addresses: Addresses of memory, some of which may map files.
    """

    def __init__(self, addresses: Iterable[int]):
        self._ranges: list[tuple[int, int]] = []
        self._files: dict[str, tuple[int, int]] = {}  # inode and size, by path
        wanted = np.unique(np.fromiter(addresses, np.int64))
        for line in _MAPS.read_text().splitlines() if _MAPS.exists() else ():
            place, _, _, _, inode, *path = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in place.split("-"))
            first = np.searchsorted(wanted, start)
            if inode == "0" or first == len(wanted) or wanted[first] >= end or not path:
                continue
            self._ranges.append((start, end - start))
            if os.path.exists(path[0]):
                found = os.stat(path[0])
                self._files[path[0]] = found.st_ino, found.st_size
        self._others = 0  # bytes of other files, such as libraries
        self.is_large = sum(size for _, size in self._ranges) > HELD

    def expect_whole(self) -> None:
        """Raises `OSError` if a file has been cut off; one that was removed is still mapped."""
        for path, (inode, size) in self._files.items():
            try:
                found = os.stat(path)
            except FileNotFoundError:
                continue
            if found.st_ino == inode and found.st_size < size:
                raise OSError(
                    f"{path} has {found.st_size} bytes, and had {size} when it was opened: "
                    "something cut it off while its rows are read. Write the dataset again, and "
                    "nothing to its files while they are in use."
                )

    def trim(self) -> None:
        """Lets go of the files' memory if it is much; what is asked for is mapped again."""
        if self.is_large and _shared_bytes() > self._others + HELD:
            for start, size in self._ranges:
                _madvise()(start, size, _DONTNEED)
            self._others = _shared_bytes()


def _shared_bytes() -> int:
    """Returns how many bytes of files are in this process's memory."""
    return int(_STATM.read_text().split()[2]) * mmap.PAGESIZE


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
