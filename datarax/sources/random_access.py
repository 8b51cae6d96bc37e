"""Sources whose records can be read by number: their order, position and state."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from datarax.columns.host import is_traced
from datarax.columns.rows import each_row
from datarax.errors import expect_between, expect_dict
from datarax.order.epochs import key_seed
from datarax.order.order import Order
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.module import DataraxModuleConfig
from datarax.sources.viewable import Viewable

STATE_VERSION = 1
_ITERATION_BLOCK = 256  # rows read at once while iterating record by record

Position = tuple[int, int]
"""An epoch, and the index within it of the next record."""


class RandomAccessSource(Viewable):
    """A source that stands at (epoch, index) of an order which is arithmetic on record numbers.

    Args:
        config: The subclass's configuration.
        length: The number of records.
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order, from 0 to 2**32 - 1.
        fingerprint: Fingerprint of the data's content.
        revision: The version that the data was resolved to, such as a commit of the Hub.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If `seed` is out of range.
    """

    length: int
    epoch: nnx.Variable[Any]
    index: nnx.Variable[Any]

    def __init__(
        self,
        config: DataraxModuleConfig,
        *,
        length: int,
        shuffle: bool,
        seed: int,
        fingerprint: str,
        revision: str | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        super().__init__(config, rngs=rngs, name=name)
        expect_between("seed", seed, 0, 2**32 - 1)
        self.length = length
        self.index = nnx.Variable(0)
        self.epoch = nnx.Variable(0)
        self._shuffle = bool(shuffle)  # a state is JSON, which knows no NumPy types
        self._seed = int(seed)
        self.fingerprint = fingerprint
        self.revision = revision
        self._resumes = nnx.Variable(False)  # whether a `for` goes on where `set_state` put it
        self.view = nnx.data(None)  # which records there are; None: all, once each

    # --- order -----------------------------------------------------------------------------------

    @property
    def is_random_order(self) -> bool:
        """Whether each epoch has its own random order."""
        return self._shuffle

    @property
    def seed(self) -> int:
        """Seed of the order; epoch `e` follows `(seed + e) % 2**32`."""
        return self._seed

    @property
    def order(self) -> Order:
        """The order of the records, as it is set now."""
        view = None if self.view is None else self.view.placed
        return Order(self.length, self._seed, shuffle=self._shuffle, view=view)

    def _key_seed(self, key: jax.Array | None) -> Any:
        """Returns the seed of an order whose epoch 0 is the epoch that a key names."""
        if not self.is_random_order:
            return 0
        if key is None:
            raise ValueError(
                f"{self.label} is in random order, and get_batch_at keeps no epoch: write "
                "key=jax.random.key(seed + epoch), or set_random_order(False)."
            )
        return key_seed(key)

    def set_random_order(self, enabled: bool) -> None:
        """Sets whether each epoch has its own random order, from the next batch on."""
        self._shuffle = bool(enabled)

    def sharded(self, shards: int) -> Self:
        """Returns the source: canonical shards are a matter of its order.

        Raises:
            ValueError: If there are fewer records than shards.
        """
        dataclasses.replace(self.order, shards=shards)
        return self

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the start of epoch 0, perhaps with another seed; see `Source.reset`."""
        if seed is not None:
            expect_between("seed", seed, 0, 2**32 - 1)
            self._seed = int(seed)
        self.move(0, 0)
        self._resumes.set_value(False)

    # --- position --------------------------------------------------------------------------------

    def position(self) -> Position:
        """Returns the position, of which `state_at` makes a state, also later."""
        return int(self.epoch.get_value()), int(self.index.get_value())

    def position_at(self, count: int) -> Position:
        """Returns the position after the first `count` records; see `Source.position_at`."""
        return divmod(count, self.length)

    def begin_epoch(self) -> bool:
        """Goes to where a `for` begins (see `__iter__`); returns whether a state put it there."""
        resumes = bool(self._resumes.get_value())
        self._resumes.set_value(False)
        if int(self.index.get_value()) and not resumes:
            self.next_epoch()
        return resumes

    def next_epoch(self) -> None:
        """Goes to the start of the next epoch."""
        self.move(int(self.epoch.get_value()) + 1, 0)

    def skip(self, count: int) -> None:
        """Goes `count` records on, into the next epochs."""
        epoch, index = self.position()
        epochs, index = divmod(index + count, self.length)
        self.move(epoch + epochs, index)

    def move(self, epoch: int | jax.Array, index: int | jax.Array) -> None:
        """Sets the position: the next record is the one at `index` of `epoch`."""
        self.epoch.set_value(epoch)
        self.index.set_value(index)

    def records_at(self, epoch: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the number of each record of an epoch; see `Source`."""
        return self.order.host_records(epoch, ranks)

    # --- batches ---------------------------------------------------------------------------------

    def get_batch(self, batch_size: int, key: jax.Array | None = None) -> dict[str, Any]:
        """Returns the next `batch_size` records, running on into the next epoch.

        Args:
            batch_size: Number of records.
            key: If given, `get_batch_at(0, batch_size, key)` is returned and nothing moves.

        Returns:
            Dict of arrays of shape `(batch_size, ...)`, and object arrays for host columns.

        Raises:
            TypeError: If the source's position is traced.
        """
        if key is not None:
            return self.get_batch_at(0, batch_size, key)
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        if is_traced(self.epoch.get_value(), self.index.get_value()):
            raise TypeError(
                f"get_batch moves {self.label}, which a compiled function cannot: write "
                "get_batch_at(start, size, key) there, or Pipeline(...).step()."
            )
        batch = self._rows(*self.position(), batch_size)
        self.skip(batch_size)
        self._counts.applied += batch_size
        return batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the records of one epoch.

        The first `for` is epoch 0; later ones go on where `set_state` set the position, and
        otherwise begin the next epoch. The position moves with the loop.
        """
        self.begin_epoch()
        epoch, index = self.position()
        while index < self.length:
            size = min(_ITERATION_BLOCK, self.length - index)
            for record in self._each(epoch, index, size):
                index += 1
                self.move(*((epoch, index) if index < self.length else (epoch + 1, 0)))
                if record is not None:
                    self._counts.applied += 1
                    yield record

    def epoch_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields batches to the end of one epoch, the last one short; it begins as a `for` does."""
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        self.begin_epoch()
        left = self.length - self.position()[1]
        while left:
            size = min(batch_size, left)
            yield self._next_batch(size)
            left -= size

    def _next_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the next batch of `epoch_batches`, wherever its arrays are."""
        return self.get_batch(batch_size)

    def _each(self, epoch: int, index: int, size: int) -> Iterator[dict[str, Any] | None]:
        """Yields records from a position on; None for one that cannot be read."""
        return each_row(self._rows(epoch, index, size))

    def _rows(self, epoch: int, index: int, size: int) -> dict[str, Any]:
        """Returns `size` records from a position on, into the next epochs, as JAX arrays."""
        raise NotImplementedError

    # --- state -----------------------------------------------------------------------------------

    def state_at(self, position: Position) -> dict[str, Any]:
        """Returns the state of the source when it stands at `position`."""
        epoch, index = position
        state = {
            "version": STATE_VERSION,
            "epoch": epoch,
            "index": index,
            "order": {"shuffle": self._shuffle, "seed": self._seed},
            "fingerprint": self.fingerprint,
        }
        state |= {} if self.view is None else {"view": self.view.label}
        return state if self.revision is None else state | {"revision": self.revision}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of this source or of one with the same data; see `Source.set_state`."""
        expect_dict(state)
        own = self.get_state()
        if state.get("view") != own.get("view"):
            theirs, ours = (one.get("view", "all records") for one in (state, own))
            raise ValueError(
                f"The state is of {theirs}, {self.label} has {ours}. Restore it with the view it "
                "was saved with, or begin anew with reset()."
            )
        # The content counts, not where it came from: a copy of a Hub dataset has no revision.
        same = not (state.keys() ^ own.keys()) - {"revision", "transform"}
        if not same or state.get("version") != STATE_VERSION:
            raise ValueError(
                f"The state has {sorted(state)} of version {state.get('version')}; {self.label} "
                f"reads {sorted(own)} of version {STATE_VERSION}, as its get_state() returns them."
            )
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"The state is of other data: its fingerprint is {state['fingerprint']}, that of "
                f"{self.label} is {self.fingerprint}. Restore it with the data it was saved with, "
                "or begin anew with reset()."
            )
        epoch, index, shuffle, seed = _read_position(state, self.length)
        self._shuffle, self._seed = shuffle, seed
        self.move(epoch, index)
        self._resumes.set_value(True)

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this source; a `for` begins the next epoch, as after a `break`."""
        self.move(state["epoch"], state["index"])

    def clone(self) -> Self:
        """Returns a source at the same position that moves on its own."""
        clone = super().clone()
        clone.view = self.view  # the same object: its tables are placed once for both
        return clone

    def _settings_to(self, copy: Self) -> Self:
        copy._shuffle, copy._seed = self._shuffle, self._seed
        copy.view, copy.length, copy.fingerprint = self.view, self.length, self.fingerprint
        return super()._settings_to(copy)


def _read_position(state: dict[str, Any], length: int) -> tuple[int, int, bool, int]:
    try:
        expect_between("epoch", state["epoch"], 0, 2**31 - 1)
        expect_between("index", state["index"], 0, length)
        if state["order"].keys() != {"shuffle", "seed"}:
            shards = state["order"].get("shards")
            raise ValueError(
                f"its order is {state['order']}, not one of shuffle and seed. "
                f"Restore it with Pipeline(..., shards={shards})."
            )
        shuffle, seed = bool(state["order"]["shuffle"]), state["order"]["seed"]
        expect_between("seed", seed, 0, 2**32 - 1)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The state is not one that get_state() returned: {error}") from error
    return int(state["epoch"]), int(state["index"]), shuffle, int(seed)
