"""Views: which records of a source there are, and how often, as arithmetic on positions.

A view maps a position of an epoch to a record of the source below it, inside a compiled program.
It holds tables of at most 4 bytes a record, and nothing of the epoch's length.
"""

import abc
import dataclasses
from functools import cached_property, partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax.order.cipher import avalanche
from datarax.order.keyed import keyed_permutation
from datarax.order.permutation import MAX_RECORDS, index_shuffle

_POINT_BITS = 31  # of a point on the line of summed weights
_GUIDE_BITS = 15  # a guide of 2**15 entries lies in a core's cache
_FENCED = 8  # intervals between two fences
_SPLIT_BYTES = 2**19  # XLA splits a loop over a larger table between threads: 1 us each time


@dataclasses.dataclass(frozen=True, eq=False)
class View(abc.ABC):
    """Which record of a source stands at each position of an epoch; a pytree of its tables.

    Args:
        length: Positions in an epoch.
        label: Names the view in a state and in messages, as `"fold(0, of=5)"`.
    """

    length: int
    label: str

    @property
    @abc.abstractmethod
    def is_drawn(self) -> bool:
        """Whether records come several times an epoch, or not at all."""

    @abc.abstractmethod
    def records(self, position: jax.Array, seed: Any) -> jax.Array:
        """Returns the record at each position of an epoch; traceable, elementwise.

        Args:
            position: `uint32` positions below `length`.
            seed: The epoch's seed, `uint32` that broadcasts; None: the view's stored order.

        Returns:
            `int32` array of `position`'s shape: records of the source.
        """

    def stored(self, index: np.ndarray) -> np.ndarray:
        """Returns the records at some positions of the stored order, `int64` of `index`'s shape."""
        return np.asarray(_stored(self, np.asarray(index, np.uint32))).astype(np.int64)

    def tables(self) -> list[np.ndarray]:
        """Returns the tables that say which view it is, NumPy arrays: its fingerprint is theirs."""
        return [np.asarray(table) for table in jax.tree.leaves(self)]

    @cached_property
    def placed(self) -> Self:
        """The view with its tables on the default device."""
        with jax.ensure_compile_time_eval():
            return jax.tree.map(jnp.asarray, self)

    def _checked(self) -> Self:
        if not 1 <= self.length <= MAX_RECORDS:
            raise ValueError(
                f"{self.label} has {self.length} records: expected 1 to {MAX_RECORDS}."
            )
        return self


@partial(jax.tree_util.register_dataclass, data_fields=["table"], meta_fields=["length", "label"])
@dataclasses.dataclass(frozen=True, eq=False)
class Selected(View):
    """Some records, in an order of their own; see `of`."""

    table: Any

    @classmethod
    def of(cls, records: np.ndarray, label: str) -> Self:
        """Returns the view of some records.

        Args:
            records: The records in the view's stored order, integers of shape `(length,)`.
            label: Names the view.

        Raises:
            ValueError: If there are none.
        """
        return cls(len(records), label, np.asarray(records, np.int32))._checked()

    @property
    def is_drawn(self) -> bool:
        """False: every record comes once an epoch."""
        return False

    def stored(self, index: np.ndarray) -> np.ndarray:
        """Returns the records at some positions of the stored order; see `View.stored`."""
        return np.asarray(self.table)[index].astype(np.int64)

    def records(self, position: jax.Array, seed: Any) -> jax.Array:
        """Returns the record at each position; see `View.records`."""
        if seed is not None:
            position = index_shuffle(position, num_records=self.length, seed=seed)
        return _at(self.table, position)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "starts"],
    meta_fields=["length", "label"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Balanced(View):
    """Every class equally often: position `p` is of class `p % classes`; see `of`.

    An epoch has `classes * largest` positions, `largest` being the size of the largest class. The
    records of a smaller class come several times, in another order each time, and equally often, to
    within one.
    """

    table: Any  # the records, class by class
    starts: Any  # where each class begins in the table, and where the last one ends

    @classmethod
    def of(cls, classes: np.ndarray, records: np.ndarray, label: str) -> Self:
        """Returns the view that draws the classes of some records equally often.

        Args:
            classes: The class of each record, integers of shape `(n,)`.
            records: The records, integers of that shape.
            label: Names the view.

        Raises:
            ValueError: If there are fewer than two classes.
        """
        present, number, sizes = np.unique(classes, return_inverse=True, return_counts=True)
        if len(present) < 2:
            raise ValueError(
                f"{label}: all {len(classes)} records are of one class, {present[:1].tolist()}, so "
                "there is nothing to balance."
            )
        table = np.asarray(records, np.int32)[np.argsort(number, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
        return cls(len(present) * int(sizes.max()), label, table, starts)._checked()

    @property
    def is_drawn(self) -> bool:
        """True: records of smaller classes come several times."""
        return True

    def records(self, position: jax.Array, seed: Any) -> jax.Array:
        """Returns the record at each position; see `View.records`."""
        position = jnp.asarray(position).astype(jnp.uint32)
        classes = np.uint32(len(self.starts) - 1)
        number, draw = position % classes, position // classes
        start = _at(self.starts, number)
        size = _at(self.starts, number + np.uint32(1)) - start
        turn = draw // size
        index = draw - turn * size
        if seed is not None:
            # A class has its own permutation in each turn: the key names seed, class and turn.
            key = avalanche(jnp.asarray(seed).astype(jnp.uint32) ^ avalanche(number + np.uint32(1)))
            key = jnp.broadcast_to(avalanche(key + turn), index.shape)
            index = keyed_permutation(index, size, key)
        return _at(self.table, start + index)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["guide", "ends", "fences", "table"],
    meta_fields=["length", "label", "shift", "low_bits", "steps"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(View):
    """Every record as often as its weight says, to within one in an epoch; see `of`.

    The weights are the lengths of intervals on a line. An epoch has evenly spaced points on the
    line, and each draws the record whose interval it lies in ("systematic sampling": Madow and
    Madow, 1944). In another epoch the points lie elsewhere, so that a record whose share is less
    than one draw an epoch is drawn in some epochs.
    """

    guide: Any  # how many intervals end below each multiple of 2**low_bits
    ends: Any  # the lowest bits of the intervals' ends
    fences: Any  # every eighth end once more, None where the ends are few
    table: Any  # the records, None where they are 0 to n - 1
    shift: int  # points are 2**shift apart
    low_bits: int
    steps: int  # of the binary search for a fence between two entries of the guide

    @classmethod
    def of(cls, weights: np.ndarray, length: int, records: np.ndarray | None, label: str) -> Self:
        """Returns the view that draws some records by their weights.

        Args:
            weights: A weight a record, numbers of shape `(n,)`; only their proportions count.
            length: Draws in an epoch.
            records: The records, integers of that shape; None: records 0 to n - 1.
            label: Names the view.

        Raises:
            ValueError: If a weight is negative or not finite, or all are 0.
        """
        weights = np.asarray(weights, np.float64)
        wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
        if len(wrong):
            raise ValueError(
                f"{label}: the weight of record {wrong[0]} is {weights[wrong[0]]}; expected finite "
                "numbers that are not negative."
            )
        if not weights.any():
            raise ValueError(f"{label}: all {len(weights)} weights are 0, so no record is drawn.")
        # An interval is measured in parts of the distance of two points: 31 bits are for both.
        shift = _POINT_BITS - max(int(length) - 1, 1).bit_length()
        # The largest is scaled to 1, by a power of two, which is exact: the sum stays finite.
        ends = np.cumsum(np.ldexp(weights, -np.frexp(weights.max())[1]))
        ends = np.rint(ends / ends[-1] * length * 2.0**shift).astype(np.int64)
        # The guide tells by a point's highest bits where to look, so an end needs its lowest only.
        guided = _GUIDE_BITS if len(weights) >= 2**_GUIDE_BITS else 0
        low_bits = _POINT_BITS - guided
        guide = np.searchsorted(ends, np.arange(2**guided + 1, dtype=np.int64) << low_bits)
        low = (ends & (2**low_bits - 1)).astype(np.uint16 if low_bits <= 16 else np.uint32)
        return cls(
            int(length),
            label,
            guide.astype(np.uint16 if len(weights) < 2**16 else np.uint32),
            low,
            low[_FENCED - 1 :: _FENCED].copy() if low.nbytes > _SPLIT_BYTES else None,
            None if records is None else np.asarray(records, np.int32),
            shift,
            low_bits,
            int(np.diff(guide // _FENCED).max()).bit_length(),
        )._checked()

    @property
    def is_drawn(self) -> bool:
        """True: records come as often as their weights say."""
        return True

    def records(self, position: jax.Array, seed: Any) -> jax.Array:
        """Returns the record at each position; see `View.records`."""
        offset = np.uint32(2**self.shift // 2)
        if seed is not None:
            seed = jnp.asarray(seed).astype(jnp.uint32)
            offset = avalanche(seed) & np.uint32(2**self.shift - 1)
            position = index_shuffle(position, num_records=self.length, seed=seed)
        point = (jnp.asarray(position).astype(jnp.uint32) << np.uint32(self.shift)) + offset
        index = self._interval(point)
        return index.astype(jnp.int32) if self.table is None else _at(self.table, index)

    def tables(self) -> list[np.ndarray]:
        """Returns the tables that say which view it is; see `View.tables`."""
        guide = np.asarray(self.guide).astype(np.uint32)
        return [guide, *(np.asarray(x) for x in (self.ends, self.table) if x is not None)]

    def _interval(self, point: jax.Array) -> jax.Array:
        """Returns in which interval each point lies: how many intervals end at or below it."""
        high = point >> np.uint32(self.low_bits)
        low = (point & np.uint32(2**self.low_bits - 1)).astype(self.ends.dtype)
        start, stop = (_at(self.guide, high + np.uint32(i)).astype(jnp.uint32) for i in (0, 1))
        each, last = np.uint32(_FENCED), np.uint32(len(self.ends) - 1)

        def step(i, fence):
            more = fence + (np.uint32(2**self.steps // 2) >> i.astype(jnp.uint32))
            fits = more <= stop // each
            number = jnp.where(fits, more, np.uint32(1)) - np.uint32(1)
            if self.fences is None:
                end = _at(self.ends, jnp.minimum(number * each + (each - np.uint32(1)), last))
            else:
                end = _at(self.fences, number)
            return jnp.where(fits & (end <= low), more, fence)

        fence = lax.fori_loop(0, self.steps, step, start // each)
        below = jnp.maximum(start, fence * each)
        # The rest at once: a step further in the large table would take as long as all of them.
        index = below[..., None] + jnp.arange(_FENCED - 1, dtype=jnp.uint32)
        ends = _at(self.ends, jnp.minimum(index, last))
        ended = (index < stop[..., None]) & (ends <= low[..., None])
        return below + ended.sum(axis=-1, dtype=jnp.uint32)


@jax.jit
def _stored(view: View, index: jax.Array) -> jax.Array:
    return view.records(index, None)


def _at(table: Any, index: Any) -> jax.Array:
    # Indices come from arithmetic that never leaves the range: no clamping needed.
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")
