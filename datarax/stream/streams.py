"""The canonical streams that one process reads, epoch after epoch, in step with each other."""

import copy
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from datarax.order.windows import ShuffleOrder
from datarax.stream.decoder import Decoder, Part, length_of
from datarax.stream.open_shard import OpenShard, ReadPolicy
from datarax.stream.shards import Shards
from datarax.stream.stream import Mark, Stream

logger = logging.getLogger(__name__)


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
        policy: When a failure to read is an error.
        numbers: The numbers of these streams.
        opened: Shards that are open already, at their start.
    """

    def __init__(
        self,
        shards: Shards,
        decoder: Decoder,
        order: ShuffleOrder,
        policy: ReadPolicy,
        numbers: Sequence[int] = (0,),
        opened: dict[int, OpenShard] | None = None,
    ):
        self.shards, self.decoder, self.order = shards, decoder, order
        self.policy, self.numbers = policy, tuple(numbers)
        self._streams = [Stream(shards, decoder, order, n, policy, opened) for n in self.numbers]
        self.epoch, self.turn = 0, 0
        self.started = False  # whether a record of this epoch was taken
        self._told_length = False

    def fork(self, **changes: Any) -> "Streams":
        """Returns streams of the same shards at the start of epoch 0, with other arguments."""
        kept = {"order": self.order, "numbers": self.numbers} | changes
        return Streams(self.shards, self.decoder, policy=self.policy, **kept)

    def __copy__(self) -> "Streams":
        return _at(self._arguments(), self.position().state(self.numbers))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Streams":
        return copy.copy(self)  # shards are never written to

    def __reduce__(self):
        return _at, (self._arguments(), self.position().state(self.numbers))

    def _arguments(self) -> tuple[Any, ...]:
        return self.shards, self.decoder, self.order, self.policy, self.numbers

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
            parts = [part for part in parts if length_of(part)]
            if parts:
                self.started = True
                return parts, skipped
        return [], skipped

    def note_length(self, label: str, *, ended: bool) -> None:
        """Logs a warning, once, where an epoch has another length than a card says.

        Args:
            label: The name of the source, for the warning.
            ended: Whether the epoch is over.
        """
        length, taken = self.shards.length, sum(stream.taken for stream in self._streams)
        if length is None or self._told_length or len(self.numbers) < self.order.streams:
            return  # other processes read the rest of the rows
        lacking = ended and taken < length and self.policy.on_bad_rows == "raise"
        if taken > length or lacking:
            self._told_length = True
            logger.warning(
                "%s has %d rows by its card, and its files give %s. The source's length and the "
                "steps of an epoch follow the card: correct num_examples there, or give steps= "
                "instead of epochs=.",
                *(label, length, taken if ended else "more"),
            )

    def close(self) -> None:
        """Closes all files."""
        for stream in self._streams:
            stream.close()


def _at(arguments: tuple[Any, ...], state: dict[str, Any]) -> Streams:
    """Returns streams that go on where `Position.state` was returned."""
    streams = Streams(*arguments)
    streams.load(state)
    return streams
