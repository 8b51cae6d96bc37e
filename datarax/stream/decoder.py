"""Arrow rows of a stream become columns, by rules that its first rows decide."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import datasets
import jax
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import Column, Rows, cores, nulls
from datarax.columns.host import object_array
from datarax.columns.image_file import DamagedImage, converted, dimensions, open_image
from datarax.columns.images import pictures
from datarax.columns.labels import class_label, said_of, unnamed
from datarax.columns.lists import fits, leaf_type
from datarax.columns.nested import Path, at, nested
from datarax.columns.objects import needs_decoding, python_rows
from datarax.errors import listed
from datarax.stream.schema import ColumnSpec, column_specs, joined
from datarax.stream.timed import timed
from datarax.stream.values import read_lists, read_numbers

Part = dict[Path, np.ndarray]  # columns, in flat form


class Fault(NamedTuple):
    """What is wrong with a row.

    Args:
        column: The column's name.
        found: What the row holds, and what to do.
        is_damage: Whether the row's image cannot be decoded: `on_bad_rows="skip"` leaves it out. A
            row that does not fit its column is an error in any case.
    """

    column: str
    found: str
    is_damage: bool = False


Faults = dict[int, Fault]  # by the number of the row


class Decoder:
    """Makes columns of a stream's rows, always of the same dtypes and shapes.

    The first rows decide which columns are arrays, and what the rows of the others are. A later row
    that is not so is a `Fault`, never changed to fit.

    Args:
        features: The features of the rows.
        first: The first rows, at least one.

    Attributes:
        seconds: How long making columns took so far.
    """

    def __init__(self, features: datasets.Features, first: pa.Table):
        self.seconds = 0.0
        self._first = first.take([0])  # a copy, which does not keep the others
        self.features = features
        self.specs = column_specs(features, first)
        self.lazy = [spec for spec in self.specs if not spec.is_number]
        self.lazy_names = sorted({spec.path[0] for spec in self.lazy})
        self._numbers = [spec for spec in self.specs if spec.is_number]
        self._labels = [
            (spec, names) for spec in self.specs if (names := class_label(spec.feature))
        ]
        paths = {spec.path[:n]: None for spec in self.specs for n in range(1, len(spec.path))}
        self._dicts = list(paths)  # nested columns, none of whose first rows is None

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
        return self.numbers(self._first)[0] | self.rest(self._first)[0]

    @timed
    def numbers(self, table: pa.Table) -> tuple[Part, Faults]:
        """Returns all arrays of numbers of a table.

        Args:
            table: `n` rows.

        Returns:
            Arrays of shape `(n, ...)`, and the rows that do not fit, which are 0 there.
        """
        columns, faults = {}, {}
        extra = [name for name in table.column_names if name not in self.features]
        if extra:
            faults = dict.fromkeys(range(len(table)), _extra(extra[0], self.features))
        table = self.with_all_columns(table)
        for spec in self._numbers:
            values = spec.of(table)
            columns[spec.path], bad = read_numbers(values, spec.shape, spec.dtype)
            faults |= {row: _unlike(spec, values, row) for row in bad.tolist()}
        for spec, names in self._labels:
            for row, label in unnamed(names, spec.of(table)).items():
                faults.setdefault(row, Fault(spec.name, said_of(names, label, spec.path[0])))
        for path in self._dicts:
            values = at(table, path)
            if values.null_count:
                fault = _no_dict(path)
                faults |= dict.fromkeys(np.flatnonzero(nulls(joined(values))).tolist(), fault)
        return columns, faults

    def with_all_columns(self, table: pa.Table) -> pa.Table:
        """Returns a table with each of the columns; all rows of one that it lacks are None."""
        known = set(table.column_names)  # a list made anew, whenever it is asked for
        for name in self.features:
            if name not in known:
                table = table.append_column(name, pa.nulls(len(table)))
        return table

    @timed
    def rest(self, table: pa.Table) -> tuple[Part, Faults]:
        """Returns images and host columns of a table, images decoded on all cores.

        Returns:
            Arrays of shape `(n, ...)`, object arrays of shape `(n,)`; and the rows that do not fit
            or whose image is damaged, which hold nothing meaningful there.
        """
        columns, faults = {}, {}
        for spec in self.lazy:
            values = spec.of(table)
            if spec.mode is not None:
                columns[spec.path], found = _pixels(spec, spec.mode, values)
            elif isinstance(spec.feature, datasets.Image) and spec.feature.decode:
                columns[spec.path], found = _images(spec, values)
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
        return object_array(rows), {row: _unlike(spec, values, row) for row in bad.tolist()}
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


def _opened(spec: ColumnSpec, values: pa.Array, finish: Callable) -> Iterator[Any]:
    """Yields what `finish` makes of each image, None of None, the error of a damaged one."""

    def attempt(value: dict[str, Any] | None) -> Any:
        try:
            return None if value is None else finish(open_image(spec.feature, value))
        except DamagedImage as error:
            return error

    files = values.to_pylist()
    if len(files) == 1:
        return iter([attempt(files[0])])
    with ThreadPoolExecutor(min(cores(), len(files))) as pool:
        return iter(list(pool.map(attempt, files)))


def _images(spec: ColumnSpec, values: pa.Array) -> tuple[np.ndarray, Faults]:
    found = list(_opened(spec, values, np.array))
    return object_array(found), {
        row: _damage(spec, item) for row, item in enumerate(found) if isinstance(item, DamagedImage)
    }


def _pixels(spec: ColumnSpec, mode: str, values: pa.Array) -> tuple[np.ndarray, Faults]:
    if isinstance(spec.feature, datasets.List):
        return _pictures(spec, mode, values)
    out, faults = np.zeros((len(values), *spec.shape), spec.dtype), {}

    def finish(image: Any) -> np.ndarray | str:
        pixels = np.asarray(converted(image, mode))
        if (pixels.shape, pixels.dtype.newbyteorder("=")) == (spec.shape, spec.dtype):
            return pixels
        return f"an image of mode {image.mode} and {dimensions(image.size)}"

    for row, item in enumerate(_opened(spec, values, finish)):
        if isinstance(item, DamagedImage):
            faults[row] = _damage(spec, item)
        elif item is None or isinstance(item, str):
            faults[row] = _unfit(spec, str(item))
        else:
            out[row] = item
    return out, faults


def _pictures(spec: ColumnSpec, mode: str, values: pa.Array) -> tuple[np.ndarray, Faults]:
    """Returns the pixels of rows that hold a fixed number of pictures each."""
    count, *shape = spec.shape
    if not pa.types.is_fixed_size_list(values.type) or values.type.list_size != count:
        rows = dict.fromkeys(range(len(values)), _unfit(spec, f"{values.type}"))
        return np.zeros((len(values), *spec.shape), spec.dtype), rows
    one = replace(spec, feature=spec.feature.feature, shape=tuple(shape))
    out, found = _pixels(one, mode, pictures(values))
    faults = {item // count: fault for item, fault in found.items()}
    faults |= dict.fromkeys(np.flatnonzero(nulls(values)).tolist(), _unfit(spec, "None"))
    return out.reshape(len(values), *spec.shape), faults


# --- faults ----------------------------------------------------------------------------------


def _unlike(spec: ColumnSpec, values: pa.Array, row: int) -> Fault:
    """Returns the fault of a row whose values are no such numbers."""
    text = repr(values[row].as_py())
    text = text if len(text) < 60 else f"{text[:56]} ..."
    whole = spec.host is None and pa.types.is_integer(leaf_type(values.type))
    if not (whole and spec.dtype.kind in "iu" and fits(values[row : row + 1], spec.shape)):
        return _unfit(spec, text)
    return Fault(
        spec.name,
        f"{text} does not fit into {spec.dtype}, and JAX has 64-bit integers only after "
        "jax.config.update('jax_enable_x64', True). Write that, store smaller numbers, or leave "
        f"the column out: exclude_keys={{{spec.path[0]!r}}}",
    )


def _unfit(spec: ColumnSpec, found: str) -> Fault:
    if spec.host is not None:
        begun = f"a list of {spec.host.dtype}"
    else:
        begun = f"{spec.dtype} of shape {spec.shape}" if spec.shape else f"one {spec.dtype}"
    return Fault(
        spec.name,
        f"found {found}, and in the stream's first rows each is {begun}. Declare a type that holds "
        f"all rows, features=datasets.Features({{{spec.path[0]!r}: ...}}), drop or fill such rows, "
        "ds = ds.filter(...) or ds.map(...), or leave the column out: "
        f"exclude_keys={{{spec.path[0]!r}}}",
    )


def _extra(name: str, features: datasets.Features) -> Fault:
    return Fault(
        name,
        f"the stream's first rows have no such column, only {listed(features)}. Declare all "
        "columns, features=datasets.Features({...}), or choose some with include_keys or "
        "exclude_keys",
    )


def _no_dict(path: Path) -> Fault:
    return Fault(
        ".".join(path),
        "found None, and in the stream's first rows each is a dict. Drop or fill such rows, ds = "
        f"ds.filter(...) or ds.map(...), or leave the column out: exclude_keys={{{path[0]!r}}}",
    )


def _damage(spec: ColumnSpec, error: DamagedImage) -> Fault:
    return Fault(
        spec.name,
        f"{error}: the image cannot be decoded. Repair it, or leave such rows out with "
        "on_bad_rows='skip'",
        is_damage=True,
    )


def length_of(part: Part) -> int:
    """Returns how many records a part holds."""
    return len(next(iter(part.values())))
