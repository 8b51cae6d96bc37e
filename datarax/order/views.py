"""Views: which records of a source there are, and how often, as arithmetic on positions.

A view maps a position of an epoch to a record of the source below it, inside a compiled program.
It holds a table of at most 4 bytes a record, and nothing of the epoch's length.
"""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax.order.cipher import avalanche
from datarax.order.keyed import keyed_permutation
from datarax.order.permutation import MAX_RECORDS, index_shuffle

_POINT_BITS = 31  # of a point on the line of summed weights
_GUIDE_BITS = 15  # a guide of 2**15 entries lies in a core's cache


class View(abc.ABC):
    """Which record of a source stands at each position of an epoch.

    Attributes:
        length: Positions in an epoch.
        label: Names the view in a state and in messages.
        tables: NumPy arrays that `records` reads; a compiled program takes them as arguments.
    """

    def __init__(self, length: int, label: str, tables: dict[str, np.ndarray]):
        if not 1 <= length <= MAX_RECORDS:
            raise ValueError(f"{label} has {length} records: expected 1 to {MAX_RECORDS}.")
        self.length, self.label, self.tables = int(length), label, tables

    @abc.abstractmethod
    def records(self, tables: dict[str, Any], position: jax.Array, seed: Any) -> jax.Array:
        """Returns the record at each position of an epoch; traceable, elementwise.

        Args:
            tables: The view's `tables`, on any device.
            position: `uint32` positions below `length`.
            seed: The epoch's seed, `uint32` that broadcasts; None: the view's stored order.

        Returns:
            `int32` array of `position`'s shape: records of the source.
        """

    def stored(self, index: np.ndarray) -> np.ndarray:
        """Returns the records at some positions of the stored order, `int32`."""
        return np.asarray(_stored(self.records, self.tables, np.asarray(index, np.uint32)))


class Selected(View):
    """Some records, in an order of their own.

    Args:
        records: The records, integers of shape `(length,)`.
        label: Names the view.
    """

    def __init__(self, records: np.ndarray, label: str):
        super().__init__(len(records), label, {"records": np.asarray(records, np.int32)})

    def records(self, tables: dict[str, Any], position: jax.Array, seed: Any) -> jax.Array:
        if seed is not None:
            position = index_shuffle(position, num_records=self.length, seed=seed)
        return _at(tables["records"], position)


class Balanced(View):
    """Every class equally often: position `p` is of class `p % classes`.

    An epoch has `classes * largest` positions, `largest` being the size of the largest class. The
    records of a smaller class come several times, in another order each time, and equally often, to
    within one.

    Args:
        classes: The class of each record, integers of shape `(n,)`.
        records: The records of the source, integers of that shape.
        label: Names the view.

    Raises:
        ValueError: If there are fewer than two classes.
    """

    def __init__(self, classes: np.ndarray, records: np.ndarray, label: str):
        present, number, sizes = np.unique(classes, return_inverse=True, return_counts=True)
        if len(present) < 2:
            raise ValueError(
                f"{label}: there is one class, {present[0]!r}, in {len(classes)} records, so there "
                "is nothing to balance."
            )
        self._classes = len(present)
        tables = {
            "records": np.asarray(records, np.int32)[np.argsort(number, kind="stable")],
            "starts": np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32),
        }
        super().__init__(self._classes * int(sizes.max()), label, tables)

    def records(self, tables: dict[str, Any], position: jax.Array, seed: Any) -> jax.Array:
        number = position % np.uint32(self._classes)
        draw = position // np.uint32(self._classes)
        start = _at(tables["starts"], number)
        size = _at(tables["starts"], number + np.uint32(1)) - start
        turn = draw // size
        index = draw - turn * size
        if seed is not None:
            # A class has its own permutation in each turn: the key names seed, class and turn.
            key = avalanche(jnp.asarray(seed, jnp.uint32) ^ avalanche(number + np.uint32(1)))
            key = jnp.broadcast_to(avalanche(key + turn), index.shape)
            index = keyed_permutation(index, size, key)
        return _at(tables["records"], start + index)


class Weighted(View):
    """Every record as often as its weight says, to within one in an epoch.

    The weights are the lengths of intervals on a line. An epoch has evenly spaced points on the
    line, and each draws the record whose interval it lies in ("systematic sampling": Madow and
    Madow, 1944). In another epoch the points lie elsewhere, so that a record whose share is less
    than one draw an epoch is drawn in some epochs.

    Args:
        weights: A weight a record, numbers of shape `(n,)`; only their proportions count.
        length: Draws in an epoch.
        records: The records of the source, integers of that shape; None: records 0 to n - 1.
        label: Names the view.

    Raises:
        ValueError: If a weight is negative or not finite, or all are 0.
    """

    def __init__(self, weights: np.ndarray, length: int, records: np.ndarray | None, label: str):
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
        self._shift = _POINT_BITS - max(int(length) - 1, 1).bit_length()
        ends = np.cumsum(weights)
        ends = np.rint(ends / ends[-1] * length * 2.0**self._shift).astype(np.int64)
        # The guide tells by a point's highest bits where to look, so an end needs its lowest only.
        guided = _GUIDE_BITS if len(weights) >= 2**_GUIDE_BITS else 0
        self._low_bits = _POINT_BITS - guided
        guide = np.searchsorted(ends, np.arange(2**guided + 1, dtype=np.int64) << self._low_bits)
        self._steps = int(np.diff(guide).max()).bit_length()
        low = ends & (2**self._low_bits - 1)
        tables = {
            "guide": guide.astype(np.uint32),
            "ends": low.astype(np.uint16 if self._low_bits <= 16 else np.uint32),
        }
        if records is not None:
            tables["records"] = np.asarray(records, np.int32)
        super().__init__(length, label, tables)

    def records(self, tables: dict[str, Any], position: jax.Array, seed: Any) -> jax.Array:
        offset = np.uint32(2**self._shift // 2)
        if seed is not None:
            offset = avalanche(jnp.asarray(seed, jnp.uint32)) & np.uint32(2**self._shift - 1)
            position = index_shuffle(position, num_records=self.length, seed=seed)
        point = (position.astype(jnp.uint32) << np.uint32(self._shift)) + offset
        index = self._interval(tables, point)
        return _at(tables["records"], index) if "records" in tables else index.astype(jnp.int32)

    def _interval(self, tables: dict[str, Any], point: jax.Array) -> jax.Array:
        """Returns in which interval each point lies: how many intervals end at or below it."""
        high = point >> np.uint32(self._low_bits)
        low = point & np.uint32(2**self._low_bits - 1)
        stop = _at(tables["guide"], high + np.uint32(1))

        def step(i, below):
            more = below + (np.uint32(1) << (np.uint32(self._steps - 1) - i.astype(jnp.uint32)))
            fits = more <= stop
            end = _at(tables["ends"], jnp.where(fits, more, np.uint32(1)) - np.uint32(1))
            return jnp.where(fits & (end.astype(jnp.uint32) <= low), more, below)

        return lax.fori_loop(0, self._steps, step, _at(tables["guide"], high))


@functools.partial(jax.jit, static_argnums=0)
def _stored(records, tables, position):
    return records(tables, position, None)


def _at(table: Any, index: jax.Array) -> jax.Array:
    # Indices come from arithmetic that never leaves the range: no clamping needed.
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")
