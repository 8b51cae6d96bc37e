"""Batches by step number: batch `t` of a pipeline, formed inside the compiled program."""

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax import HFEagerSource, HFStreamingSource, HostColumn, Pipeline
from datarax.order.canonical import with_shards, without_shards
from datarax.order.epochs import steps_per_epoch
from datarax.pipeline.pipeline import Source
from trainers.data.held import DealtRows, WholeRows
from trainers.devices import agreement
from trainers.devices.layout import Layout

DEFAULT_BATCH_SIZE = 128


class Batches:
    """What the compiled loop reads of a pipeline over an eager source.

    Args:
        pipeline: The pipeline; a clone of its source is read, so the caller's does not move.
        layout: The devices that hold the data.
        stored_order: Whether to read in stored order, whatever the source's `shuffle`.

    Attributes:
        stages: Variables of the stages, carried through the loop.
        key: The pipeline's key, of which the stages' are folded.
        steps_per_epoch: `ceil(length / batch_size)`.
        spec: Shape and dtype of one record after the stages, by column, without host columns.
        host: The source's host columns, by name, that no stage replaced.
    """

    def __init__(self, pipeline: Pipeline, layout: Layout, *, stored_order: bool = False):
        source = pipeline.source.clone()
        source.reset()
        if stored_order:
            source.set_random_order(False)
        self.length = source.length
        self.shards = pipeline.shards
        self.batch_size = pipeline.batch_size
        self.steps_per_epoch = steps_per_epoch(self.length, self.batch_size)
        self.key = layout.replicate(pipeline.key.get_value())
        self._held = (
            WholeRows(source, layout)
            if self.shards == 1
            else DealtRows(source, self.shards, layout)
        )
        self._layout = layout
        self._stages, self.stages = nnx.split(pipeline.stages)
        self._position = source
        self.spec, self._unchanged = formed_spec(self)
        self.host = {
            name: column
            for name, column in self._held.columns.items()
            if isinstance(column, HostColumn) and name not in self.spec
        }

    def feed(self, t: int = 0, first: int = 0, state: dict[str, Any] | None = None) -> "Feed":
        """Returns what gives a run its data.

        Args:
            t: The next step.
            first: The step that begins with batch 0.
            state: The source's state before step `t`; it follows from `t`.
        """
        return Feed(self, first)

    def epoch_blocks(self) -> Iterator[tuple[Any, int, int]]:
        """Yields data, and the first step and the end of the steps that it serves, of one epoch."""
        yield self.data, 0, self.steps_per_epoch

    @property
    def features(self) -> Mapping[str, Any]:
        """The source's features, as far as it knows them."""
        return getattr(self._position, "features", None) or {}

    @property
    def data(self) -> Any:
        """The source's arrays, to pass to the compiled program."""
        return self.data_from(0)

    def data_from(self, first: int) -> Any:
        """Returns the data of a run whose step `first` begins with batch 0."""
        return self._held.data, self.key, self._layout.replicate(jnp.int32(first))

    def state_at(self, t: int) -> dict[str, Any]:
        """Returns the state of the source before batch `t`."""
        epoch, step = divmod(t, self.steps_per_epoch)
        self._position.move(epoch, step * self.batch_size)
        return with_shards(self._position.get_state(), self.shards)

    def check(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` unless `state` is of this data in this order."""
        own = self.state_at(0)
        other = self._position.clone()
        other.set_state(without_shards(state, self.shards))
        if state["order"] != own["order"]:
            raise ValueError(
                f"The state is of the order {state['order']}, this source has {own['order']}: give "
                "the source the seed and shuffle it had."
            )

    def rows(self, data: Any, stages: nnx.State, t: jax.Array):
        """Returns batch `t`, which of its records count, and the stages' variables; traceable.

        The last batch of an epoch is filled up with records of the same epoch that do not count.
        """
        _, batch, valid, stages = self.form(data, stages, t)
        return batch, valid, stages

    def records(self, t: int) -> np.ndarray:
        """Returns the numbers of batch `t`'s records in the source, int32 `(batch_size,)`."""
        epoch, step = divmod(t, self.steps_per_epoch)
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
        parts = [np.asarray(part.data) for part in self._held.columns[name].addressable_shards]
        own = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
        low, high = zip(*agreement.collected(own), strict=True)
        return min(low), max(high)

    def form(self, data: Any, stages: nnx.State, t: jax.Array):
        """Returns the batch before the stages, and what `rows` returns."""
        held, key, first = data
        t = t - first
        epoch = t // self.steps_per_epoch
        start = (t % self.steps_per_epoch).astype(jnp.uint32) * np.uint32(self.batch_size)
        stored, position = self._held.read(held, epoch, start, self.batch_size)
        graph = nnx.merge(self._stages, stages, copy=True)
        epochs = jnp.full(self.batch_size, epoch, jnp.uint32)
        batch = graph(stored, key, epochs, position)
        return stored, batch, position < np.uint32(self.length), nnx.state(graph)


class Feed:
    """Gives a run its data: the source's arrays, for all steps.

    Args:
        batches: The batches.
        first: The step that begins with batch 0.
    """

    def __init__(self, batches: Batches, first: int):
        self._batches, self._first = batches, first
        self._data = batches.data_from(first)

    def block(self, t: int) -> tuple[Any, int]:
        """Returns the data of step `t`, and the step up to which it serves."""
        return self._data, 2**31 - 1

    def state_at(self, t: int) -> dict[str, Any]:
        """Returns the source's state before step `t`."""
        return self._batches.state_at(t - self._first)

    def epoch_at(self, t: int) -> float:
        """Returns how many epochs are finished after `t` steps, with the fraction."""
        return t / self._batches.steps_per_epoch

    def records(self, t: int) -> np.ndarray:
        """Returns which records of the source batch `t` holds, int32 of shape `(batch_size,)`."""
        return self._batches.records(t - self._first)

    def close(self) -> None:
        """Nothing is open."""


def formed_spec(batches: Any) -> tuple[dict[str, Any], set[str]]:
    """Returns the spec of one record after the stages, and the columns that no stage changes.

    Raises:
        TypeError: If the last stage returns no dict.
        ValueError: If it does not return one row a record.
    """
    unchanged: set[str] = set()

    def look(data, stages):
        stored, batch, _, _ = batches.form(data, stages, jnp.int32(0))
        if not isinstance(batch, dict):
            raise TypeError(
                f"The last stage returns a {type(batch).__name__}: expected a dict of columns."
            )
        for path, column in jax.tree.leaves_with_path(dict(batch)):
            if column.shape[:1] != (batches.batch_size,):
                raise ValueError(
                    f"The stages return {jax.tree_util.keystr(path)} of shape {column.shape}: "
                    f"expected ({batches.batch_size}, ...), one row a record."
                )
        unchanged.update(name for name in batch if batch[name] is stored.get(name))
        return dict(batch)

    spec = jax.eval_shape(look, batches.data, batches.stages)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), spec), unchanged


def as_pipeline(
    source: Any, batch_size: int | None, *, shuffle: bool = False, shards: int = 1, seed: int = 0
) -> Pipeline:
    """Returns `source` as the one type the trainer knows.

    Args:
        source: A pipeline, a source, a `datasets.Dataset` or a `datasets.IterableDataset`.
        batch_size: Records in a batch; None: the pipeline's, else 128.
        shuffle: Whether a `datasets.Dataset` is read in random order.
        shards: Number of canonical shards; 1: the pipeline's.
        seed: Seed of the keys of a new pipeline.

    Raises:
        TypeError: If `source` is none of these.
        ValueError: If `batch_size` or `shards` contradicts the pipeline's.
    """
    if isinstance(source, Pipeline):
        if shards not in (1, source.shards):
            # They decide the Pipeline's order and state, so it is not built anew with others.
            remedy = (
                f"write Pipeline(..., shards={shards})" if source.shards == 1 else "give it once"
            )
            raise ValueError(
                f"shards={shards}, but the Pipeline has shards={source.shards}: {remedy}."
            )
        if batch_size not in (None, source.batch_size):
            raise ValueError(
                f"batch_size={batch_size}, but the Pipeline has batch_size={source.batch_size}: "
                "give it once."
            )
        return source
    if isinstance(source, datasets.Dataset):
        source = HFEagerSource.from_dataset(source, shuffle=shuffle)
    if isinstance(source, datasets.IterableDataset):
        source = HFStreamingSource.from_dataset(source, shuffle=shuffle)
    if not isinstance(source, Source):
        hint = ""
        if isinstance(source, Mapping):
            whole = Source | Pipeline | datasets.Dataset | datasets.IterableDataset
            splits = any(isinstance(one, whole) for one in source.values())
            hint = "; pick a split, as in source['train']"
            if not splits:
                hint = "; of a dict of arrays write MemorySource(MemorySourceConfig(), {...})"
        raise TypeError(
            f"source is a {type(source).__name__}: expected a source such as HFEagerSource, a "
            f"Pipeline or a datasets.Dataset{hint}."
        )
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    rngs = nnx.Rngs(seed)
    return Pipeline(source=source, stages=[], batch_size=size, shards=shards, rngs=rngs)
