"""Batches that the compiled program forms of columns on the devices, by arithmetic."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax import EagerSourceBase, Pipeline
from datarax.order.canonical import with_shards
from trainers.data.batches import Batches, Feed
from trainers.data.held import ReplicatedRows, ShardedRows
from trainers.data.mixed import MixedRows
from trainers.devices import agreement
from trainers.devices.layout import Layout


class EagerBatches(Batches):
    """Batches of a pipeline over an eager source, or a mixture of them: their columns are the data.

    Args:
        pipeline: The pipeline; a clone of its source is read, so the caller's does not move.
        layout: The devices that hold the data.
        stored_order: Whether to read all records in stored order, whatever the source's `shuffle`.

    Raises:
        TypeError: If the source forms batches in a way of its own.
    """

    def __init__(self, pipeline: Pipeline, layout: Layout, *, stored_order: bool = False):
        source: Any = pipeline.source.clone()
        for part in source.parts:
            _expect_own_batches(part)
        source.reset()
        if stored_order:
            source.set_random_order(False)
        super().__init__(pipeline, source, layout, pipeline.drop_remainder and not stored_order)
        self._held = self._rows_of(source, layout)
        self._unchanged = self._look(self._held.host)

    def _rows_of(self, source: Any, layout: Layout) -> ReplicatedRows | ShardedRows | MixedRows:
        if self.is_mixed:
            return MixedRows(source, self.batch_size, self.steps_per_epoch, layout)
        dealt = dataclasses.replace(source.order, shards=self.shards).deal is not None
        return (ShardedRows if dealt else ReplicatedRows)(source, self.shards, layout)

    def feed(
        self, t: int = 0, first: int = 0, state: dict[str, Any] | None = None, rows: int = 0
    ) -> "EagerFeed":
        """Returns the feed of a run; see `Batches.feed`. The state follows from `t`."""
        return EagerFeed(self, first, rows - self.counted(t - first))

    def epoch_blocks(self) -> Iterator[tuple[Any, int, int]]:
        """Yields data, and the first step and the end of the steps that it serves, of one epoch."""
        assert self.steps_per_epoch is not None  # a mixture without end is not evaluated
        return self.feed().blocks(0, self.steps_per_epoch)

    @property
    def data(self) -> Any:
        """The source's arrays, to pass to the compiled program."""
        return self.block(0, 0)[0]

    def block(self, first: int, t: int) -> tuple[Any, int]:
        """Returns the data of step `t`, and the step up to which it serves.

        Args:
            first: The step that begins with batch 0.
            t: The step.
        """
        order, end = self._held.span(t - first)
        first_step = self._layout.replicate(jnp.int32(first))
        skipped = self.skipped
        if skipped is not None and self.is_mixed:  # the draws of this span
            skipped = dataclasses.replace(skipped, order=order)
        data = self._held.data, self.key, first_step, order, skipped
        return data, min(first + end, 2**31 - 1)

    def state_at(self, t: int) -> dict[str, Any]:
        """Returns the state of the source before batch `t`."""
        epoch, step = self._place(t)
        position = self._source.position_at(epoch * (self.length or 0) + step * self.batch_size)
        return with_shards(self._source.state_at(position), self.shards)

    def records(self, t: int) -> np.ndarray:
        """Returns the numbers of batch `t`'s records, or their ranks; see `Feed.records`."""
        epoch, step = self._place(t)
        return self._held.records(epoch, step * self.batch_size, self.batch_size)

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions."""
        return self._held.in_order(batch)

    def extent(self, name: str) -> tuple[int, int] | None:
        """Returns the least and the greatest value of an integer column of the source.

        None where a stage changes the column, since nothing is known of its values then.
        """
        if name not in self._unchanged or self.spec[name].dtype.kind not in "iu":
            return None
        parts = self._held.values(name)
        own = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
        low, high = zip(*agreement.collected(own), strict=True)
        return min(low), max(high)

    def _stored(self, data: Any, t: jax.Array) -> tuple[Any, ...]:
        held, key, first, order, _ = data
        t = t - first
        epoch, step = self._place(t)
        start = step.astype(jnp.uint32) * np.uint32(self.batch_size)
        stored, positions = self._held.read(held, order, epoch, start, self.batch_size)
        valid = jnp.ones_like(positions, bool)
        if self.length is not None:
            valid = positions < np.uint32(self.length)
        return stored, valid, epoch, positions, key

    def _place(self, t: Any) -> tuple[Any, Any]:
        """Returns the epoch of batch `t`, and the number of batches before it there."""
        return (0, t) if self.steps_per_epoch is None else divmod(t, self.steps_per_epoch)


class EagerFeed(Feed):
    """Gives a run its data: the source's arrays, for all steps.

    Args:
        batches: The batches.
        first: The step that begins with batch 0.
        rows: Number of records that counted before it.
    """

    def __init__(self, batches: EagerBatches, first: int, rows: int):
        self._batches, self._first, self._rows = batches, first, rows
        self.waited = np.zeros(3)

    def block(self, t: int) -> tuple[Any, int]:
        """Returns the data of step `t`, and the step up to which it serves."""
        return self._batches.block(self._first, t)

    def state_at(self, t: int) -> dict[str, Any]:
        """Returns the source's state before step `t`."""
        return self._batches.state_at(t - self._first)

    def epoch_at(self, t: int) -> float:
        """Returns how many epochs are finished after `t` steps, with the fraction."""
        steps = self._batches.steps_per_epoch
        return 0.0 if steps is None else t / steps

    def rows_at(self, t: int) -> int:
        """Returns the number of records that counted in `t` steps."""
        return self._rows + self._batches.counted(t - self._first)

    def records(self, t: int) -> np.ndarray:
        """Returns which records of the source batch `t` holds, int32 of shape `(batch_size,)`."""
        return self._batches.records(t - self._first)


def _expect_own_batches(source: Any) -> None:
    kind = type(source)
    if kind.get_batch_at is not EagerSourceBase.get_batch_at:
        raise TypeError(
            f"{kind.__name__} has a get_batch_at of its own, and compiled programs gather a "
            "source's columns themselves: write that step as a stage, Pipeline(source=source, "
            "stages=[stage], batch_size=...), or load other columns."
        )
