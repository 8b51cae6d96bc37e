"""Items of one size that lie in many pieces of memory, as the record batches of an Arrow file."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from datarax.columns.opened import OpenedFiles

_LARGE = 8 << 10  # bytes of an item from which copying it takes longer than calling for the copy
_AT_ONCE = 64 << 10  # bytes that go through a buffer of NumPy's, which stays in the cores' caches
_SHARED = 512  # items, at least: NumPy lets other threads run where it gathers more than 500


class Scattered:
    """Items of one size in many pieces, gathered by their number as if they were one array.

    An Arrow file has a piece for each thousand rows, and a random batch a row of each: to ask piece
    by piece takes ten times as long as copying the rows. Here a row's number becomes an address.

    Args:
        pieces: Arrays of shape `(n, *shape of an item)` of at least one item and one dtype, each in
            one run of memory; items may overlap. Whoever makes this keeps their memory.

    Attributes:
        shape: The shape of an item.
        dtype: Its dtype.
    """

    def __init__(self, pieces: Sequence[np.ndarray]):
        first = pieces[0]
        self.shape, self.dtype = first.shape[1:], first.dtype
        self._bytes = self.dtype.itemsize * int(np.prod(self.shape, dtype=int))
        self._stride = first.strides[0] if first.ndim else self._bytes
        sizes = [len(piece) for piece in pieces]
        self._ends = np.cumsum(sizes)
        # Most files have as many rows in all pieces but the last: dividing is a search saved.
        self._each = sizes[0] if {*sizes[:-1]} <= {sizes[0]} and sizes[-1] <= sizes[0] else None
        self._pieces = pieces  # their memory is read by its address
        self._one = first if len(pieces) == 1 and first.flags.c_contiguous else None
        # The address at which item 0 would lie, if it were of that piece.
        begins = np.array([piece.ctypes.data for piece in pieces], np.int64)
        starts = self._ends - sizes
        self._origins = begins - starts * self._stride
        self._low = int(begins.min())
        spans = [(len(piece) - 1) * self._stride + self._bytes for piece in pieces]
        self._bounds = begins, begins + spans
        self._memory = memory_between(self._low, int((begins + spans).max()), self._bytes)
        self._files: OpenedFiles | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read_from(self, files: OpenedFiles) -> bool:
        """Reads items from files from now on; returns whether they hold the items' memory."""
        self._files = files if files.hold(*self._bounds) else None
        return self._files is not None

    def piece(self, items: np.ndarray) -> np.ndarray:
        """Returns the number of the piece that each item lies in, int64 of shape `(k,)`."""
        if self._each is not None:
            return items // self._each
        return np.searchsorted(self._ends, items, side="right")

    def read(self, items: np.ndarray, out: np.ndarray) -> None:
        """Copies items; other threads run meanwhile.

        Args:
            items: Their numbers, int64 of shape `(k,)`, each in range.
            out: A contiguous array of shape `(k, *shape)` and of the items' dtype.
        """
        if not out.nbytes:
            return
        if self._one is not None and self._files is None:
            np.take(self._one, items, axis=0, out=out, mode="clip")  # "raise" copies twice
            return
        addresses: Any = self._origins[self.piece(items)] + items * self._stride
        if self._files is not None and self._files.read(addresses, out):
            return
        if self._bytes >= _LARGE:
            target = out.ctypes.data
            for source in addresses.tolist():
                ctypes.memmove(target, source, self._bytes)
                target += self._bytes
            return
        rows = out.reshape(-1).view(self._memory.dtype)
        addresses -= self._low
        step = max(_SHARED, _AT_ONCE // self._bytes)
        for start in range(0, len(rows), step):
            rows[start : start + step] = self._memory[addresses[start : start + step]]

    def take(self, items: np.ndarray) -> np.ndarray:
        """Returns what `read` copies, as an array of its own."""
        out = np.empty((len(items), *self.shape), self.dtype)
        self.read(items, out)
        return out


class _Span:
    """A range of addresses, as NumPy asks for one."""

    def __init__(self, low: int, count: int, size: int):
        self.__array_interface__ = {
            "version": 3,
            "data": (low, True),
            "shape": (count,),
            "strides": (1,),
            "typestr": f"|V{size}",
        }


def memory_between(low: int, high: int, size: int) -> np.ndarray:
    """Returns what begins at each address as an item of `size` bytes, read-only and not copied.

    Args:
        low: The first address.
        high: The end of the last item. Between may be memory of others: no one looks at it.
        size: Bytes of an item.
    """
    return np.asarray(_Span(low, max(high - low - size + 1, 0), max(size, 1)))
