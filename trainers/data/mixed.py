"""The rows of a mixture of eager sources on the devices of a run, and those of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.columns.rows import absent_of, explained, without_host
from datarax.order.mixed import MixedOrder
from datarax.sources.mixed import MixedSource
from trainers.devices.layout import Layout

_DRAWS = 2**19  # of a span, whose tables are made in about 10 ms


class MixedRows:
    """Every device holds the rows of all sources, once each, and gathers its part of a batch.

    Which source each draw is of, the host tells for a span of batches at a time.

    Args:
        source: The mixture, of eager sources and their views.
        batch_size: Records in a batch.
        steps: Number of batches in an epoch, None where it never ends.
        layout: The devices.

    Attributes:
        data: The array columns of each source, placed; those of several views stand there once.
    """

    def __init__(self, source: MixedSource, batch_size: int, steps: int | None, layout: Layout):
        self._source, self._size, self._steps, self._layout = source, batch_size, steps, layout
        below = {id(part.columns): part for part in source.parts}
        self._groups = [list(below).index(id(part.columns)) for part in source.parts]
        if layout.replicated is not None:
            below = {key: part.placed_on(layout.replicated) for key, part in below.items()}
        self.data = tuple(without_host(part.data) for part in below.values())
        self.host = {column.name: column for column in source.host_columns()}
        self._orders = layout.replicate(
            tuple(jax.tree.map(jnp.asarray, part.order) for part in source.parts)
        )
        self._absent = absent_of(source.host_columns())
        self._capacity = max(1, _DRAWS // batch_size)  # batches of a span
        if steps is not None and steps <= self._capacity:
            self._capacity -= self._capacity % steps
        self._first: int | None = None
        self._order: Any = None

    def span(self, t: int) -> tuple[MixedOrder, int]:
        """Returns the order of the batches around batch `t`, and the end of these."""
        begin, end = 0, t + self._capacity
        if self._steps is not None and self._steps > self._capacity:  # spans end with an epoch
            begin = t - t % self._steps
            end = begin + self._steps
        first = t - (t - begin) % self._capacity
        end = min(end, first + self._capacity)
        if first != self._first:
            self._order, self._first = self._layout.replicate(self._made(first, end)), first
        return self._order, end

    def read(
        self, data: Any, order: MixedOrder, epoch: jax.Array, start: jax.Array, size: int
    ) -> tuple[Any, jax.Array]:
        """Returns the rows at `size` positions from `start` on, and these positions; traceable.

        Past the epoch's end the records of its last batch come again.
        """
        share = size // self._layout.parts

        def part(number, data, epoch, start):
            groups, order = data
            window = order.window(epoch, start + jnp.uint32(number * share), share)
            return explained(self._gathered(groups, window), self._absent)

        rows = self._layout.each(part, (data, order), epoch, start)
        return rows, start + jnp.arange(size, dtype=jnp.uint32)

    def in_order(self, batch: Any) -> Any:
        """Returns the rows of a batch in the order of their positions."""
        return batch

    def records(self, epoch: int, start: int, size: int) -> np.ndarray:
        """Returns the source of each of a batch's records, and its number, of shape `(size, 2)`."""
        return self._source.records_at(epoch, filled_up(start, size, self._source.length))

    def values(self, name: str) -> list[np.ndarray]:
        """Returns the values of a column that may be drawn, source by source."""
        found = []
        for group, part in zip(self._groups, self._source.parts, strict=True):
            column = np.asarray(self.data[group][name].addressable_shards[0].data)
            rows = np.unique(part.stored_records(np.arange(part.length)))
            found.append(column[rows])
        return found

    def _gathered(self, groups: tuple[Any, ...], window: list) -> Any:
        """Returns the rows of a window of draws."""
        records: list[Any] = [np.int32(0)] * len(groups)
        drawn: list[Any] = [np.bool_(False)] * len(groups)
        for group, (mine, found) in zip(self._groups, window, strict=True):
            # Of other groups' draws record 0 is read, which stays in the cache.
            records[group] = jnp.where(mine, found, records[group])
            drawn[group] = drawn[group] | mine

        def one(*columns: jax.Array) -> jax.Array:
            rows, *others = (
                column.at[index].get(mode="promise_in_bounds")
                for column, index in zip(columns, records, strict=True)
            )
            for mine, other in zip(drawn[1:], others, strict=True):
                rows = jnp.where(mine.reshape(-1, *[1] * (rows.ndim - 1)), other, rows)
            return rows

        return jax.tree.map(one, *groups)

    def _made(self, first: int, end: int) -> MixedOrder:
        """Returns the order of batches `first` to `end - 1`."""
        size, length, steps = self._size, self._source.length, self._steps
        batch = np.arange(first, end)
        epoch, step = divmod(batch, steps) if steps else (np.zeros_like(batch), batch)
        draws = (epoch * (length or 0))[:, None] + filled_up(step * size, size, length)
        part, rank = self._source.drawn(draws.reshape(-1))
        lengths = np.array([source.length for source in self._source.parts])
        ranks = [rank[part == number] for number in range(len(lengths))]
        begins = np.array([its.min() if len(its) else 0 for its in ranks])
        tables = tuple(np.zeros(self._capacity * size, kind) for kind in (np.uint8, np.uint32))
        tables[0][: len(part)], tables[1][: len(part)] = part, rank - begins[part]
        where = epoch[0], (step[0] * size) % 2**32
        return MixedOrder(
            self._orders,
            *tables,
            *(x.astype(np.uint32) for x in divmod(begins, lengths)),
            *(np.uint32(x) for x in where),
            stride=(steps or 0) * size,
        )


def filled_up(start: Any, size: int, length: int | None) -> np.ndarray:
    """Returns the positions of batches; an epoch's last one is filled up with its own records.

    Args:
        start: The first position of each batch, integers of shape `(...)`.
        size: Records in a batch.
        length: Draws in an epoch, None where it never ends.

    Returns:
        `int64` of shape `(..., size)`.
    """
    start, row = np.asarray(start, np.int64)[..., None], np.arange(size)
    if length is not None:
        row = row % np.clip(length - start, 1, size)
    return start + row
