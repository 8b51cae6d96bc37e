"""Batches by step number: the base of those that the compiled loop reads."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax import HostColumn, Pipeline
from datarax.errors import expect_between
from datarax.order.canonical import with_shards, without_shards
from datarax.order.epochs import steps_per_epoch
from datarax.order.order import Order
from datarax.order.permutation import MAX_RECORDS
from datarax.pipeline.graph import formed
from datarax.sources.source import Source
from trainers.data.skipped import Skipped, Skips, expect_numbers, without
from trainers.devices.layout import Layout


class Feed:
    """Gives a run its data, step after step.

    Attributes:
        waited: Seconds that the run has waited for reading, for decoding and transforming, and for
            the transfer to the devices, of shape `(3,)`.
    """

    waited: np.ndarray

    def block(self, t: int) -> tuple[Any, int]:
        """Returns the data of step `t`, and the step up to which it serves."""
        raise NotImplementedError

    def blocks(self, t: int, stop: int) -> Iterator[tuple[Any, int, int]]:
        """Yields data, and the first step and the end of the steps that it serves, up to `stop`."""
        while t < stop:
            data, served = self.block(t)
            yield data, t, min(served, stop)
            t = served

    def state_at(self, t: int) -> dict[str, Any]:
        """Returns the source's state before step `t`, one of the last block's or its end."""
        raise NotImplementedError

    def epoch_at(self, t: int) -> float:
        """Returns the epochs finished after `t` steps, with the fraction where it is known."""
        raise NotImplementedError

    def rows_at(self, t: int) -> int:
        """Returns the number of records that counted in `t` steps, from the run's first on."""
        raise NotImplementedError

    def records(self, t: int) -> np.ndarray:
        """Returns the number of each record of batch `t`, integers of shape `(batch_size,)`.

        It is the record's row in the source, or its rank in the epoch of a stream. Of a mixture
        they are `(batch_size, 2)`, the source and its record.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Ends the reading."""


class Batches:
    """The batches of a pipeline, as the compiled loop reads them: batch `t` of some data.

    Args:
        pipeline: The pipeline.
        source: A source of the run's own, at the start of epoch 0.
        layout: The devices that compute the batches.
        drop_remainder: Whether an epoch's last batch is left out where it is not full.

    Attributes:
        batch_size: Records in a batch, on all devices together.
        shards: Number of canonical shards of the order.
        length: Number of records in an epoch, None where it is not known.
        steps_per_epoch: Number of batches in an epoch, None where it is not known.
        stages: Variables of the stages, carried through the loop.
        key: The pipeline's key, from which the stages' keys are folded.
        is_mixed: Whether the source is a mixture, whose records are named by pairs.
        spec: Shape and dtype of one record after the stages, by column, without host columns.
        host: The source's host columns, by name, that no stage replaced.
        skipped: Records that are left out, None where there are none.
    """

    spec: dict[str, Any]
    host: dict[str, HostColumn]
    skipped: Skipped | None = None

    def __init__(self, pipeline: Pipeline, source: Source, layout: Layout, drop_remainder: bool):
        self.batch_size, self.shards = pipeline.batch_size, pipeline.shards
        self.length, self.steps_per_epoch = source.length, None
        if source.length is not None:
            self.steps_per_epoch = steps_per_epoch(
                source.length, self.batch_size, drop_remainder=drop_remainder
            )
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"drop_remainder=True leaves no batch: batch_size={self.batch_size}, and there are "
                f"{source.length} records."
            )
        self.key = layout.replicate(pipeline.key.get_value())
        self._source, self._layout, self._drop_remainder = source, layout, drop_remainder
        self.is_mixed = source.parts != (source,)
        self._graph, self.stages = nnx.split(pipeline.stages)

    @property
    def features(self) -> Mapping[str, Any]:
        """The source's features, as far as it knows them."""
        return self._source.features

    @property
    def data(self) -> Any:
        """The data to trace the program with: arrays, or their shapes and dtypes."""
        raise NotImplementedError

    def feed(
        self, t: int = 0, first: int = 0, state: dict[str, Any] | None = None, rows: int = 0
    ) -> Feed:
        """Returns the feed that gives a run its data.

        Args:
            t: The next step.
            first: The step that begins with batch 0.
            state: The source's state before step `t`; None: the start of epoch 0.
            rows: Number of records that counted before step `t`.
        """
        raise NotImplementedError

    def epoch_blocks(self) -> Iterator[tuple[Any, int, int]]:
        """Yields data, and the first step and the end of the steps that it serves, of one epoch."""
        raise NotImplementedError

    def counted(self, t: int) -> int:
        """Returns how many records count in the first `t` batches, as far as arithmetic tells.

        Of a stream whose length is not known each batch is taken for a full one.
        """
        if self.length is None or self.steps_per_epoch is None:
            return t * self.batch_size
        epoch, step = divmod(t, self.steps_per_epoch)
        whole = min(self.length, self.steps_per_epoch * self.batch_size)
        return epoch * whole + min(step * self.batch_size, whole)

    def check(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` unless `state` is of this data in this order."""
        self._source.clone().set_state(without_shards(state, self.shards))
        own = with_shards(self._source.get_state(), self.shards)
        for given, here in zip(_orders(state), _orders(own), strict=True):
            if given != here:
                raise ValueError(
                    f"The state is of the order {given}, this source has {here}: give the source "
                    "the seed and shuffle it had."
                )

    # --- records by number -----------------------------------------------------------------------

    @property
    def _order(self) -> Order:
        source: Any = self._source
        return dataclasses.replace(source.order, shards=self.shards)

    def skip(self, skips: Skips) -> bool:
        """Leaves out records, from some steps on; returns whether that changes the program."""
        before, self.skipped = jax.tree.leaves(self.skipped), None
        if skips:
            order = None if self.is_mixed else self._order
            found = Skipped.of(skips, len(self._source.parts), order)
            self.skipped = self._layout.replicate(found)
        now = jax.tree.leaves(self.skipped)
        return [array.shape for array in before] != [array.shape for array in now]

    def records_at(self, batches: int | Iterable[int]) -> np.ndarray:
        """Returns the number of each record that counts in some batches, by arithmetic.

        Args:
            batches: Their numbers, from 0.

        Returns:
            `int64` of shape `(records,)`, batch after batch in the order of their positions; of a
            mixture `(records, 2)`, the source and its record.

        Raises:
            ValueError: If the source's records have no numbers, or a batch's is negative.
        """
        expect_numbers(self._source, "records_at(steps)")
        numbers = self._source.records_at if self.is_mixed else self._order.host_records
        found = [np.empty((0, 2) if self.is_mixed else 0, np.int64)]
        for t in batches if isinstance(batches, Iterable) else [batches]:
            expect_between("steps", t, 0, MAX_RECORDS)
            steps = self.steps_per_epoch
            epoch, step = (0, int(t)) if steps is None else divmod(int(t), steps)
            positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            if self.length is not None:
                positions = positions[positions < self.length]
            found.append(numbers(epoch, positions).astype(np.int64))
        return np.concatenate(found)

    def numbered_at(self, batch: int) -> np.ndarray | None:
        """Returns what `records_at` does, None where the records have no numbers."""
        is_numbered = all(part.is_indexable for part in self._source.parts)
        return self.records_at(batch) if is_numbered else None

    def batch_at(self, t: int) -> dict[str, np.ndarray]:
        """Returns the records of batch `t` that count; NumPy arrays of shape `(records, ...)`."""
        with contextlib.closing(self.feed()) as feed:
            data, _ = feed.block(t)
            found = jax.device_get(self._replicated_rows(data, self.stages, np.int32(t)))
            batch, valid = self.in_order(found[:2])
        return jax.tree.map(lambda x: x[valid], dict(batch))

    @functools.cached_property
    def _replicated_rows(self) -> Any:
        return jax.jit(self.rows, out_shardings=self._layout.replicated)

    # --- in the compiled program -----------------------------------------------------------------

    def rows(self, data: Any, stages: nnx.State, t: jax.Array) -> tuple[Any, jax.Array, Any]:
        """Returns batch `t`, which of its records count, and the stages' variables; traceable.

        Real records that do not count fill up the last batch of an epoch.
        """
        _, batch, valid, stages = self.form(data, stages, t)
        return batch, valid, stages

    def form(self, data: Any, stages: nnx.State, t: jax.Array) -> tuple[Any, Any, jax.Array, Any]:
        """Returns the batch before the stages, and the three results of `rows`."""
        stored, valid, epoch, positions, key = self._stored(data, t)
        if (skipped := data[-1]) is not None:
            marked = skipped.marks(t, epoch, positions)
            stored, valid = without(stored, marked), valid & ~marked
        epochs = jnp.broadcast_to(epoch, positions.shape).astype(jnp.uint32)
        batch, stages = formed(self._graph, stages, stored, key, epochs, positions)
        return stored, batch, valid, stages

    def _stored(self, data: Any, t: jax.Array) -> tuple[Any, ...]:
        """Returns batch `t` of the source, which of its records count, its epoch, their positions,
        and the stages' key. The last part of `data` are the skipped records."""
        raise NotImplementedError

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions."""
        return batch

    def extent(self, name: str) -> tuple[int, int] | None:
        """Returns the least and the greatest value of an integer column of the source.

        None where nothing is known of its values beforehand.
        """
        return None

    def _look(self, host: dict[str, HostColumn]) -> set[str]:
        """Sets `spec` and `host`; returns the columns that no stage changes.

        Raises:
            TypeError: If the last stage returns no dict.
            ValueError: If it does not return one row a record.
        """
        unchanged: set[str] = set()

        def look(data, stages):
            stored, batch, _, _ = self.form(data, stages, jnp.int32(0))
            if not isinstance(batch, dict):
                raise TypeError(
                    f"The last stage returns a {type(batch).__name__}: expected a dict of columns."
                )
            for path, column in jax.tree.leaves_with_path(dict(batch)):
                if column.shape[:1] != (self.batch_size,):
                    raise ValueError(
                        f"The stages return {jax.tree_util.keystr(path)} of shape {column.shape}: "
                        f"expected ({self.batch_size}, ...), one row a record."
                    )
            unchanged.update(name for name in batch if batch[name] is stored.get(name))
            return dict(batch)

        spec = jax.eval_shape(look, self.data, self.stages)
        self.spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), spec)
        self.host = {name: column for name, column in host.items() if name not in self.spec}
        return unchanged


def _orders(state: dict[str, Any]) -> list[Any]:
    """Returns the orders that a state names, those of a mixture's sources one by one."""
    if "sources" in state:
        return [order for its in state["sources"] for order in _orders(its)]
    return [state["order"]]
