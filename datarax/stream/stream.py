"""A canonical stream: its share of the shards, in windows that are shuffled, from any position."""

from typing import Any, NamedTuple

import numpy as np

from datarax.order.windows import ShuffleOrder, permutation
from datarax.stream.decoder import Decoder, Part
from datarax.stream.open_shard import OpenShard, ReadPolicy
from datarax.stream.reader import Reader
from datarax.stream.shards import READ_ROWS, DatasetShards, Shards
from datarax.stream.window import Window

_WIDTH = 8  # shards open at once where rows are shuffled
_TURNS = 4  # shards that a window mixes: each turn reads a quarter of it from the next shard

START = {"anchor": None, "window": 0, "position": 0, "check": None, "taken": 0}
"""The state of a stream at the start of an epoch."""


class Mark(NamedTuple):
    """A position in a stream, from which its state can be made: cheap to take for every batch.

    Args:
        epoch: The epoch.
        window: The rows that are shuffled together, None where nothing was read yet.
        position: The next row of the window.
        pending: The state to resume from where nothing was read yet.
        taken: How many records of the epoch were handed out.
    """

    epoch: int
    window: Window | None
    position: int
    pending: dict[str, Any]
    taken: int

    def state(self) -> dict[str, Any]:
        """Returns the position: JSON-able, a few hundred bytes, without rows."""
        if self.window is None:
            return self.pending
        return {
            "anchor": self.window.anchor,
            "window": self.window.number,
            "position": self.position,
            "check": self.window.check(),
            "taken": self.taken,
        }


class Stream:
    """One canonical stream.

    Args:
        shards: The shards of all streams.
        decoder: What makes columns of rows.
        order: The order of all streams.
        number: Which stream it is, from 0.
        policy: When a failure to read is an error.
        opened: Shards that are open already, at their start.
    """

    def __init__(
        self,
        shards: Shards,
        decoder: Decoder,
        order: ShuffleOrder,
        number: int,
        policy: ReadPolicy,
        opened: dict[int, OpenShard] | None = None,
    ):
        self._shards, self._decoder, self._order = shards, decoder, order
        self._number, self._policy = number, policy
        self._opened = {} if opened is None else opened
        self._bad_before = 0
        self._reader: Reader | None = None
        self._window: Window | None = None
        self._pending, self._epoch, self._position, self._taken = START, 0, 0, 0

    def begin(self, epoch: int) -> None:
        """Goes to the start of an epoch; nothing is read yet."""
        self._renew(epoch)
        self._pending = START

    def load(self, epoch: int, state: dict[str, Any]) -> None:
        """Goes to a state; nothing is read yet."""
        self._renew(epoch)
        self._pending, self._taken = state, state["taken"]

    def _renew(self, epoch: int) -> None:
        if self._reader is not None:
            self._bad_before += self._reader.bad
            self._reader.close()
        self._epoch, self._reader = epoch, None
        self._window, self._position, self._taken = None, 0, 0

    def mark(self) -> Mark:
        """Returns the present position."""
        return Mark(self._epoch, self._window, self._position, self._pending, self._taken)

    @property
    def taken(self) -> int:
        """How many records of the epoch were handed out."""
        return self._taken

    @property
    def bad_shards(self) -> int:
        """How many shards could not be read to their end."""
        return self._bad_before + (0 if self._reader is None else self._reader.bad)

    def restore(self, mark: Mark) -> None:
        """Goes back to a mark of this stream."""
        if mark.window is not None and mark.window is self._window:
            self._position, self._taken = mark.position, mark.taken
        else:
            self.load(mark.epoch, mark.state())

    def take(self, count: int) -> tuple[list[Part], int]:
        """Returns the next `count` records, fewer at the end of the epoch.

        Returns:
            Parts that hold the records in order, and how many damaged ones were left out.
        """
        parts, skipped = [], 0
        while count > 0 and (window := self._ready()) is not None:
            stop = min(self._position + count, len(window))
            part, faults = window.rows(self._position, stop)
            if faults:
                for row, fault in sorted(faults.items()):
                    if not fault.is_damage or self._policy.on_bad_rows == "raise":
                        raise window.error(self._position + row, fault)
                keep = np.setdiff1d(np.arange(stop - self._position), list(faults))
                part = {path: column[keep] for path, column in part.items()}
            good = stop - self._position - len(faults)
            count, self._taken = count - good, self._taken + good
            skipped += len(faults)
            self._position = stop
            parts.append(part)
        return parts, skipped

    def close(self) -> None:
        """Closes the files."""
        if self._reader is not None:
            self._reader.close()

    # --- windows ---------------------------------------------------------------------------------

    def _ready(self) -> Window | None:
        """Returns the window that the next row is of; None at the end of the epoch."""
        if self._window is None:
            self._window = self._resumed()
        while self._window is not None and self._position >= len(self._window):
            following = self._fill(self._window.number + 1)
            if following is None:
                return None
            self._window, self._position = following, 0
        return self._window

    def _resumed(self) -> Window | None:
        state = self._pending
        if self._reader is None and state["anchor"] is not None:
            self._open().load(state["anchor"])
        window = self._fill(state["window"])
        if window is None and state["check"] is None:
            return None
        again = window is not None and state["check"] in (None, window.check())
        if window is None or not again or state["position"] > len(window):
            self._renew(self._epoch)  # asking again is an error again
            raise ValueError(
                "The stream does not give the rows again that it gave before its state was saved: "
                "the data changed, or they come from a generator that draws at random or gives "
                "each row once. Give it a fixed seed, save its rows to files, or start again with "
                "reset()."
            )
        self._position = state["position"]
        return window

    def _open(self) -> Reader:
        if self._reader is None:
            shards = self._shards
            if isinstance(shards, DatasetShards):
                shards = shards.at_epoch(self._epoch)
            # Open shards are of epoch 0.
            opened = self._opened if shards is self._shards else None
            ids = self._order.shards(shards.num_shards, self._epoch, self._number)
            width, turn = 1, READ_ROWS
            if self._order.shuffle:
                width, turn = _WIDTH, -(-self._order.shuffle_buffer_size // _TURNS)
            self._reader = Reader(shards, ids, self._policy, width=width, turn=turn, opened=opened)
        return self._reader

    def _fill(self, number: int) -> Window | None:
        reader = self._open()
        anchor = reader.state()
        size = self._order.shuffle_buffer_size if self._order.shuffle else 1
        try:
            slices, rows = [], 0
            while rows < size and (part := reader.read()) is not None:
                slices.append(part)
                rows += part.rows
            if not slices:
                return None
            seed, mixed = self._order.epoch_seed(self._epoch), None
            if self._order.shuffle:
                mixed = permutation(rows, seed, self._number, number)
            return Window(slices, self._decoder, mixed, anchor, number, seed)
        except BaseException:
            reader.load(anchor)  # so that the next attempt loses nothing
            raise
