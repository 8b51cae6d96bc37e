"""The base of sources that hold all their columns: what holds for every one."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax import order
from datarax.batch import gather, has_host, with_host_rows
from datarax.errors import expect_between
from datarax.fingerprint import fingerprint_arrays
from datarax.host import HostColumn
from datarax.module import DataraxModule, DataraxModuleConfig, expect_dict

STATE_VERSION = 1
_ITERATION_BLOCK = 256  # rows gathered at once while iterating record by record


@dataclasses.dataclass(frozen=True)
class SourceConfigBase(DataraxModuleConfig):
    """Base of the sources' configurations."""


class EagerSourceBase(DataraxModule):
    """A source that holds all its columns, and hands out any batch of them by arithmetic.

    Subclasses load a dict of columns and pass it on; order, batches, iteration and state are here.

    Args:
        config: The subclass's configuration.
        data: Nested dict of columns: arrays of shape `(n, ...)` or `HostColumn`s of shape `(n,)`.
            Or a function that returns it, called when a column is first asked for; `length` and
            `fingerprint` must be given then.
        length: The number of records, where `data` is a function.
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order, from 0 to 2**32 - 1.
        fingerprint: Fingerprint of the data's content; computed from `data` where None.
        revision: What the data was resolved to, such as a commit of the Hub; part of the state.
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
        super().__init__(config, rngs=rngs, name=name)
        expect_between("seed", seed, 0, 2**32 - 1)
        # A dict that all clones share, so that columns are loaded and placed once.
        self._columns = nnx.data({} if callable(data) else data)
        self._load = nnx.static(data if callable(data) else None)
        self._placements = nnx.static(_Placements())
        self.length = _common_length(data) if length is None else length
        self.index = nnx.Variable(0)
        self.epoch = nnx.Variable(0)
        self._shuffle = shuffle
        self._seed = seed
        self.fingerprint = fingerprint or fingerprint_arrays(data)
        self.revision = revision
        self._resumes = nnx.Variable(False)  # whether a `for` goes on where `set_state` put it

    # --- the data --------------------------------------------------------------------------------

    @property
    def columns(self) -> dict[str, Any]:
        """All columns where they are: NumPy arrays until `data` is touched, then JAX arrays."""
        if not self._columns:
            self._columns.update(self._load())
        return self._columns

    @property
    def data(self) -> dict[str, Any]:
        """All columns: JAX arrays of shape `(length, ...)`, and `HostColumn`s for what cannot be.

        They move to the default device when this is first touched; until then they are host memory.
        """
        _place(self.columns)
        return self._columns

    def host_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some rows of all columns: NumPy arrays of shape `(k, ...)`, and host columns.

        Args:
            rows: Row numbers, integers of shape `(k,)`.
        """

        def some(column):
            return column.select(rows) if _is_host(column) else np.asarray(column[rows])

        return jax.tree.map(some, self.columns, is_leaf=_is_host)

    def host_columns(self) -> tuple[HostColumn, ...]:
        """Returns the columns that are no arrays, nested ones too."""
        nodes = jax.tree.leaves(self.columns, is_leaf=_is_host)
        return tuple(node for node in nodes if _is_host(node))

    def collect_to_array(self, sharding: jax.sharding.Sharding | None = None) -> dict[str, Any]:
        """Returns all array columns, placed as `sharding` says.

        Args:
            sharding: Where to place them; None: the default device, without another copy.
        """
        source = self if sharding is None else self.placed_on(sharding)
        return _without_host(source.data)

    def placed_on(self, sharding: jax.sharding.Sharding) -> Self:
        """Returns a clone whose array columns are on the devices of `sharding`.

        A device that holds a column already is not given it again, neither by a second call.

        Args:
            sharding: Where to place them; its devices may belong to several processes.
        """
        if sharding not in self._placements:
            self._placements[sharding] = _placed(self.columns, sharding)
        clone = self.clone()
        clone._columns = nnx.data(self._placements[sharding])
        return clone

    def __len__(self) -> int:
        return self.length

    def element_spec(self) -> dict[str, Any]:
        """Returns the shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`.

        A host column's is `ShapeDtypeStruct((), numpy.dtype(object))`.
        """
        return jax.tree.map(
            lambda column: jax.ShapeDtypeStruct(column.shape[1:], column.dtype),
            self.columns,
            is_leaf=_is_host,
        )

    # --- order -----------------------------------------------------------------------------------

    @property
    def is_random_order(self) -> bool:
        """Whether each epoch has its own random order."""
        return self._shuffle

    @property
    def seed(self) -> int:
        """Seed of the order; epoch `e` follows `(seed + e) % 2**32`."""
        return self._seed

    def set_random_order(self, enabled: bool) -> None:
        """Sets whether each epoch has its own random order, from the next batch on."""
        self._shuffle = bool(enabled)

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the start of epoch 0.

        Args:
            seed: A new seed of the order; None keeps the present one.

        Raises:
            ValueError: If `seed` is not from 0 to 2**32 - 1.
        """
        if seed is not None:
            expect_between("seed", seed, 0, 2**32 - 1)
            self._seed = int(seed)
        self.move(0, 0)
        self._resumes.set_value(False)

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

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
            >>> jax.jit(lambda t: source.get_batch_at(4 * t, 4))(2)["x"]
            Array([8, 9, 0, 1], dtype=int32)
        """
        expect_between("size", size, 1, order.MAX_RECORDS)
        if key is None and self.is_random_order:
            raise ValueError(
                f"{self._label()} is in random order, and get_batch_at keeps no epoch: write "
                "key=jax.random.key(seed + epoch), or set_random_order(False)."
            )
        seed = order.key_seed(key) if self.is_random_order else None
        if isinstance(start, (int, np.integer)):
            start = int(start) % self.length
        if _traced(start, seed, *jax.tree.leaves(self.columns)):
            records = order.window(start, size, num_records=self.length, seed=seed)
            return gather(self.data, records)
        rows, records = _window(self.data, start, seed, size, self.length)
        return self._with_host_rows(rows, records)

    def get_batch(self, batch_size: int, key: jax.Array | None = None) -> dict[str, Any]:
        """Returns the next `batch_size` records, running on into the next epoch.

        Args:
            batch_size: Number of records.
            key: If given, `get_batch_at(0, batch_size, key)` is returned and nothing moves.

        Returns:
            Dict of arrays of shape `(batch_size, ...)`, and object arrays for host columns.

        Raises:
            TypeError: If the source's position is traced.
        """
        if key is not None:
            return self.get_batch_at(0, batch_size, key)
        expect_between("batch_size", batch_size, 1, order.MAX_RECORDS)
        if _traced(self.epoch.get_value(), self.index.get_value()):
            raise TypeError(
                f"get_batch moves {self._label()}, which a compiled function cannot: write "
                "get_batch_at(start, size, key) there, or Pipeline(...).step()."
            )
        epoch, index = self._position()
        batch = self._rows(epoch, index, batch_size)
        epochs, index = divmod(index + batch_size, self.length)
        self.move(epoch + epochs, index)
        self._applied.set_value(self._applied.get_value() + batch_size)
        return batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the records of one epoch.

        The first `for` is epoch 0; later ones go on where `set_state` set the position, and
        otherwise begin the next epoch. The position moves with the loop.
        """
        epoch, index = self.begin_epoch()
        while index < self.length:
            size = min(_ITERATION_BLOCK, self.length - index)
            for record in _records(self._rows(epoch, index, size), size):
                index += 1
                self.move(*((epoch, index) if index < self.length else (epoch + 1, 0)))
                self._applied.set_value(self._applied.get_value() + 1)
                yield record

    def order_seed(self) -> np.uint32 | None:
        """Returns the seed of the random order, or None for the stored order."""
        return np.uint32(self._seed) if self.is_random_order else None

    def _rows(self, epoch, index, size):
        seed = self.order_seed()
        rows, records = _run_on(self.data, epoch, index, seed, size, self.length)
        return self._with_host_rows(rows, records)

    def _with_host_rows(self, rows, records):
        if not has_host(self.columns):
            return rows
        return with_host_rows(rows, self.columns, np.asarray(records))

    # --- position and state ----------------------------------------------------------------------

    def _position(self) -> tuple[int, int]:
        return int(self.epoch.get_value()), int(self.index.get_value())

    def begin_epoch(self) -> tuple[int, int]:
        """Returns the (epoch, index) at which a `for` begins: see `__iter__`."""
        epoch, index = self._position()
        if index and not self._resumes.get_value():
            epoch, index = epoch + 1, 0
        self._resumes.set_value(False)
        return epoch, index

    def move(self, epoch: int | jax.Array, index: int | jax.Array) -> None:
        """Sets the position: the next record is the one at `index` of `epoch`."""
        self.epoch.set_value(epoch)
        self.index.set_value(index)

    def get_state(self) -> dict[str, Any]:
        """Returns the position, the order and the data's fingerprint: JSON-able, never the data."""
        epoch, index = self._position()
        state = {
            "version": STATE_VERSION,
            "epoch": epoch,
            "index": index,
            "order": {"shuffle": self._shuffle, "seed": self._seed},
            "fingerprint": self.fingerprint,
        }
        return state if self.revision is None else state | {"revision": self.revision}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned, of this source or of one with the same data.

        Args:
            state: The dict, also after a round trip through JSON.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure differs, or it is the state of other data.
        """
        expect_dict(state)
        own = self.get_state()
        # The content counts, not where it came from: a copy of a Hub dataset has no revision.
        same = state.keys() - {"revision"} == own.keys() - {"revision"}
        if not same or state.get("version") != STATE_VERSION:
            raise ValueError(
                f"The state has {sorted(state)} of version {state.get('version')}; {self._label()} "
                f"reads {sorted(own)} of version {STATE_VERSION}, as its get_state() returns them."
            )
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"The state is of other data: its fingerprint is {state['fingerprint']}, that of "
                f"{self._label()} is {self.fingerprint}. Restore it with the data it was saved "
                "with, or begin anew with reset()."
            )
        epoch, index, shuffle, seed = _read_position(state, self.length)
        self._shuffle, self._seed = shuffle, seed
        self.move(epoch, index)
        self._resumes.set_value(True)

    def clone(self) -> Self:
        """Returns a source at the same position that shares the arrays and moves on its own."""
        clone = nnx.clone(self)
        clone._columns = nnx.data(self._columns)  # the same dict: placed once for both
        return clone

    def _settings_to(self, copy: Self) -> Self:
        copy._shuffle, copy._seed = self._shuffle, self._seed
        return super()._settings_to(copy)

    def _label(self) -> str:
        return self.name or type(self).__name__


# --- pure parts ------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(3, 4))
def _window(columns, start, seed, size, num_records):
    records = order.window(start, size, num_records=num_records, seed=seed)
    return gather(columns, records), records


@functools.partial(jax.jit, static_argnums=(4, 5))
def _run_on(columns, epoch, index, seed, size, num_records):
    records = order.run_on(epoch, index, size, num_records=num_records, seed=seed)
    return gather(columns, records), records


def _is_host(column) -> bool:
    return isinstance(column, HostColumn)


def _traced(*values) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in values)


def _place(columns):
    for name, column in columns.items():
        if isinstance(column, dict):
            _place(column)
        elif isinstance(column, np.ndarray):
            with jax.ensure_compile_time_eval():  # the source may be closed over by a trace
                columns[name] = jnp.asarray(column)


class _Placements(dict):
    """Columns by the sharding they are placed by; static to JAX, and equal only if identical."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __deepcopy__(self, memo):
        return self


def _placed(columns, sharding):
    """Returns columns on other devices; `columns` gives up its host memory for the first of them.

    Only where a device of this process holds all rows: it serves as `data` from then on.
    """
    placed = {}
    for name, column in columns.items():
        if isinstance(column, dict):
            placed[name] = _placed(column, sharding)
        elif _is_host(column):
            placed[name] = column
        else:
            parts = sharding.addressable_devices_indices_map(column.shape)
            arrays = [_part(column, device, index) for device, index in parts.items()]
            placed[name] = jax.make_array_from_single_device_arrays(column.shape, sharding, arrays)
            own = jax.local_devices()[0]
            whole = [a for a in arrays if a.devices() == {own} and a.shape == column.shape]
            columns[name] = whole[0] if whole else column
    return placed


def _part(column, device, index):
    if isinstance(column, jax.Array) and column.devices() == {device}:
        part = column if column.size == 0 else column[index]
        return column if part.shape == column.shape else part
    return jax.device_put(np.asarray(column)[index], device)


def _without_host(columns):
    return {
        name: _without_host(column) if isinstance(column, dict) else column
        for name, column in columns.items()
        if not _is_host(column)
    }


def _records(rows, size) -> Iterator[dict[str, Any]]:
    leaves, structure = jax.tree.flatten(rows)
    for values in zip(*(list(leaf) for leaf in leaves), strict=True):
        yield jax.tree.unflatten(structure, values)


def _common_length(data) -> int:
    columns = jax.tree.leaves_with_path(data, is_leaf=_is_host)
    lengths = {jax.tree_util.keystr(path): len(column) for path, column in columns}
    if not lengths or not all(lengths.values()):
        raise ValueError(
            f"There are no records: the columns are {lengths or 'none'}. A source needs at least "
            "one record; check the split, the filter or include_keys."
        )
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns differ in length: {lengths}. Every record needs each.")
    return next(iter(lengths.values()))


def _read_position(state, length) -> tuple[int, int, bool, int]:
    try:
        expect_between("epoch", state["epoch"], 0, 2**31 - 1)
        expect_between("index", state["index"], 0, length)
        if state["order"].keys() != {"shuffle", "seed"}:
            shards = state["order"].get("shards")
            raise ValueError(
                f"its order is {state['order']}, not one of shuffle and seed. "
                f"Restore it with Pipeline(..., shards={shards})."
            )
        shuffle, seed = bool(state["order"]["shuffle"]), state["order"]["seed"]
        expect_between("seed", seed, 0, 2**32 - 1)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The state is not one that get_state() returned: {error}") from error
    return int(state["epoch"]), int(state["index"]), shuffle, int(seed)
