"""Grain's data sources as sources, and sources as Grain's."""

from typing import Any

import grain
import numpy as np
from flax import nnx

from datarax.sources.indexed import IndexedSourceBase
from datarax.sources.random_access import RandomAccessSource
from datarax.sources.source import SourceConfigBase


class GrainSource(IndexedSourceBase):
    """A source of what Grain reads by number: a `RandomAccessDataSource` or a `MapDataset`.

    Args:
        source: Anything with `__len__` and `__getitem__` that gives a record: a dict of arrays,
            numbers or text, each with one shape and dtype for all records. The bytes of an
            `ArrayRecordDataSource` are parsed by a `MapDataset` over it.
        shuffle: Whether each epoch has its own random order: a full permutation.
        seed: Seed of that order, from 0 to 2**32 - 1.
        rngs: Random streams that the source keeps.
        name: A name for messages.

    Raises:
        TypeError: If `source` cannot be read by number, or a record is no dict.

    Example:
        >>> records = grain.MapDataset.range(5).map(lambda x: {"x": x})
        >>> GrainSource(records).get_batch(3)["x"]
        Array([0, 1, 2], dtype=int32)
    """

    def __init__(
        self,
        source: Any,
        *,
        shuffle: bool = False,
        seed: int = 42,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise TypeError(
                f"source is a {type(source).__name__}: expected something with __len__ and "
                "__getitem__, such as grain.MapDataset.source(...)."
            )
        self._records = nnx.static(source)
        super().__init__(
            SourceConfigBase(),
            shuffle=shuffle,
            seed=seed,
            rngs=rngs,
            name=name or f"GrainSource({type(source).__name__})",
        )

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def read_rows(self, indices: np.ndarray) -> dict[str, Any]:
        """Returns some records, stacked."""
        records = [self._records[int(index)] for index in indices]
        if not isinstance(records[0], dict):
            raise TypeError(
                f"Record {indices[0]} is a {type(records[0]).__name__}: expected a dict, as of "
                'grain.MapDataset.source(...).map(lambda record: {"x": record}).'
            )
        return {name: [record[name] for record in records] for name in records[0]}


def as_grain(source: RandomAccessSource) -> grain.MapDataset:
    """Returns a source's records, in stored order, as a Grain data set.

    Args:
        source: An eager, memory or indexed source, or a view of one.

    Example:
        >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(5)})
        >>> [int(record["x"]) for record in as_grain(source).shuffle(seed=0)[:2]]  # doctest: +SKIP
        [3, 1]
    """
    return grain.MapDataset.source(source)
