"""Arrow rows of a stream become columns, by rules that its first rows decide."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import jax
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import Column, Misfit, Rows, cores
from datarax.columns.host import object_array
from datarax.columns.image_file import DamagedImage, converted, dimensions, open_image
from datarax.columns.lists import flat, misfits
from datarax.columns.nested import Path, nested
from datarax.columns.numbers import dense
from datarax.columns.objects import objects
from datarax.stream.schema import OBJECT, ColumnSpec, column_specs, joined

Part = dict[Path, np.ndarray]  # columns, in flat form
Label = Callable[[int], str]  # names the file and number of a row


class Decoder:
    """Makes columns of a stream's rows, always of the same dtypes and shapes.

    What is an array in the first rows must stay one: a later row that does not fit is an error
    that names it. Everything else is an object array, whatever comes.

    Args:
        features: The features of the rows.
        first: The first rows, at least one.
    """

    def __init__(self, features: datasets.Features, first: pa.Table):
        self._first = first.take([0])  # a copy, which does not keep the others
        self.features = features
        self.specs = column_specs(features, first)
        self.lazy = [spec for spec in self.specs if not spec.is_number]
        self.lazy_names = sorted({spec.path[0] for spec in self.lazy})
        self._numbers = [spec for spec in self.specs if spec.is_number]

    def spec(self) -> dict[str, Any]:
        """Returns shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`."""
        return nested(
            (spec.path, jax.ShapeDtypeStruct(spec.shape, spec.dtype)) for spec in self.specs
        )

    def host_errors(self) -> dict[str, str]:
        """Returns why each host column is no array, by its name."""
        return {spec.name: spec.why for spec in self.specs if spec.dtype == OBJECT}

    @functools.cached_property
    def first_record(self) -> Part:
        """The first record, of arrays of shape `(1, ...)`."""
        return self.numbers(self._first, str) | self.rest(self._first, str)[0]

    def numbers(self, table: pa.Table, label: Label) -> dict[Path, np.ndarray]:
        """Returns all arrays of numbers of a table.

        Args:
            table: `n` rows.
            label: Names a row in an error.

        Returns:
            Arrays of shape `(n, ...)`.

        Raises:
            ValueError: A row does not fit; it names column and row.
        """
        return {spec.path: _numbers(spec, spec.of(table), label) for spec in self._numbers}

    def rest(self, table: pa.Table, label: Label) -> tuple[dict[Path, np.ndarray], dict[int, str]]:
        """Returns images and host columns of a table, images decoded on all cores.

        Returns:
            Arrays of shape `(n, ...)`, object arrays of shape `(n,)`; and what is wrong with rows
            whose image is damaged, which hold nothing meaningful.

        Raises:
            ValueError: A row does not fit; it names column and row.
        """
        columns, damage = {}, {}
        for spec in self.lazy:
            values = joined(spec.of(table))
            if spec.mode is not None:
                columns[spec.path], found = _pixels(spec, values, label)
                damage |= found
            elif isinstance(spec.feature, datasets.Image) and spec.feature.decode:
                columns[spec.path], found = _images(spec, values)
                damage |= found
            else:
                columns[spec.path] = _objects(spec, values)
        return columns, damage


# --- values ----------------------------------------------------------------------------------


def _numbers(spec: ColumnSpec, values: pa.ChunkedArray, label: Label) -> np.ndarray:
    block = joined(values)
    inner = flat(block, spec.shape)
    if inner is None:
        row = int(np.flatnonzero(misfits(block, spec.shape))[0])
        found = repr(block[row].as_py())
        raise _unlike(spec, label(row), found if len(found) < 60 else f"{found[:56]} ...")
    # Without a copy where the table is one block.
    read = inner.to_numpy(zero_copy_only=False).reshape(len(block), *spec.shape)
    if read.dtype == spec.dtype:
        return read
    if read.size and read.dtype.kind in "iu" and spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        if limits.min <= read.min() and read.max() <= limits.max:
            return read.astype(spec.dtype)
    column = Column(spec.path, spec.feature, values, Rows(len(values)))
    try:
        return dense(column, column.rows)
    except ValueError as error:
        raise _out_of_range(spec, column, label, error) from None


def _unlike(spec: ColumnSpec, label: str, found: str) -> ValueError:
    begun = f"{spec.dtype} of shape {spec.shape}" if spec.shape else f"one {spec.dtype}"
    return ValueError(
        f"column {spec.name!r}, {label}: found {found}, and in the stream's first rows each is "
        f"{begun}. Drop or fill such rows, ds = ds.filter(...) or ds.map(...), or leave the column "
        f"out: exclude_keys={{{spec.path[0]!r}}}"
    )


def _out_of_range(spec: ColumnSpec, column: Column, label: Label, error: ValueError) -> ValueError:
    for row in range(column.rows.length):  # rare enough: which row it is
        one = Column(spec.path, spec.feature, column.values.slice(row, 1), Rows(1))
        try:
            dense(one, one.rows)
        except ValueError as found:
            _, _, rest = str(found).partition(": ")
            return ValueError(f"column {spec.name!r}, {label(row)}: {rest}")
    return error


def _objects(spec: ColumnSpec, values: pa.Array) -> np.ndarray:
    rows = Rows(len(values))
    column = Column(spec.path, spec.feature, pa.chunked_array([values]), rows)
    return objects(column)(values, rows)


def _opened(spec: ColumnSpec, values: pa.Array, finish: Callable) -> Iterator[Any]:
    """Yields what `finish` makes of each image, None of None, the error of a damaged one."""

    def attempt(value: dict[str, Any] | None) -> Any:
        try:
            return None if value is None else finish(open_image(spec.feature, value))
        except (DamagedImage, Misfit) as error:
            return error

    files = values.to_pylist()
    if len(files) == 1:
        return iter([attempt(files[0])])
    with ThreadPoolExecutor(min(cores(), len(files))) as pool:
        return iter(list(pool.map(attempt, files)))


def _images(spec: ColumnSpec, values: pa.Array) -> tuple[np.ndarray, dict[int, str]]:
    found = list(_opened(spec, values, np.array))
    damage = {row: str(item) for row, item in enumerate(found) if isinstance(item, DamagedImage)}
    return object_array(found), damage


def _pixels(spec: ColumnSpec, values: pa.Array, label: Label) -> tuple[np.ndarray, dict[int, str]]:
    out, damage = np.empty((len(values), *spec.shape), spec.dtype), {}

    def finish(image: Any) -> np.ndarray:
        pixels = np.asarray(converted(image, spec.mode))
        if pixels.shape != spec.shape:
            raise Misfit(0, f"an image of mode {image.mode} and {dimensions(image.size)}")
        return pixels

    for row, item in enumerate(_opened(spec, values, finish)):
        if isinstance(item, DamagedImage):
            damage[row] = str(item)
        elif item is None or isinstance(item, Misfit):
            raise _unlike(spec, label(row), "None" if item is None else item.found)
        else:
            out[row] = item
    return out, damage


def length_of(part: Part) -> int:
    """Returns how many records a part holds."""
    return len(next(iter(part.values())))
