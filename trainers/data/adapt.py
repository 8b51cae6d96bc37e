"""From whatever a trainer is given to the one type it knows, and to its batches."""

from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import jax
import numpy as np

from datarax import HFEagerSource, HFStreamingSource, Pipeline
from datarax.sources.grain_source import GrainSource
from datarax.sources.iterable_source import IterableSource
from datarax.sources.source import Source
from trainers.data.batches import Batches
from trainers.data.eager import EagerBatches
from trainers.data.stream import StreamBatches
from trainers.devices.layout import Layout

DEFAULT_BATCH_SIZE = 128
_NO_SOURCES = Mapping | list | tuple | str | bytes | np.ndarray | jax.Array


def as_pipeline(
    source: Any, batch_size: int | None, *, shuffle: bool = False, shards: int = 1
) -> Pipeline:
    """Returns `source` as the one type the trainer knows.

    Args:
        source: A pipeline, a source, a `datasets.Dataset` or a `datasets.IterableDataset`; what
            gives records by number, such as a Grain `MapDataset`; or another iterable of records,
            such as a Grain `IterDataset`.
        batch_size: Records in a batch; None: the pipeline's, else 128.
        shuffle: Whether what gives records by number is read in random order.
        shards: Number of canonical shards; 1: the pipeline's.

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
    if not isinstance(source, Source | _NO_SOURCES):
        if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
            source = GrainSource(source, shuffle=shuffle)
        elif isinstance(source, Iterable):
            source = IterableSource(source)
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
    return Pipeline(source=source, stages=[], batch_size=size, shards=shards)


def as_batches(pipeline: Pipeline, layout: Layout, *, stored_order: bool = False) -> Batches:
    """Returns the batches of a pipeline, formed by arithmetic or read ahead.

    Args:
        pipeline: The pipeline.
        layout: The devices that compute the batches.
        stored_order: Whether to go through all records in stored order, whatever the source's
            `shuffle`.

    Raises:
        ValueError: If every record of a mixture is asked for, in stored order: it never ends.
    """
    if stored_order and pipeline.source.is_endless:
        raise ValueError(
            "A mixture never ends, so it cannot be evaluated: write MixedSource(..., "
            'stop="first"), or give its sources, each by itself, as in '
            'eval_source={"a": a, "b": b}.'
        )
    kind = StreamBatches if pipeline.is_stream else EagerBatches
    return kind(pipeline, layout, stored_order=stored_order)
