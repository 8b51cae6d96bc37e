"""Blocks of a stream: a few batches each, read ahead on a thread, the same on all processes."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from datarax.sources.source import Source
from trainers.data.worker import Worker
from trainers.devices import agreement

logger = logging.getLogger(__name__)

_SECONDS = 0.05  # that reading a block may take where the loop waits for it
_LONGER = 0.3  # where the loop does not wait: the fewer blocks, the less time between them
_PATIENCE = 2.0  # seconds that closing waits for a reader that blocks
_AHEAD = 2  # blocks that are ready or being read: with one, reader and loop would wait in turn


class Block(NamedTuple):
    """The next batches of one epoch.

    Args:
        data: Their columns, which records count, and the records' ranks, on the devices.
        size: Number of batches that were asked for.
        filled: How many of them have a record, on any process.
        positions: Where this process's source stands before each batch and after the last.
        counts: Records of each batch, of all processes, of shape `(capacity,)`.
        epoch: The epoch.
        begins: Whether it begins the epoch.
        seconds: The time that a batch took to read.
        spent: Seconds of reading, of decoding and transforming, and of the transfer.
    """

    data: Any
    size: int
    filled: int
    positions: list[Any]
    counts: np.ndarray
    epoch: int
    begins: bool
    seconds: float
    spent: np.ndarray


class Blocks:
    """Reads a stream in blocks, ahead of the loop.

    How many batches a block holds depends on the time they take to read and on whether the loop
    waits for them; the batches do not. Processes that read shares of the streams take the same
    batches at the same time: they agree on how many to read, and on where an epoch ends, which is
    where none has a record left. Streams that end sooner give records that do not count.

    Args:
        source: The source that is read; it moves.
        size: Records of a batch that this process reads.
        capacity: Batches in a block at most.
        readers: How many shares of the streams the processes read; 1: each reads all.
        to_devices: `(columns, valid, ranks) -> data` puts a block on the devices.
        drop_remainder: Whether batches that are not full, at an epoch's end, are left out.

    Attributes:
        waited: Seconds that `take` has waited, for reading, decoding and the transfer, in the
            proportions of the block it waited for. The first block does not count.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        capacity: int,
        readers: int,
        to_devices: Callable[..., Any],
        *,
        drop_remainder: bool = False,
    ):
        self._source, self._size, self._capacity = source, size, capacity
        self._readers, self._to_devices = readers, to_devices
        self._drop_remainder = drop_remainder
        self._worker = Worker("trainers-read")
        self._ahead: deque[Future[Block]] = deque()
        self._batches = 1
        self.waited, self._is_first = np.zeros(3), True
        self._read_ahead()

    def take(self) -> Block:
        """Returns the next block; all processes take it together.

        Raises:
            ValueError: If the stream has no record; or any exception of reading it.
        """
        while not (block := self._take()).filled:
            if block.begins:
                lacks = "record that can be read"
                if self._drop_remainder:
                    lacks = f"full batch of {self._size} records"
                raise ValueError(f"The stream has no {lacks}.")
        return block

    def close(self) -> None:
        """Ends the reading, and closes the source; a reader that blocks is left behind."""
        for reading in self._ahead:
            reading.cancel()
        if self._worker.close(_PATIENCE):
            self._source.close()
            return
        logger.warning(
            "%s has given nothing for %g s: the thread that reads it is left to end by itself.",
            *(self._source.label, _PATIENCE),
        )

    def state_at(self, position: Any) -> dict[str, Any]:
        """Returns the source's state at a position of a block."""
        return self._source.state_at(position)

    def _take(self) -> Block:
        """Returns the next block, which is empty where the epoch was over just before it."""
        reading, capacity, begun = self._ahead[0], self._capacity, time.perf_counter()
        waits, failed, own = not reading.done(), reading.exception() is not None, [0, 0]
        if not failed:
            block = reading.result()
            wanted = int((_SECONDS if waits else _LONGER) / max(block.seconds, 1e-6))
            own = [max(1, min(wanted, 4 * self._batches, capacity)), block.filled]
        counts = np.zeros(capacity, int) if failed else block.counts
        found = agreement.gathered([failed, *own, *counts])
        if found[:, 0].any():
            agreement.together(reading.result)  # it is raised again where it is asked again
        self._ahead.popleft()
        if not self._is_first:
            spent = block.spent / max(block.spent.sum(), 1e-9)
            self.waited += (time.perf_counter() - begun) * spent
        self._is_first = False
        self._batches = int(found[:, 1].min())
        ends = False
        if self._readers > 1:
            filled = found[:, 2].min() if self._drop_remainder else found[:, 2].max()
            block = block._replace(filled=int(filled), counts=found[:, 3:].sum(axis=0))
            ends = block.filled < block.size
        if ends:  # blocks that were read past the end are empty
            while self._ahead:
                self._ahead.pop().cancel()
        self._read_ahead(begins=ends)
        return block

    def _read_ahead(self, begins: bool = False) -> None:
        while len(self._ahead) < _AHEAD:
            self._ahead.append(self._worker.submit(self._read, self._batches, begins))
            begins = False

    def _read(self, batches: int, begins: bool) -> Block:
        """Reads and places the next block; runs on the thread."""
        begun, decoded = time.perf_counter(), self._source.decoding_seconds
        if begins:
            self._source.next_epoch()
        block, filled = self._next(batches)
        if not filled and self._readers == 1:  # the epoch is over for all
            begins = True
            self._source.next_epoch()
            block, filled = self._next(batches)
        read = time.perf_counter()
        data = jax.block_until_ready(self._to_devices(block.columns, block.valid, block.ranks))
        decoding = min(self._source.decoding_seconds - decoded, read - begun)
        spent = np.array([read - begun - decoding, decoding, time.perf_counter() - read])
        seconds = (read - begun) / max(1, filled)
        counts = np.zeros(self._capacity, np.int32)
        counts[:batches] = block.valid.sum(axis=1)
        place = block.positions, counts, block.epoch, begins
        return Block(data, batches, filled, *place, seconds, spent)

    def _next(self, batches: int) -> tuple[Any, int]:
        """Returns the next batches of the epoch, and how many of them the loop gets."""
        block = self._source.read_batches(batches, self._size)
        return block, block.full if self._drop_remainder else block.filled
