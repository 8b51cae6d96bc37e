"""Skipped records: those that a run leaves out, by number, from a step on."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from datarax.order.epochs import epoch_seed
from datarax.order.order import Order
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.source import Source

Skips = Sequence[tuple[int, list[int]]]
"""After how many finished steps which records are left out: JSON-able, kept in checkpoints."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Skipped:
    """Records that a run leaves out; a pytree, part of the data of a step.

    Args:
        records: Their numbers, ascending, int32 of shape `(k,)`.
        since: After how many finished steps each is left out, int32 of shape `(k,)`.
        order: The order of the source's records.
    """

    records: Any
    since: Any
    order: Order

    @classmethod
    def of(cls, skips: Skips, order: Order) -> Self:
        """Returns the records of `skips`, each from the earliest step that leaves it out."""
        since: dict[int, int] = {}
        for step, records in skips:
            since |= {record: min(step, since.get(record, step)) for record in records}
        numbers = sorted(since)
        steps = [since[number] for number in numbers]
        order = jax.tree.map(jnp.asarray, order)
        return cls(np.array(numbers, np.int32), np.array(steps, np.int32), order)

    def marks(self, t: jax.Array, epoch: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns which records of a batch are left out, bool of shape `(size,)`; traceable.

        Args:
            t: Number of finished steps, int32.
            epoch: Epoch of the batch.
            positions: Positions of its records, of shape `(size,)`.
        """
        order = self.order
        numbers = order.records(epoch, positions)
        if order.deal is not None:  # what fills up its last batch are its shards' first records
            seed = epoch_seed(order.seed, epoch) if order.shuffle else None
            numbers = order.stored(order.deal.record(positions, seed))
        place = jnp.searchsorted(self.records, numbers, method="scan_unrolled")
        place = jnp.minimum(place, len(self.records) - 1)
        return (self.records[place] == numbers) & (self.since[place] <= t)


def without(stored: Any, marked: jax.Array) -> Any:
    """Returns a batch with its first record that is kept in the place of each that is left out.

    So nothing of such a record, not even a NaN, reaches a stage, a statistic or a gradient. Where
    none is kept, there are zeros.

    Args:
        stored: Columns of shape `(size, ...)`.
        marked: Which records are left out, bool of shape `(size,)`.
    """
    first = jnp.argmin(marked)

    def one(column: jax.Array) -> jax.Array:
        record = jnp.where(marked.all(), jnp.zeros_like(column[0]), column[first])
        return jnp.where(marked.reshape(-1, *[1] * (column.ndim - 1)), record, column)

    return jax.tree.map(one, stored)


def numbers_of(records: Any, source: Source) -> tuple[int, ...]:
    """Returns the records of `Trainer(skip=records)` as ascending numbers, each once.

    Raises:
        ValueError: If the source's records have no numbers, or there are no such records.
    """
    is_list = isinstance(records, Iterable) and not isinstance(records, str | bytes)
    numbers = np.array(list(records) if is_list else records)
    if numbers.size == 0 and is_list:
        return ()
    expect_numbers(source, "skip=")
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        hint = "np.flatnonzero(mask)" if numbers.dtype == bool else "[12, 345]"
        raise ValueError(
            f"skip={records!r:.60}: expected numbers of records, integers of shape (k,), as in "
            f"skip={hint} or skip=trainer.records_at(range(4_000, 4_010))."
        )
    numbered: Any = source
    found = np.unique(numbers)
    # A view's records are rows of the source below it, whose length it does not know.
    rows = numbered.length if numbered.view is None else MAX_RECORDS
    if found[0] < 0 or found[-1] >= rows:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise ValueError(f"skip= holds {wrong}, and {source.label} has records 0 to {rows - 1}.")
    if len(found) == rows:
        raise ValueError(f"skip= holds all {rows} records of {source.label}: none is left.")
    return tuple(found.tolist())


def expect_numbers(source: Source, what: str) -> None:
    """Raises `ValueError` unless the records of a source have numbers."""
    if not source.is_indexable:
        raise ValueError(
            f"{what} needs records with numbers, and {source.label} is a "
            f"{type(source).__name__}, which gives its records in order. Leave them out before, as "
            "in dataset.filter(...) or, of a mixture's source, source.select(...); or read the "
            "data by number, with HFIndexedSource or HFEagerSource."
        )
