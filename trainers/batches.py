"""Batches by step number: batch `t` of a pipeline, formed inside the compiled program."""

from typing import Any

import datasets
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax import HFEagerSource, Pipeline, order
from datarax.batch import has_host
from datarax.sources import EagerSourceBase

DEFAULT_BATCH_SIZE = 128


class Batches:
    """What the compiled loop reads of a pipeline.

    Args:
        pipeline: The pipeline; a clone of its source is read, so the caller's does not move.
        stored_order: Whether to read in stored order, whatever the source's `shuffle`.

    Attributes:
        data: The source's arrays, to pass to the compiled program.
        stages: Variables of the stages, carried through the loop.
        steps_per_epoch: `ceil(length / batch_size)`.
    """

    def __init__(self, pipeline: Pipeline, *, stored_order: bool = False):
        source = pipeline.source.clone()
        source.reset()
        if stored_order:
            source.set_random_order(False)
        self.length = source.length
        self.batch_size = pipeline.batch_size
        self.steps_per_epoch = order.steps_per_epoch(self.length, self.batch_size)
        self.has_host_columns = has_host(source.data)
        self._source, arrays = nnx.split(source)
        self._stages, self.stages = nnx.split(pipeline.stages)
        self.data = (arrays, pipeline.key.get_value())

    def rows(self, data: Any, stages: nnx.State, t: jax.Array):
        """Returns batch `t`, which of its records count, and the stages' variables; traceable.

        The last batch of an epoch is filled up with records of the same epoch that do not count.
        """
        arrays, key = data
        source = nnx.merge(self._source, arrays)
        epoch = t // self.steps_per_epoch
        start = (t % self.steps_per_epoch).astype(jnp.uint32) * np.uint32(self.batch_size)
        batch = source.get_batch_at(start, self.batch_size, order.epoch_key(source.seed, epoch))
        position = start + jnp.arange(self.batch_size, dtype=jnp.uint32)
        graph = nnx.merge(self._stages, stages, copy=True)
        epochs = jnp.full(self.batch_size, epoch, jnp.uint32)
        batch = graph(batch, key, epochs, position)
        return batch, position < np.uint32(self.length), nnx.state(graph)

    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of one record after the stages, without host columns."""
        batch, _, _ = jax.eval_shape(self.rows, self.data, self.stages, jnp.int32(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), dict(batch))


def as_pipeline(source: Any, batch_size: int | None, *, shuffle: bool = False) -> Pipeline:
    """Returns `source` as the one type the trainer knows.

    Args:
        source: A pipeline, an eager source or a `datasets.Dataset`.
        batch_size: Records in a batch; None: the pipeline's, else 128.
        shuffle: Whether a `datasets.Dataset` is read in random order.

    Raises:
        TypeError: If `source` is none of these.
        ValueError: If `batch_size` contradicts the pipeline's.
    """
    if isinstance(source, Pipeline):
        if batch_size not in (None, source.batch_size):
            raise ValueError(
                f"batch_size={batch_size}, but the Pipeline has batch_size={source.batch_size}: "
                "give it once."
            )
        return source
    if isinstance(source, datasets.Dataset):
        source = HFEagerSource.from_dataset(source, shuffle=shuffle)
    if not isinstance(source, EagerSourceBase):
        hint = "; pick a split, as in source['train']" * isinstance(source, dict)
        raise TypeError(
            f"source is a {type(source).__name__}: expected a source such as HFEagerSource, a "
            f"Pipeline or a datasets.Dataset{hint}."
        )
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    return Pipeline(source=source, stages=[], batch_size=size)
