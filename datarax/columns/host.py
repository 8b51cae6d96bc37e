"""A host column: one whose rows cannot be one array, so they stay Python objects on the host."""

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.core import Tracer

from datarax.errors import expect_rows


class Cells(Protocol):
    """The rows behind a host column; an object array of shape `(n,)` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> Any:
        """Returns the rows at `indices`, int64 of shape `(k,)`, as objects of that shape."""
        ...


@dataclasses.dataclass(frozen=True)
class Absent:
    """A host column that a traced batch lacks: its name, and why it is no array.

    Columns of one name are equal: a compiled program serves all data sets with the same columns,
    and JAX's caches, which keep what is static, hold no rows.
    """

    name: str
    reason: str = dataclasses.field(compare=False)
    fix: str = dataclasses.field(default="", compare=False)

    def error(self) -> TypeError:
        """Returns the error to raise where compiled code asks for the column."""
        return TypeError(f"column {self.name!r} is no JAX array: {self.reason}. {self.fix}")


class HostColumn:
    """A column of Python objects that rides along with arrays and is no part of their pytree.

    Text, ragged lists, images of many sizes, nulls, bytes and dates are such columns. A row becomes
    an object only when it is asked for. To JAX the column is a node without leaves, so it passes
    through `jax.jit` and `nnx.split` as static structure; columns are equal only if identical.

    Args:
        name: The column's name; a nested one has dots (`"answers.text"`).
        cells: The rows; an object array of shape `(n,)`, or anything that gives one on request.
        reason: What keeps the column from being one array, as in `"row 17 is None"`.
        first_bad: The first row of which `reason` is true.
        fix: The sentence of an error that says what to write instead.

    Example:
        >>> column = HostColumn.of_objects("text", ["to be", "or not"])
        >>> column.shape, column[1], column[:1].shape
        ((2,), 'or not', (1,))
    """

    def __init__(self, name: str, cells: Cells, *, reason: str, first_bad: int = 0, fix: str = ""):
        self.name = name
        self.cells = cells
        self.reason = reason
        self.first_bad = first_bad
        self.fix = fix
        self._reference = _Reference(self)

    @classmethod
    def of_objects(cls, name: str, objects: Sequence[Any] | np.ndarray) -> "HostColumn":
        """Makes a host column of objects in memory, one a row.

        Args:
            name: The column's name.
            objects: A sequence of `n` objects, or an object array of shape `(n,)`.

        Returns:
            The column.
        """
        cells: Any = object_array(objects)
        found = f"row 0 is {cells[0]!r:.60}" if len(cells) else "it has no rows"
        fix = f"Turn it into numbers first, or leave it out: exclude_keys={{{name!r}}}"
        return cls(name, cells, reason=found, fix=fix)

    @property
    def shape(self) -> tuple[int]:
        """The shape of the column as an object array, `(n,)`."""
        return (len(self.cells),)

    @property
    def dtype(self) -> np.dtype:
        """`numpy.dtype(object)`."""
        return np.dtype(object)

    def error(self) -> TypeError:
        """Returns the error to raise where compiled code asks for this column."""
        return self.absent.error()

    @property
    def absent(self) -> Absent:
        """What stands for the column where compiled code has no use for it."""
        return Absent(self.name, self.reason, self.fix)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Returns rows as Python objects.

        Args:
            indices: Row numbers, integers of shape `(k,)`; negative ones count from the end.

        Returns:
            An object array of shape `(k,)`.

        Raises:
            IndexError: A row number is out of range.
            TypeError: The row numbers are traced (see `error`).
        """
        if is_traced(indices):
            raise self.error()
        indices = np.asarray(indices, np.int64)
        expect_rows(indices, len(self), f"Column {self.name!r}", low=-len(self))
        return self.cells[np.where(indices < 0, indices + len(self), indices)]

    def select(self, rows: np.ndarray) -> "HostColumn":
        """Returns the column of some rows, none of which becomes an object yet.

        Args:
            rows: Row numbers, integers of shape `(k,)`.
        """
        return self.over(_Selected(self.cells, rows))

    def over(self, cells: Cells) -> "HostColumn":
        """Returns a column of other cells, which is a host column for the same reason."""
        return HostColumn(
            self.name, cells, reason=self.reason, first_bad=self.first_bad, fix=self.fix
        )

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Any) -> Any:
        if is_traced(index):
            raise self.error()
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return self.take(index) if index.ndim else self.take(index[None])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.take(np.arange(len(self))).astype(dtype or object, copy=False)

    def __jax_array__(self) -> jax.Array:
        raise self.error()  # JAX asks for this before it gives up with an error of its own

    def __deepcopy__(self, memo: dict) -> "HostColumn":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_reference"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _reference=_Reference(self))

    def __repr__(self) -> str:
        return f"HostColumn({self.name!r}, {len(self)} rows: {self.reason})"


class _Reference(weakref.ref):
    """A column as JAX's caches keep it: they live as long as the process, and hold no rows."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Reference":
        return self  # as the column: its rows are never written to

    def column(self) -> HostColumn:
        """Returns the column.

        Raises:
            ReferenceError: If nothing else holds it any more.
        """
        column = self()
        if column is None:
            raise ReferenceError(
                "A host column was dropped with its source while its pytree structure was kept: "
                "keep the source, or its data, as long as what jax.tree.flatten or nnx.split gave."
            )
        return column


jax.tree_util.register_pytree_node(
    HostColumn, lambda column: ((), column._reference), lambda reference, _: reference.column()
)


def is_traced(*values: Any) -> bool:
    """Returns whether any value is traced: only a compiled program will have it."""
    return any(isinstance(value, Tracer) for value in values)


def is_host(column: Any) -> bool:
    """Returns whether a node of a nested dict of columns is a host column."""
    return isinstance(column, HostColumn)


class _Selected:
    """Some rows of cells."""

    def __init__(self, cells: Cells, rows: np.ndarray):
        self._cells, self._rows = cells, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._cells[self._rows[indices]]


def object_array(objects: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Returns an object array of shape `(n,)`, whatever the objects are (lists, arrays, text)."""
    if isinstance(objects, np.ndarray) and objects.dtype == object and objects.ndim == 1:
        return objects
    return np.fromiter(objects, dtype=object, count=len(objects))
