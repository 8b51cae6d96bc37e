"""Views of a source: other records of the same columns, without a copy."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx

from datarax.columns.fingerprint import Digest
from datarax.columns.host import is_host
from datarax.errors import closest, expect_between, expect_rows, listed
from datarax.order import splits
from datarax.order.permutation import MAX_RECORDS
from datarax.order.views import Balanced, Selected, View, Weighted
from datarax.sources.source import Source

Records = Sequence[int] | np.ndarray | slice
Column = str | np.ndarray


class Viewable(Source):
    """A source of columns with rows by number, which gives views of itself.

    A view shares the columns and copies none. It has a length, an order, a state and a fingerprint
    of its own, and is a source wherever one is asked for. Views of views combine. `view[i]` is
    record `i` of the view's stored order; `view.data` are all the columns' rows.

    Attributes:
        view: Which records there are, as arithmetic; None: all, once an epoch.
    """

    is_indexable: ClassVar[bool] = True

    length: int
    view: View | None

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Returns records of the stored order, in host memory, whatever `shuffle` says.

        So a source is a `grain.sources.RandomAccessDataSource` and a map-style dataset of torch.

        Args:
            index: A record's number; a negative one counts from the end. Or a slice, a list or
                integer array of numbers of shape `(k,)`, or a mask of shape `(length,)`.

        Returns:
            Dict of NumPy values of one record; or of arrays of shape `(k, ...)`, and object arrays
            for host columns.

        Raises:
            IndexError: If there is no such record.
            TypeError: If `index` is no number and holds none.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
            >>> int(source[-1]["x"]), source[2:4]["x"].tolist(), source[[5, 0]]["x"].tolist()
            (9, [2, 3], [5, 0])
        """
        numbers = self._numbers(index)
        rows = self.host_rows(self.stored_records(numbers.reshape(-1)))
        rows = jax.tree.map(np.asarray, rows, is_leaf=is_host)
        return rows if numbers.ndim else jax.tree.map(lambda column: column[0], rows)

    def host_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some rows of all columns: NumPy arrays of shape `(k, ...)`, and host columns.

        Args:
            rows: Row numbers of the columns, integers of shape `(k,)`. The rows of a view are those
                of the source below it: see `stored_records`.

        Raises:
            IndexError: If there is no such row.
        """
        raise NotImplementedError

    def select(self, records: Records) -> Self:
        """Returns a view of some records, in the order in which they are given.

        Args:
            records: Numbers of records, of shape `(k,)`, negative ones count from the end; a mask
                of shape `(length,)`; or a slice.

        Raises:
            IndexError: If there is no such record.
            ValueError: If no record is left.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
            >>> source.select(slice(2, 8, 2)).get_batch(3)["x"].tolist()
            [2, 4, 6]
        """
        numbers = self._numbers(records)
        if not numbers.ndim or not len(numbers):
            raise ValueError(
                f"select({records!r:.60}): expected numbers of some of the {self.length} records "
                f"of {self.label}, as in select([0, 2]), or a mask or a slice that keeps some."
            )
        return self._selected(numbers, f"select({len(numbers)} records)")

    def split(
        self, fraction: float, *, seed: int = 0, stratify: Column | None = None
    ) -> tuple[Self, Self]:
        """Returns two views: the rest, and a part drawn at random.

        Args:
            fraction: The part's share of the records, between 0 and 1.
            seed: Seed of the draw, which is the same on every machine.
            stratify: A column of classes, its name or its values of shape `(length,)`: both views
                have their share of each class, to within one record.

        Raises:
            ValueError: If `fraction` is out of range, or `stratify` is no column of classes.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
            >>> training, validation = source.split(0.2)
            >>> len(training), len(validation)
            (8, 2)
        """
        classes = self._stratified(stratify)
        rest, part = splits.split(self.length, fraction, seed=seed, classes=classes)
        kind = f"split({fraction}, seed={seed}{_by(stratify)})"
        return self._selected(rest, f"{kind}[0]"), self._selected(part, f"{kind}[1]")

    def fold(
        self, i: int, of: int, *, seed: int = 0, stratify: Column | None = None
    ) -> tuple[Self, Self]:
        """Returns training and validation of one fold, for cross-validation.

        The validations of all folds are disjoint and complete.

        Args:
            i: The fold, from 0 to `of - 1`.
            of: Number of folds.
            seed: Seed of the draw, the same for all folds, and the same on every machine.
            stratify: A column of classes, its name or its values of shape `(length,)`: every
                validation has as many records of each class, to within one.

        Raises:
            ValueError: If `i` or `of` is out of range, or `stratify` is no column of classes.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
            >>> [len(view) for view in source.fold(0, of=5)]
            [8, 2]
        """
        classes = self._stratified(stratify)
        training, validation = splits.fold(self.length, i, of, seed=seed, classes=classes)
        kind = f"fold({i}, of={of}, seed={seed}{_by(stratify)})"
        return self._selected(training, f"{kind}[0]"), self._selected(validation, f"{kind}[1]")

    def balanced(self, column: Column) -> Self:
        """Returns a view that draws every class of a column equally often.

        Position `p` of an epoch is of class `p % classes`. An epoch has `classes * largest`
        positions, `largest` being the size of the largest class; the records of a smaller class
        come equally often, to within one.

        Args:
            column: The column of classes, its name or its values of shape `(length,)`.

        Raises:
            ValueError: If it is no column of classes, or has only one.

        Example:
            >>> data = {"x": np.arange(5), "label": np.array([0, 0, 0, 0, 1])}
            >>> view = MemorySource(MemorySourceConfig(), data).balanced("label")
            >>> view.get_batch(6)["x"].tolist()
            [0, 4, 1, 4, 2, 4]
        """
        classes = self._classes(column)
        records = self.stored_records(np.arange(self.length))
        name = repr(column) if isinstance(column, str) else "values"
        return self._viewed(Balanced.of(classes, records, self._chained(f"balanced({name})")))

    def weighted(self, weights: Column, *, length: int | None = None) -> Self:
        """Returns a view that draws every record as often as its weight says.

        In an epoch a record comes `length * weight / sum of the weights` times, to within one. A
        record that should come less than once comes in some epochs.

        Args:
            weights: A weight a record, a column's name or values of shape `(length,)`. Only their
                proportions count.
            length: Draws in an epoch; None: as many as there are records.

        Raises:
            ValueError: If a weight is negative or not finite, or all are 0.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(3)})
            >>> source.weighted(np.array([1, 0, 2])).get_batch(3)["x"].tolist()
            [0, 2, 2]
        """
        values = self._values(weights, "weights")
        if values.dtype.kind not in "iubf":
            raise ValueError(f"{_named(weights)} holds {values.dtype}: expected weights, numbers.")
        records = None if self.view is None else self.stored_records(np.arange(self.length))
        name = repr(weights) if isinstance(weights, str) else "values"
        length = self.length if length is None else length
        expect_between("length", length, 1, MAX_RECORDS)
        label = self._chained(f"weighted({name})")
        return self._viewed(Weighted.of(values, length, records, label))

    # --- for the source below --------------------------------------------------------------------

    def stored_records(self, index: np.ndarray) -> np.ndarray:
        """Returns the row of the columns at each position of the stored order, of any shape."""
        return index if self.view is None else self.view.stored(index)

    def _column(self, name: str) -> Any:
        """Returns a column's rows in the stored order, shape `(length, ...)`, or a host column."""
        raise NotImplementedError

    # --- parts -----------------------------------------------------------------------------------

    def _numbers(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            return np.arange(*index.indices(self.length))
        numbers = np.asarray(index)
        if numbers.dtype == bool and numbers.shape == (self.length,):
            return np.flatnonzero(numbers)
        if numbers.size == 0 and numbers.ndim == 1:
            return np.empty(0, np.int64)
        if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
            raise TypeError(
                f"source[{index!r:.60}]: expected a record's number, a slice, or a list of numbers "
                f"or a mask of shape ({self.length},)."
            )
        numbers = numbers.astype(np.int64)
        expect_rows(numbers, self.length, self.label, noun="record", low=-self.length)
        return np.where(numbers < 0, numbers + self.length, numbers)

    def _chained(self, label: str) -> str:
        return label if self.view is None else f"{self.view.label}.{label}"

    def _selected(self, index: np.ndarray, label: str) -> Self:
        return self._viewed(Selected.of(self.stored_records(index), self._chained(label)))

    def _viewed(self, view: View) -> Self:
        source = self.clone()
        source.view, source.length = nnx.data(view), view.length
        digest = Digest("view", self.fingerprint, view.label, view.length)
        for table in view.tables():
            digest.bytes(table)
        source.fingerprint = digest.hex()
        below = self.label if self.view is None else self.label.removesuffix(f".{self.view.label}")
        source.name = nnx.static(f"{below}.{view.label}")
        source.reset()
        return source

    def _stratified(self, column: Column | None) -> np.ndarray | None:
        return None if column is None else self._classes(column)

    def _classes(self, column: Column) -> np.ndarray:
        values = self._values(column, "classes")
        if values.dtype.kind not in "iub":
            raise ValueError(
                f"{_named(column)} holds {values.dtype}: expected classes, integers or bools. Give "
                "numbers of classes, np.unique(values, return_inverse=True)[1]."
            )
        return values

    def _values(self, column: Column, what: str) -> np.ndarray:
        if isinstance(column, str):
            names = list(self.element_spec())
            if column not in names:
                raise ValueError(
                    f"There is no column {column!r}.{closest(column, names)} The columns are "
                    f"{listed(names)}."
                )
            values = self._column(column)
            if is_host(values):
                hint = f"of texts make classes with ds.class_encode_column({column!r})"
                if what == "weights":
                    hint = "give an array of numbers, weighted(np.array([...]))"
                raise ValueError(
                    f"Column {column!r} is a host column, which has objects and no numbers: {hint}."
                )
            values = np.asarray(values)
        else:
            values = np.asarray(column)
        if values.shape != (self.length,):
            raise ValueError(
                f"{_named(column)} has the shape {values.shape}: expected {what} of shape "
                f"({self.length},), one a record."
            )
        return values


def _by(column: Column | None) -> str:
    if column is None:
        return ""
    return f", stratify={column!r}" if isinstance(column, str) else ", stratify=values"


def _named(column: Column) -> str:
    return f"Column {column!r}" if isinstance(column, str) else "The array"
