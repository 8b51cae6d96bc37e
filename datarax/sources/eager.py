"""The base of sources that hold all their columns, and index them in compiled programs."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.fingerprint import fingerprint_arrays
from datarax.columns.host import HostColumn, is_host, is_traced
from datarax.columns.rows import (
    absent_of,
    common_length,
    gather,
    has_host,
    host_of,
    with_host_rows,
    without_host,
)
from datarax.errors import expect_between, expect_rows
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.closed_over import note_closed_over
from datarax.sources.module import DataraxModuleConfig
from datarax.sources.placement import Placements, to_default_device
from datarax.sources.random_access import RandomAccessSource


class EagerSourceBase(RandomAccessSource):
    """A source that holds all its columns, and hands out any batch of them by arithmetic.

    Subclasses load a dict of columns and pass it on. Order, position and state are those of
    `RandomAccessSource`.

    Args:
        config: The subclass's configuration.
        data: Nested dict of columns: arrays of shape `(n, ...)` or `HostColumn`s of shape `(n,)`.
            Or a function that returns it, called when a column is first asked for; `length` and
            `fingerprint` must be given then.
        length: The number of records, where `data` is a function.
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order, from 0 to 2**32 - 1.
        fingerprint: Fingerprint of the data's content; computed from `data` where None.
        revision: The version that the data was resolved to, such as a commit of the Hub; part of
            the state.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If the data is empty or its columns differ in length.

    Example:
        >>> class Squares(EagerSourceBase):
        ...     def __init__(self, n):
        ...         x = np.arange(n, dtype=np.float32)
        ...         super().__init__(SourceConfigBase(), {"x": x, "y": x**2})
        >>> Squares(10).get_batch(3)["y"]
        Array([0., 1., 4.], dtype=float32)
    """

    is_traceable: ClassVar[bool] = True

    def __init__(
        self,
        config: DataraxModuleConfig,
        data: dict[str, Any] | Callable[[], dict[str, Any]],
        *,
        length: int | None = None,
        shuffle: bool = False,
        seed: int = 42,
        fingerprint: str | None = None,
        revision: str | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        columns, load = ({}, data) if callable(data) else (data, dict)
        super().__init__(
            config,
            length=common_length(columns) if length is None else length,
            shuffle=shuffle,
            seed=seed,
            fingerprint=fingerprint or fingerprint_arrays(columns),
            revision=revision,
            rngs=rngs,
            name=name,
        )
        # A dict that all clones share, so that columns are loaded and placed once.
        self._columns = nnx.data(columns)
        self._load = nnx.static(load)
        self._placements = nnx.static(Placements())

    # --- the data --------------------------------------------------------------------------------

    @property
    def columns(self) -> dict[str, Any]:
        """All columns where they are: NumPy arrays until `data` is touched, then JAX arrays."""
        if not self._columns:
            self._columns.update(self._load())
        return self._columns

    @property
    def data(self) -> dict[str, Any]:
        """All columns: JAX arrays of shape `(length, ...)`, and `HostColumn`s.

        They move to the default device when this is first touched; until then they are host memory.
        """
        to_default_device(self.columns)
        return self._columns

    def host_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some rows of all columns; see `RandomAccessSource.host_rows`."""
        # A gather of JAX takes the last row for one that is past the end.
        expect_rows(np.asarray(rows), common_length(self.columns))

        def some(column: Any) -> Any:
            return column.select(rows) if is_host(column) else np.asarray(column[rows])

        return jax.tree.map(some, self.columns, is_leaf=is_host)

    def _column(self, name: str) -> Any:
        column = self.columns[name]
        if isinstance(column, dict) or is_host(column) or self.view is None:
            return column
        return np.asarray(column)[self.stored_records(np.arange(self.length))]

    def host_columns(self) -> tuple[HostColumn, ...]:
        """Returns the columns that are no arrays, nested ones too."""
        return host_of(self.columns)

    def collect_to_array(self, sharding: jax.sharding.Sharding | None = None) -> dict[str, Any]:
        """Returns all array columns, placed as `sharding` says.

        Args:
            sharding: Where to place them; None: the default device, without another copy.
        """
        source = self if sharding is None else self.placed_on(sharding)
        columns = without_host(source.data)
        if self.view is None:
            return columns
        return gather(columns, jnp.asarray(self.stored_records(np.arange(self.length)), jnp.int32))

    def placed_on(self, sharding: jax.sharding.Sharding) -> Self:
        """Returns a clone whose array columns are on the devices of `sharding`.

        A device that holds a column already is not given it again, neither by a second call. Where
        the default device holds a whole column there, this source gives up its host memory.

        Args:
            sharding: Where to place them; its devices may belong to several processes.
        """
        clone = self.clone()
        placed, own = self._placements.of(self.columns, sharding)
        clone._columns = nnx.data(placed)
        self._columns.update(own)
        return clone

    def element_spec(self) -> dict[str, Any]:
        """Returns the shape and dtype of one record; see `Source.element_spec`."""
        return jax.tree.map(
            lambda column: jax.ShapeDtypeStruct(column.shape[1:], column.dtype),
            self.columns,
            is_leaf=is_host,
        )

    # --- batches ---------------------------------------------------------------------------------

    def get_batch_at(
        self, start: int | jax.Array, size: int, key: jax.Array | None = None
    ) -> dict[str, Any]:
        """Returns `size` records from position `start` of the epoch that `key` names.

        Changes nothing, traces under `jit`, `scan`, `while_loop` and `vmap`, and costs O(size)
        whatever the length. Past the end it wraps in the same permutation.

        Args:
            start: Position within the epoch, concrete or traced.
            size: Number of records, a Python int.
            key: PRNG key of the epoch: epoch `e` is `jax.random.key((seed + e) % 2**32)`. Needed in
                random order, ignored in stored order.

        Returns:
            Dict of arrays of shape `(size, ...)`. Host columns are part of it, as object arrays of
            shape `(size,)`, unless something is traced; then asking for one raises.

        Raises:
            ValueError: If the order is random and `key` is None, or `size` is not positive.

        Example: the source is an argument of the compiled function, or its data is a constant.
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
            >>> jax.jit(lambda source, t: source.get_batch_at(4 * t, 4))(source, 2)["x"]
            Array([8, 9, 0, 1], dtype=int32)
        """
        expect_between("size", size, 1, MAX_RECORDS)
        seed = self._key_seed(key)
        order = dataclasses.replace(self.order, seed=seed)
        if isinstance(start, (int, np.integer)):
            start = int(start) % self.length
        columns = without_host(self.data)
        if is_traced(start, seed, *jax.tree.leaves(columns)):
            note_closed_over(self.label, columns, start, seed)
            return gather(columns, order.window(0, start, size), absent_of(self.host_columns()))
        return self._with_host_rows(*_window(columns, order, start, size))

    def take(self, count: int, step: int) -> Iterator[dict[str, Any]]:
        """Yields the next `count` records, and some more: see `Source.take`."""
        if count:
            yield self._rows(*self.position(), -(-count // step) * step)
            self.skip(count)
            self._counts.applied += count

    def _rows(self, epoch: int, index: int, size: int) -> dict[str, Any]:
        columns = without_host(self.data)
        return self._with_host_rows(*_run_on(columns, self.order, epoch, index, size))

    def _with_host_rows(self, rows: dict[str, Any], records: jax.Array) -> dict[str, Any]:
        if not has_host(self.columns):
            return rows
        return with_host_rows(rows, self.columns, np.asarray(records))

    def clone(self) -> Self:
        """Returns a source at the same position that shares the arrays and moves on its own."""
        clone = super().clone()
        clone._columns = nnx.data(self._columns)  # the same dict: placed once for both
        return clone


# --- pure parts ------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="size")
def _window(columns, order, start, size):
    """Returns the rows at positions of the order's epoch 0, and their numbers."""
    records = order.window(0, start, size)
    return gather(columns, records), records


@partial(jax.jit, static_argnames="size")
def _run_on(columns, order, epoch, index, size):
    """Returns the rows from a position on into the next epochs, and their numbers."""
    records = order.run_on(epoch, index, size)
    return gather(columns, records), records
