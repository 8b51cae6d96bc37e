"""Skipped records: those that a run leaves out, by number, from a step on."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from datarax.order.mixed import MixedOrder
from datarax.order.order import Order
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.source import Source

Record = int | tuple[int, int]
"""A record's number; of a mixture, its source's place among `Source.parts` and its number there."""

Skips = Sequence[tuple[int, list[Record]]]
"""After how many finished steps which records are left out: JSON-able, kept in checkpoints."""


@partial(jax.tree_util.register_dataclass, data_fields=["records", "first"], meta_fields=["parts"])
@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """The records of a mixture's next batches, as the host tells them; a pytree.

    Args:
        records: Part and number of each, int32 of shape `(batches, size, 2)`.
        first: The position of the first one in its epoch, `uint32`.
        parts: Number of the mixture's parts.
    """

    records: Any
    first: Any
    parts: int

    def drawn(self, epoch: Any, positions: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Returns which records of a batch are of each part, and their numbers; traceable."""
        batch = (positions[0] - self.first) // np.uint32(len(positions))
        found = jax.lax.dynamic_index_in_dim(self.records, batch, keepdims=False)
        return [(found[:, 0] == part, found[:, 1]) for part in range(self.parts)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Skipped:
    """Records that a run leaves out; a pytree, part of the data of a step.

    Args:
        records: Their numbers, ascending, int32 of shape `(k,)`, for each part of the source.
        since: After how many finished steps each is left out, int32 of shape `(k,)`, likewise.
        order: Which records a batch holds: the order of the source's, or the draws of a mixture's;
            None where it is told with each batch.
    """

    records: tuple[Any, ...]
    since: tuple[Any, ...]
    order: Order | MixedOrder | Drawn | None

    @classmethod
    def of(cls, skips: Skips, parts: int, order: Order | None) -> Self:
        """Returns the records of `skips`, each from the earliest step that leaves it out.

        Args:
            skips: The records.
            parts: Number of the source's parts.
            order: The order of its records.
        """
        since: list[dict[int, int]] = [{} for _ in range(parts)]
        for step, records in skips:
            for record in records:
                part, number = record if isinstance(record, tuple) else (0, record)
                since[part][number] = min(step, since[part].get(number, step))
        found = [sorted(its.items()) for its in since]
        numbers, steps = (
            tuple(np.array([pair[column] for pair in its], np.int32) for its in found)
            for column in (0, 1)
        )
        return cls(numbers, steps, jax.tree.map(jnp.asarray, order))

    def marks(self, t: jax.Array, epoch: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns which records of a batch are left out, bool of shape `(size,)`; traceable.

        Args:
            t: Number of finished steps, int32.
            epoch: Epoch of the batch.
            positions: Positions of its records, of shape `(size,)`.
        """
        assert self.order is not None
        marked = jnp.zeros(positions.shape, bool)
        drawn = self.order.drawn(epoch, positions)
        for records, since, (mine, numbers) in zip(self.records, self.since, drawn, strict=True):
            if len(records):
                place = jnp.searchsorted(records, numbers, method="scan_unrolled")
                place = jnp.minimum(place, len(records) - 1)
                marked |= mine & (records[place] == numbers) & (since[place] <= t)
        return marked


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


def name_of(record: Any) -> str:
    """Returns a record's number as text; of a mixture's, a pair, with its source."""
    return "{1} of source {0}".format(*record) if isinstance(record, list | tuple) else str(record)


def skips_of(saved: Any) -> list[tuple[int, list[Record]]]:
    """Returns the records that a checkpoint's JSON holds, in which a pair is a list."""
    return [(step, [tuple(r) if isinstance(r, list) else r for r in rs]) for step, rs in saved]


def numbers_of(records: Any, source: Source) -> tuple[Record, ...]:
    """Returns the records of `Trainer(skip=records)` in ascending order, each once.

    Raises:
        ValueError: If the source's records have no numbers, or there are no such records.
    """
    is_list = isinstance(records, Iterable) and not isinstance(records, str | bytes)
    given = list(records) if is_list else records
    if is_list and not given:
        return ()
    expect_numbers(source, "skip=")
    is_mixed = source.parts != (source,)
    try:
        numbers = np.array(given)
    except ValueError:  # they are of several lengths
        numbers = np.array(None)
    if numbers.ndim < 1 or numbers.shape[1:] != (2,) * is_mixed or numbers.dtype.kind not in "iu":
        expected, hint = "numbers of records, integers of shape (k,)", "[12, 345]"
        if is_mixed:
            expected, hint = "pairs of a source and its record, (k, 2)", "[(0, 12), (1, 345)]"
        elif numbers.dtype == bool:
            hint = "np.flatnonzero(mask)"
        raise ValueError(
            f"skip={records!r:.60}: expected {expected}, as in skip={hint} or "
            "skip=trainer.records_at(range(4_000, 4_010))."
        )
    pairs = numbers if is_mixed else np.stack([np.zeros_like(numbers), numbers], axis=1)
    pairs = np.unique(pairs, axis=0)
    _expect_some(pairs, source, "of source {}" * is_mixed)
    if is_mixed:
        return tuple((part, record) for part, record in pairs.tolist())
    return tuple(pairs[:, 1].tolist())


def _expect_some(pairs: np.ndarray, source: Source, of: str) -> None:
    """Raises `ValueError` unless a source has the records of `pairs`, and others."""
    left, last = 0, len(source.parts) - 1
    if pairs[0, 0] < 0 or pairs[-1, 0] > last:
        wrong = pairs[0, 0] if pairs[0, 0] < 0 else pairs[-1, 0]
        raise ValueError(f"skip= holds source {wrong}, and {source.label} has 0 to {last}.")
    for number, part in enumerate(source.parts):
        found = pairs[pairs[:, 0] == number, 1]
        # A view's records are rows of the source below it, whose length it does not know.
        rows = part.length if part.view is None else MAX_RECORDS
        wrong = found[(found < 0) | (found >= rows)]
        if len(wrong):
            its = f"{wrong[0]} {of.format(number)}".strip()
            raise ValueError(f"skip= holds {its}, and {part.label} has records 0 to {rows - 1}.")
        left += rows - len(found)
    if not left:
        raise ValueError(f"skip= holds all {len(pairs)} records of {source.label}: none is left.")


def expect_numbers(source: Source, what: str) -> None:
    """Raises `ValueError` unless the records of a source, or of a mixture, have numbers."""
    for number, part in enumerate(source.parts):
        if not part.is_indexable:
            where = f"source {number} of the mixture, " * (source.parts != (source,))
            raise ValueError(
                f"{what} needs records with numbers, and {where}{part.label}, is a "
                f"{type(part).__name__}, which gives its records in order. Leave them out before, "
                "as in dataset.filter(...), or read the data by number, with HFIndexedSource or "
                "HFEagerSource."
            )
