"""Iterables as sources: streams of records whose position their iterator knows."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax.columns.fingerprint import fingerprint_arrays
from datarax.columns.host import HostColumn, is_host
from datarax.columns.rows import each_row, on_device
from datarax.errors import expect_between, expect_dict
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.cursor import Cursor, IterablePosition, record_columns
from datarax.sources.in_order import InOrder
from datarax.sources.row_spec import RowSpec
from datarax.sources.source import SourceConfigBase
from datarax.stream.block import Block

STATE_VERSION = 1

logger = logging.getLogger(__name__)


class IterableSource(InOrder):
    """A stream of what an iterable gives, such as a Grain `IterDataset`: one record at a time.

    Each epoch iterates anew. The order is the iterable's. Where its iterator has `get_state` and
    `set_state`, as Grain's has, a state gives back exactly the next record; else there is no going
    on from a state, which is said once.

    Args:
        iterable: What gives records: dicts of arrays, numbers or text, each with one shape and
            dtype for all records.
        name: A name for messages.

    Raises:
        TypeError: If it is no iterable, one that can be iterated over only once, or a record is no
            dict.
        ValueError: If it gives no record.

    Example:
        >>> import grain
        >>> records = grain.MapDataset.range(5).map(lambda x: {"x": x}).to_iter_dataset()
        >>> source = IterableSource(records)
        >>> source.get_batch(3)["x"].tolist(), source.get_state()["index"]
        ([0, 1, 2], 3)
    """

    length = None

    def __init__(self, iterable: Iterable[Any], *, name: str | None = None):
        kind = type(iterable).__name__
        super().__init__(SourceConfigBase(), name=name or f"IterableSource({kind})")
        if not isinstance(iterable, Iterable):
            raise TypeError(f"iterable is a {kind}: expected one, such as grain.IterDataset.")
        if iter(iterable) is iterable:
            raise TypeError(
                f"iterable is a {kind}, an iterator, which can be used only once: give what it is "
                "made of, such as the IterDataset itself, or an object whose __iter__ makes one."
            )
        self._cursor = Cursor(iterable, self.label)
        first = self._cursor.first
        self._spec = nnx.static(RowSpec(first))
        self.fingerprint = fingerprint_arrays(first)
        self.epoch = nnx.Variable(0)
        self._resumes = False
        if not self._cursor.has_state:
            logger.warning(
                "%s cannot resume: its iterator has no get_state and set_state. A run on it that "
                "is stopped begins its data anew, with resume_data='restart'.",
                self.label,
            )

    # --- what it is ------------------------------------------------------------------------------

    def element_spec(self) -> dict[str, Any]:
        """Returns the shape and dtype of one record, as of the first; see `Source`."""
        return self._spec.record

    def host_columns(self) -> tuple[HostColumn, ...]:
        """Returns the columns that are no arrays, nested ones too, without rows."""
        return self._spec.host

    @property
    def seed(self) -> int:
        """0: the order is the iterable's."""
        return 0

    @property
    def is_random_order(self) -> bool:
        """False: the order is the iterable's."""
        return False

    def set_random_order(self, enabled: bool) -> None:
        """Goes to the epoch's start; the order is the iterable's, whatever `enabled` says."""
        self._cursor.begin(self._cursor.epoch)

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the start of epoch 0."""
        self._cursor.begin(0)
        self._resumes = False

    # --- batches ---------------------------------------------------------------------------------

    def get_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the next records, fewer at the end of the epoch and never none.

        Args:
            batch_size: Number of records.

        Returns:
            Dict of JAX arrays of shape `(records, ...)`, and object arrays for host columns.
        """
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        if not (records := self._next(batch_size)):
            self.next_epoch()
            records = self._next(batch_size)
        return on_device(self._stacked(records))

    def take(self, count: int, step: int) -> Iterator[dict[str, Any]]:
        """Yields the next `count` records, on into the next epochs; see `Source.take`."""
        while count:
            batch = self.get_batch(count)
            count -= len(jax.tree.leaves(batch)[0])
            yield batch

    def epoch_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields batches to the end of one epoch, the last one short; it begins as a `for` does."""
        self.begin_epoch()
        while records := self._next(batch_size):
            yield self._stacked(records)
        self.next_epoch()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the records of one epoch; see `StreamingSourceBase`."""
        for batch in self.epoch_batches(1):
            yield from each_row(on_device(batch))

    def read_batches(self, batches: int, batch_size: int) -> Block:
        """Returns the next batches of this epoch, stacked in host memory; see `Source`."""
        cursor, read = self._cursor, []
        valid = np.zeros((batches, batch_size), bool)
        first, positions, filled = cursor.index, [self.position()], 0
        for batch in range(batches):
            records = self._next(batch_size)
            valid[batch, : len(records)] = True
            filled += bool(records)
            # Real records fill a batch up: zeros would bend its statistics.
            some = records or [self._cursor.record]
            read += [some[row % len(some)] for row in range(batch_size)]
            positions.append(self.position())
        columns = jax.tree.map(
            lambda x: x.reshape(batches, batch_size, *x.shape[1:]), self._stacked(read)
        )
        ranks = (first + np.arange(valid.size, dtype=np.uint32)).astype(np.uint32)
        full = int(valid.all(axis=1).sum())
        ranks = ranks.reshape(valid.shape)
        return Block(columns, valid, ranks, cursor.epoch, filled, positions, 0, full)

    def _next(self, count: int) -> list[dict[str, Any]]:
        records = self._cursor.take(count)
        self.epoch.set_value(self._cursor.epoch)
        self._counts.applied += len(records)
        return records

    def _stacked(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        rows = record_columns(records, self.label, self._cursor.index - len(records))
        self._spec.check(rows, np.array([max(0, self._cursor.index - len(records))] * len(records)))
        return jax.tree.map(np.asarray, rows, is_leaf=is_host)

    # --- position and state ----------------------------------------------------------------------

    def begin_epoch(self) -> bool:
        """Goes to where a `for` begins; returns whether a state put it there."""
        resumes, self._resumes = self._resumes, False
        if self._cursor.index and not resumes:
            self.next_epoch()
        return resumes

    def next_epoch(self) -> None:
        """Goes to the start of the next epoch."""
        self._cursor.begin(self._cursor.epoch + 1)
        self.epoch.set_value(self._cursor.epoch)

    def position(self) -> IterablePosition:
        """Returns the position, of which `state_at` makes a state, also later."""
        return self._cursor.position()

    def state_at(self, position: IterablePosition) -> dict[str, Any]:
        """Returns the state of the source when it stands at `position`."""
        return {
            "version": STATE_VERSION,
            "epoch": position.epoch,
            "index": position.index,
            "order": {"shuffle": False, "seed": 0, "streams": 1},
            "iterator": position.state,
            "fingerprint": self.fingerprint,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that `get_state` returned, of an iterable of the same records.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure or its first record differ, or the iterator has no state.
        """
        expect_dict(state)
        own = self.get_state()
        if state.keys() != own.keys() or state["version"] != STATE_VERSION:
            raise ValueError(
                f"The state has {sorted(state)} of version {state.get('version')}; {self.label} "
                f"reads {sorted(own)} of version {STATE_VERSION}."
            )
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"The state is of other data: its fingerprint is {state['fingerprint']}, that of "
                f"{self.label} is {self.fingerprint}."
            )
        expect_between("epoch", state["epoch"], 0, 2**31 - 1)
        expect_between("index", state["index"], 0, 2**63)
        if state["index"] and (state["iterator"] is None or not self._cursor.has_state):
            raise ValueError(
                f"{self.label} cannot go on at record {state['index']}: its iterator has no "
                "get_state and set_state. Begin its data anew, or give a Grain IterDataset."
            )
        self._cursor.go_to(IterablePosition(state["epoch"], state["index"], state["iterator"]))
        self.epoch.set_value(state["epoch"])
        self._resumes = True

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this source; a `for` begins the next epoch, as after a `break`."""
        self.set_state(state)
        self._resumes = False
