"""The canonical streams that one process reads, epoch after epoch, in step with each other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from datarax.order.windows import Order
from datarax.stream.decoder import Decoder, Part, Path, nested
from datarax.stream.reader import Care, OpenShard
from datarax.stream.shards import Shards
from datarax.stream.stream import Mark, Stream


class Position(NamedTuple):
    """Where all streams of a process are: cheap to take for every batch."""

    epoch: int
    turn: int
    marks: tuple[Mark, ...]

    def state(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Returns it as a JSON-able dict, a few hundred bytes for each open shard."""
        streams = {str(n): mark.state() for n, mark in zip(numbers, self.marks, strict=True)}
        index = sum(mark.taken for mark in self.marks)
        return {"epoch": self.epoch, "index": index, "turn": self.turn, "streams": streams}


class Streams:
    """Some of the canonical streams of a dataset.

    A batch holds the same number of records of each, stream after stream, so that the batches of
    all processes, joined, are the same for every number of processes.

    Args:
        shards: The shards of all streams.
        decoder: What makes columns of rows.
        order: The order of all streams.
        care: What to do where reading fails.
        numbers: Which streams these are.
        opened: Shards that are open already, at their start.
    """

    def __init__(
        self,
        shards: Shards,
        decoder: Decoder,
        order: Order,
        care: Care,
        numbers: Sequence[int] = (0,),
        opened: dict[int, OpenShard] | None = None,
    ):
        self.shards, self.decoder, self.order = shards, decoder, order
        self.care, self.numbers = care, tuple(numbers)
        self._streams = [Stream(shards, decoder, order, n, care, opened) for n in self.numbers]
        self.epoch, self.turn = 0, 0
        self.started = False  # whether a record of this epoch was taken

    def fork(self, **changes: Any) -> "Streams":
        """Returns streams of the same shards at the start of epoch 0, with other arguments."""
        kept = {"order": self.order, "numbers": self.numbers} | changes
        return Streams(self.shards, self.decoder, care=self.care, **kept)

    def begin(self, epoch: int) -> None:
        """Goes to the start of an epoch."""
        for stream in self._streams:
            stream.begin(epoch)
        self.epoch, self.turn, self.started = epoch, 0, False

    def position(self) -> Position:
        """Returns where the streams are."""
        return Position(self.epoch, self.turn, tuple(stream.mark() for stream in self._streams))

    def restore(self, position: Position) -> None:
        """Goes back to a position of these streams in this epoch."""
        for stream, mark in zip(self._streams, position.marks, strict=True):
            stream.restore(mark)
        self.turn = position.turn

    def load(self, state: dict[str, Any]) -> None:
        """Goes to where `Position.state` was returned; it may hold more streams than these."""
        for number, stream in zip(self.numbers, self._streams, strict=True):
            stream.load(state["epoch"], state["streams"][str(number)])
        self.epoch, self.turn = state["epoch"], state["turn"]
        self.started = any(s["check"] is not None for s in state["streams"].values())

    @property
    def bad_shards(self) -> int:
        """How many shards could not be read to their end."""
        return sum(stream.bad_shards for stream in self._streams)

    def take(self, size: int) -> tuple[list[list[Part]], int]:
        """Returns the next `size` records, fewer at the end of the epoch.

        An error while reading leaves the position as it was: nothing is lost.

        Args:
            size: How many, a multiple of the number of streams.

        Returns:
            The parts of each stream, and how many damaged rows were left out.
        """
        before = self.position()
        try:
            taken = [stream.take(size // len(self._streams)) for stream in self._streams]
        except BaseException:
            self.restore(before)
            raise
        self.turn = 0
        self.started = self.started or any(parts for parts, _ in taken)
        return [parts for parts, _ in taken], sum(skipped for _, skipped in taken)

    def take_one(self) -> tuple[list[Part], int]:
        """Returns the next record, of the stream whose turn it is; nothing at the epoch's end."""
        skipped = 0
        for _ in self._streams:
            stream = self._streams[self.turn]
            parts, damaged = stream.take(1)
            self.turn = (self.turn + 1) % len(self._streams)
            skipped += damaged
            parts = [part for part in parts if rows(part)]
            if parts:
                self.started = True
                return parts, skipped
        return [], skipped

    def close(self) -> None:
        """Closes all files."""
        for stream in self._streams:
            stream.close()


@dataclass(frozen=True, eq=False)
class Block:
    """The next batches of one epoch, stacked.

    Args:
        columns: Nested dict of arrays of shape `(batches, batch_size, ...)`; host columns as
            object arrays.
        valid: Which records count, bool of shape `(batches, batch_size)`. The others repeat some.
        places: Place of each record in the epoch, `uint32` of shape `(batches, batch_size)`: the
            `k`-th of stream `s` of `n` has place `k * n + s`, on whatever process it is read.
        epoch: The epoch.
        filled: How many of the batches have a record that counts; the rest lie past the end of the
            epoch.
        positions: Where the streams are before the first batch and after each.
        skipped: How many damaged rows were left out.
    """

    columns: dict[str, Any]
    valid: np.ndarray
    places: np.ndarray
    epoch: int
    filled: int
    positions: list[Position]
    skipped: int


def read_block(streams: Streams, batches: int, size: int) -> Block:
    """Reads batches of the present epoch; after its end all of them are masked.

    Args:
        streams: The streams; they move.
        batches: How many batches.
        size: Records in a batch, a multiple of the number of streams.
    """
    share = size // len(streams.numbers)
    valid = np.zeros((batches, size), bool)
    first = np.repeat(np.uint32(streams.numbers), share)
    each = np.tile(np.arange(share, dtype=np.uint32), len(streams.numbers))
    places = np.zeros((batches, size), np.uint32)
    positions, skipped, filled = [streams.position()], 0, 0
    leaves = {leaf.path: leaf for leaf in streams.decoder.leaves}
    out = {p: np.empty((batches * size, *leaf.shape), leaf.dtype) for p, leaf in leaves.items()}
    try:
        for batch in range(batches):
            before = np.repeat(np.uint32([m.taken for m in positions[-1].marks]), share)
            places[batch] = (before + each) * np.uint32(streams.order.streams) + first
            taken, damaged = streams.take(size)
            skipped += damaged
            for number, parts in enumerate(taken):
                at = batch * size + number * share
                for part in parts:
                    count = rows(part)
                    for path, column in part.items():
                        out[path][at : at + count] = column
                    valid.reshape(-1)[at : at + count] = True
                    at += count
            positions.append(streams.position())
            if not any(taken):
                positions += [positions[-1]] * (batches - batch - 1)
                break
            filled = batch + 1
    except BaseException:
        streams.restore(positions[0])
        raise
    _fill_up(out, valid, streams.decoder)
    columns = nested((p, c.reshape(batches, size, *c.shape[1:])) for p, c in out.items())
    return Block(columns, valid, places, streams.epoch, filled, positions, skipped)


def _fill_up(columns: dict[Path, np.ndarray], valid: np.ndarray, decoder: Decoder) -> None:
    """Puts real records where none count: zeros would bend the statistics of a batch.

    Which ones depends on the batch alone, not on the block: those of the batch, or the stream's
    first record, where other processes have all of the batch's.
    """
    if valid.all():
        return
    for batch, counts in zip(np.arange(valid.size).reshape(valid.shape), valid, strict=True):
        gaps = batch[~counts]
        for path, column in columns.items():
            found = column[batch[counts]] if counts.any() else decoder.first_record[path]
            column[gaps] = found[np.arange(len(gaps)) % len(found)]


def rows(part: Part) -> int:
    """Returns how many records a part holds."""
    return len(next(iter(part.values())))


def split_order(order: Order, streams: int) -> Order:
    """Returns the order with another number of canonical streams."""
    return replace(order, streams=streams)
