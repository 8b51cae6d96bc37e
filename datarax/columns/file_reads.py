"""Many reads from files in one call of the system: Linux's `io_submit`."""

import ctypes
import errno
import functools
import os
import platform
import queue
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

_QUEUES = 4  # threads that read at a time, at most
_AT_ONCE = 256  # reads of one call

_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = range(4)
_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}  # of these calls
# `struct iocb` and `struct io_event` of linux/aio_abi.h; what is zero means `pread`.
_READ = np.dtype(
    {
        "names": ["file", "address", "size", "offset"],
        "formats": ["u4", "u8", "u8", "i8"],
        "offsets": [20, 24, 32, 40],
        "itemsize": 64,
    }
)
_EVENT = np.dtype([("data", "u8"), ("read", "u8"), ("size", "i8"), ("more", "i8")])


class FileReads:
    """Reads from files on any thread, many at a time, while other threads run Python.

    784 bytes of the page cache take 1 us. `os.pread` takes 2 us, and waits for the interpreter's
    lock after each row, which may be 5 ms.

    Raises:
        OSError: The system has no such calls, or no more queues for them.
    """

    def __init__(self):
        self._process = os.getpid()
        self._idle: queue.SimpleQueue[_Queue | None] = queue.SimpleQueue()
        for _ in range(_QUEUES):
            self._idle.put(_Queue())

    def read(self, files: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Reads rows of bytes.

        Args:
            files: The descriptor of each row's file, of shape `(k,)`.
            offsets: Where the row begins in its file, in bytes, of shape `(k,)`.
            out: A contiguous array of shape `(k, ...)`.

        Returns:
            How many bytes of each row were read, or a negative error number, int64 of shape `(k,)`.

        Raises:
            OSError: The system took no reads.
        """
        if self._process != os.getpid():  # a fork has none of its parent's queues
            FileReads.__init__(self)
        size = out[:1].nbytes
        addresses = out.ctypes.data + size * np.arange(len(out))
        found, own = np.empty(len(out), np.int64), self._idle.get()
        try:
            own = own or _Queue()
            for start in range(0, len(out), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                found[part] = own.read(files[part], offsets[part], addresses[part], size)
        except BaseException:
            own = None  # it may hold answers: the next read makes another
            raise
        finally:
            self._idle.put(own)
        return found


class _Queue:
    """Reads that the system was asked for, of one thread at a time."""

    def __init__(self):
        context = ctypes.c_ulong()
        _call(_SETUP, _AT_ONCE, ctypes.addressof(context))
        self._context = context.value
        weakref.finalize(self, _destroy, self._context).atexit = False
        self._reads, self._events = np.zeros(_AT_ONCE, _READ), np.zeros(_AT_ONCE, _EVENT)
        self._begin, self._answers = self._reads.ctypes.data, self._events.ctypes.data
        self._pointers = self._begin + _READ.itemsize * np.arange(_AT_ONCE)
        self._asked = self._pointers.ctypes.data

    def read(self, files: Any, offsets: Any, addresses: Any, size: int) -> np.ndarray:
        """Returns what `FileReads.read` does, for at most `_AT_ONCE` rows."""
        count, reads = len(files), self._reads[: len(files)]
        reads["file"], reads["offset"], reads["address"] = files, offsets, addresses
        reads["size"] = size
        sent = received = 0
        while sent < count:
            sent += _call(_SUBMIT, self._context, count - sent, self._asked + 8 * sent)
        while received < count:
            place = self._answers + _EVENT.itemsize * received
            received += _call(_GETEVENTS, self._context, 1, count - received, place, 0)
        found, answers = np.empty(count, np.int64), self._events[:count]
        found[(answers["read"].astype(np.int64) - self._begin) // _READ.itemsize] = answers["size"]
        return found


def _call(which: int, *arguments: int) -> int:
    """Calls the system, again where a signal comes between."""
    while True:
        found = _system()(which, *arguments)
        if found >= 0:
            return found
        if (number := ctypes.get_errno()) != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _destroy(context: int) -> None:
    _system()(_DESTROY, context)


@functools.cache
def _system() -> Callable[..., int]:
    numbers = _NUMBERS.get(platform.machine())
    if sys.platform != "linux" or numbers is None or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return lambda which, *arguments: function(*map(ctypes.c_long, (numbers[which], *arguments)))
