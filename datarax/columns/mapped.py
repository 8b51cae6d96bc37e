"""Files that are mapped behind columns: whether they are whole, and how much of them is held."""

import ctypes
import functools
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

SMALL = 128 << 20  # bytes of mapped files that stay in this process's memory
_HELD = 64 << 20  # bytes that it holds of larger ones, about

_MAPS, _STATM = Path("/proc/self/maps"), Path("/proc/self/statm")
_DONTNEED = 4  # of `madvise`, on every Linux


class Range(NamedTuple):
    """A range of memory that maps a part of a file.

    Args:
        start: Its first address.
        size: Its bytes.
        path: The file.
        inode: The file's inode; another one has the path where the file was replaced.
        offset: Where the part begins in the file, in bytes.
    """

    start: int
    size: int
    path: str
    inode: int
    offset: int


class MappedFiles:
    """Files in this process's memory, as Linux tells of them; on other systems none.

    A file that is cut off while it is mapped kills the process that looks at what is gone, with
    SIGBUS. And what was looked at counts as the process's memory until something else needs it.

    Args:
        addresses: Addresses of memory, some of which may map files.

    Attributes:
        ranges: The memory that maps files, by address.
        is_large: Whether the files are too large to stay in memory.
    """

    def __init__(self, addresses: Iterable[int]):
        self.ranges: list[Range] = []
        self._files: dict[str, tuple[int, int]] = {}  # inode and size, by path
        wanted = np.unique(np.fromiter(addresses, np.int64))
        for line in _MAPS.read_text().splitlines() if _MAPS.exists() else ():
            place, _, offset, _, inode, *path = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in place.split("-"))
            first = np.searchsorted(wanted, start)
            if inode == "0" or first == len(wanted) or wanted[first] >= end or not path:
                continue
            self.ranges.append(Range(start, end - start, path[0], int(inode), int(offset, 16)))
            if os.path.exists(path[0]):
                found = os.stat(path[0])
                self._files[path[0]] = found.st_ino, found.st_size
        self._others = 0  # bytes of other files, such as libraries
        self.is_large = sum(part.size for part in self.ranges) > SMALL

    def expect_whole(self) -> None:
        """Raises `OSError` if a file has been cut off; one that was removed is still mapped."""
        for path, (inode, size) in self._files.items():
            try:
                found = os.stat(path)
            except FileNotFoundError:
                continue
            if found.st_ino == inode and found.st_size < size:
                raise cut_off(path, found.st_size, size)

    def trim(self) -> None:
        """Lets go of the files' memory if it is much; what is asked for is mapped again."""
        if self.is_large and _shared_bytes() > self._others + _HELD:
            for part in self.ranges:
                _madvise()(part.start, part.size, _DONTNEED)
            self._others = _shared_bytes()


def cut_off(path: str, found: int, size: int) -> OSError:
    """Returns the error of a file that has fewer bytes than it had."""
    return OSError(
        f"{path} has {found} bytes, and had {size} when it was opened: something cut it off while "
        "its rows are read. Write the dataset again, and nothing to its files while they are in "
        "use."
    )


def _shared_bytes() -> int:
    """Returns how many bytes of files are in this process's memory."""
    return int(_STATM.read_text().split()[2]) * mmap.PAGESIZE


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
