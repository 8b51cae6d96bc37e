"""Arrow rows of a stream become columns, by rules that its first rows decide."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Protocol

import datasets
import jax
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import Column, Rows, cores, nulls
from datarax.columns.host import object_array
from datarax.columns.image_file import DamagedImage, converted, dimensions, open_image
from datarax.columns.images import pictures
from datarax.columns.labels import class_label, said_of, unnamed
from datarax.columns.nested import Path, at, nested
from datarax.columns.objects import needs_decoding, python_rows
from datarax.columns.transform import TransformFunction
from datarax.stream.faults import Fault, Faults, damage, extra, misfit, no_dict, unlike
from datarax.stream.schema import ColumnSpec, FirstRows, joined
from datarax.stream.timed import timed
from datarax.stream.values import read_lists, read_numbers

Part = dict[Path, np.ndarray]  # columns, in flat form


class Places(Protocol):
    """Where the rows of a window come from, by their numbers as they were read."""

    @property
    def seed(self) -> int:
        """The seed of their epoch, `(seed + epoch) % 2**32`."""
        ...

    def records(self, rows: np.ndarray) -> np.ndarray:
        """Returns the numbers of records, the same in every epoch and on every process."""
        ...

    def label(self, row: int) -> str:
        """Names a row in an error."""
        ...


class Decoder:
    """Makes columns of a stream's rows, always of the same dtypes and shapes.

    The first rows decide which columns are arrays, and what the rows of the others are. A later row
    that is not so is a `Fault`, never changed to fit.

    Args:
        first: The first rows, at least one.
        specs: What the columns are.
        num_threads: How many threads decode images; None for one a core.

    Attributes:
        seconds: How long making columns took so far.
        stored: The features of the rows.
    """

    def __init__(
        self, first: FirstRows, specs: Sequence[ColumnSpec], num_threads: int | None = None
    ):
        self.seconds = 0.0
        self.stored = first.features
        self._first = first.table.take([0])  # a copy, which does not keep the others
        self._threads = num_threads or cores()
        self.specs = specs
        self.lazy = [spec for spec in self.specs if not spec.is_number]
        self.lazy_names = sorted({spec.path[0] for spec in self.lazy})
        self._numbers = [spec for spec in self.specs if spec.is_number]
        self._labels = [
            (spec, names) for spec in self.specs if (names := class_label(spec.feature))
        ]
        paths = {spec.path[:n]: None for spec in self.specs for n in range(1, len(spec.path))}
        self._dicts = list(paths)  # nested columns, none of whose first rows is None

    @property
    def features(self) -> datasets.Features:
        """The features of the columns."""
        return self.stored

    @property
    def transform(self) -> TransformFunction | None:
        """The transform that makes the columns, None where they are as stored."""
        return None

    @property
    def kept_names(self) -> list[str]:
        """The columns that a window keeps as they are stored, until its rows are handed out."""
        return self.lazy_names

    def buffers(self, rows: int) -> Part:
        """Returns arrays of shape `(rows, ...)` to write records to."""
        return {spec.path: np.empty((rows, *spec.shape), spec.dtype) for spec in self.specs}

    def spec(self) -> dict[str, Any]:
        """Returns shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`."""
        return nested(
            (spec.path, jax.ShapeDtypeStruct(spec.shape, spec.dtype)) for spec in self.specs
        )

    def host_errors(self) -> dict[str, str]:
        """Returns why each host column is no array, by its name."""
        return {spec.name: spec.host.why for spec in self.specs if spec.host is not None}

    @cached_property
    def first_record(self) -> Part:
        """The first record, of arrays of shape `(1, ...)`."""
        return self.numbers(self._first)[0] | self._rest(self._first)[0]

    def numbers(self, table: pa.Table) -> tuple[Part, Faults]:
        """Returns the columns that are made as soon as a table is read; see `stored_numbers`."""
        return self.stored_numbers(table)

    @timed
    def stored_numbers(self, table: pa.Table) -> tuple[Part, Faults]:
        """Returns all arrays of numbers of a table.

        Args:
            table: `n` rows.

        Returns:
            Arrays of shape `(n, ...)`, and the rows that do not fit, which are 0 there.
        """
        columns, faults = {}, self.unknown(table)
        table = self.with_all_columns(table)
        for spec in self._numbers:
            values = spec.of(table)
            columns[spec.path], bad = read_numbers(values, spec.shape, spec.dtype)
            faults |= {row: unlike(spec, values, row) for row in bad.tolist()}
        for spec, names in self._labels:
            for row, label in unnamed(names, spec.of(table)).items():
                faults.setdefault(row, Fault(spec.name, said_of(names, label, spec.path[0])))
        for path in self._dicts:
            values = at(table, path)
            if values.null_count:
                fault = no_dict(path)
                faults |= dict.fromkeys(np.flatnonzero(nulls(joined(values))).tolist(), fault)
        return columns, faults

    def unknown(self, table: pa.Table) -> Faults:
        """Returns all rows of a table that has a column which the first rows lack."""
        names = [name for name in table.column_names if name not in self.stored]
        return dict.fromkeys(range(len(table)), extra(names[0], self.stored)) if names else {}

    def with_all_columns(self, table: pa.Table) -> pa.Table:
        """Returns a table with each of the columns; all rows of one that it lacks are None."""
        known = set(table.column_names)  # a list made anew, whenever it is asked for
        for name in self.stored:
            if name not in known:
                table = table.append_column(name, pa.nulls(len(table)))
        return table

    @timed
    def rest(self, table: pa.Table, rows: np.ndarray, places: Places) -> tuple[Part, Faults]:
        """Returns the other columns: images, decoded on several threads, and host columns.

        Args:
            table: `n` rows of the columns that a window keeps.
            rows: Their numbers as they were read, of shape `(n,)`.
            places: Where they come from.

        Returns:
            Arrays of shape `(n, ...)`, object arrays of shape `(n,)`; and the rows that do not fit
            or whose image is damaged, which hold nothing meaningful there.
        """
        return self._rest(table)

    def _rest(self, table: pa.Table) -> tuple[Part, Faults]:
        columns, faults = {}, {}
        for spec in self.lazy:
            values = spec.of(table)
            if spec.mode is not None:
                columns[spec.path], found = _pixels(spec, spec.mode, values, self._threads)
            elif isinstance(spec.feature, datasets.Image) and spec.feature.decode:
                columns[spec.path], found = _images(spec, values, self._threads)
            else:
                columns[spec.path], found = _objects(spec, values)
            faults |= found
        return columns, faults


# --- values ----------------------------------------------------------------------------------


def _objects(spec: ColumnSpec, values: pa.Array) -> tuple[np.ndarray, Faults]:
    host = spec.host
    assert host is not None  # the one column that is no array and no image
    if host.items is not None:
        rows, bad = read_lists(values, host.items, host.dtype)
        return object_array(rows), {row: unlike(spec, values, row) for row in bad.tolist()}
    convert = host.convert
    if values.type != host.stored and not needs_decoding(spec.feature):
        column = Column(spec.path, spec.feature, pa.chunked_array([values]), Rows(len(values)))
        convert = partial(python_rows, column)
    try:
        return convert(values, Rows(len(values))), {}
    except ValueError:
        pass  # a row of it, which is looked for below
    rows, faults = np.empty(len(values), object), {}
    for row in range(len(values)):
        try:
            rows[row] = convert(values[row : row + 1], Rows(1))[0]
        except ValueError as error:
            found = str(error).partition(": ")[2].rstrip(".")
            faults[row] = Fault(spec.name, found, isinstance(error.__cause__, DamagedImage))
    return rows, faults


def _opened(spec: ColumnSpec, values: pa.Array, finish: Callable, threads: int) -> Iterator[Any]:
    """Yields what `finish` makes of each image, None of None, the error of a damaged one."""

    def attempt(value: dict[str, Any] | None) -> Any:
        try:
            return None if value is None else finish(open_image(spec.feature, value))
        except DamagedImage as error:
            return error

    files = values.to_pylist()
    if 1 in (len(files), threads):
        return map(attempt, files)
    with ThreadPoolExecutor(min(threads, len(files))) as pool:
        return iter(list(pool.map(attempt, files)))


def _images(spec: ColumnSpec, values: pa.Array, threads: int) -> tuple[np.ndarray, Faults]:
    found = list(_opened(spec, values, np.array, threads))
    return object_array(found), {
        row: damage(spec, item) for row, item in enumerate(found) if isinstance(item, DamagedImage)
    }


def _pixels(
    spec: ColumnSpec, mode: str, values: pa.Array, threads: int
) -> tuple[np.ndarray, Faults]:
    if isinstance(spec.feature, datasets.List):
        return _pictures(spec, mode, values, threads)
    out, faults = np.zeros((len(values), *spec.shape), spec.dtype), {}

    def finish(image: Any) -> np.ndarray | str:
        pixels = np.asarray(converted(image, mode))
        if (pixels.shape, pixels.dtype.newbyteorder("=")) == (spec.shape, spec.dtype):
            return pixels
        return f"an image of mode {image.mode} and {dimensions(image.size)}"

    for row, item in enumerate(_opened(spec, values, finish, threads)):
        if isinstance(item, DamagedImage):
            faults[row] = damage(spec, item)
        elif item is None or isinstance(item, str):
            faults[row] = misfit(spec, str(item))
        else:
            out[row] = item
    return out, faults


def _pictures(
    spec: ColumnSpec, mode: str, values: pa.Array, threads: int
) -> tuple[np.ndarray, Faults]:
    """Returns the pixels of rows that hold a fixed number of pictures each."""
    count, *shape = spec.shape
    if not pa.types.is_fixed_size_list(values.type) or values.type.list_size != count:
        rows: Faults = dict.fromkeys(range(len(values)), misfit(spec, f"{values.type}"))
        return np.zeros((len(values), *spec.shape), spec.dtype), rows
    one = replace(spec, feature=spec.feature.feature, shape=tuple(shape))
    out, found = _pixels(one, mode, pictures(values), threads)
    faults = {item // count: fault for item, fault in found.items()}
    faults |= dict.fromkeys(np.flatnonzero(nulls(values)).tolist(), misfit(spec, "None"))
    return out.reshape(len(values), *spec.shape), faults


def length_of(part: Part) -> int:
    """Returns how many records a part holds."""
    return len(next(iter(part.values())))
