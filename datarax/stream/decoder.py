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
from datarax.columns.numbers import dense
from datarax.columns.objects import objects
from datarax.stream.schema import OBJECT, Leaf, Path, joined, leaves_of

Part = dict[Path, np.ndarray]  # columns, in flat form
Place = Callable[[int], str]


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
        self.leaves = leaves_of(features, first)
        self.lazy = [leaf for leaf in self.leaves if not leaf.is_number]
        self.lazy_names = sorted({leaf.path[0] for leaf in self.lazy})
        self._numbers = [leaf for leaf in self.leaves if leaf.is_number]

    def spec(self) -> dict[str, Any]:
        """Returns shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`."""
        return nested(
            (leaf.path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) for leaf in self.leaves
        )

    def host_errors(self) -> dict[str, str]:
        """Returns why each host column is no array, by its name."""
        return {leaf.name: leaf.why for leaf in self.leaves if leaf.dtype == OBJECT}

    @functools.cached_property
    def first_record(self) -> Part:
        """The first record, of arrays of shape `(1, ...)`."""
        return self.numbers(self._first, str) | self.rest(self._first, str)[0]

    def numbers(self, table: pa.Table, place: Place) -> dict[Path, np.ndarray]:
        """Returns all arrays of numbers of a table.

        Args:
            table: `n` rows.
            place: Says where a row is from, for errors.

        Returns:
            Arrays of shape `(n, ...)`.

        Raises:
            ValueError: A row does not fit; it names column and row.
        """
        return {leaf.path: _numbers(leaf, leaf.of(table), place) for leaf in self._numbers}

    def rest(self, table: pa.Table, place: Place) -> tuple[dict[Path, np.ndarray], dict[int, str]]:
        """Returns images and host columns of a table, images decoded on all cores.

        Returns:
            Arrays of shape `(n, ...)`, object arrays of shape `(n,)`; and what is wrong with rows
            whose image is damaged, which hold nothing meaningful.

        Raises:
            ValueError: A row does not fit; it names column and row.
        """
        columns, damage = {}, {}
        for leaf in self.lazy:
            values = joined(leaf.of(table))
            if leaf.mode is not None:
                columns[leaf.path], found = _pixels(leaf, values, place)
                damage |= found
            elif isinstance(leaf.feature, datasets.Image) and leaf.feature.decode:
                columns[leaf.path], found = _images(leaf, values)
                damage |= found
            else:
                columns[leaf.path] = _objects(leaf, values)
        return columns, damage


def nested(leaves: Any) -> dict[str, Any]:
    """Returns a nested dict of pairs of paths and values."""
    data = {}
    for (*parents, name), column in leaves:
        inner = data
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = column
    return data


# --- values ----------------------------------------------------------------------------------


def _numbers(leaf: Leaf, values: pa.ChunkedArray, place: Place) -> np.ndarray:
    block = joined(values)
    inner = flat(block, leaf.shape)
    if inner is None:
        row = int(np.flatnonzero(misfits(block, leaf.shape))[0])
        found = repr(block[row].as_py())
        raise _unlike(leaf, place(row), found if len(found) < 60 else f"{found[:56]} ...")
    # Without a copy where the table is one block.
    read = inner.to_numpy(zero_copy_only=False).reshape(len(block), *leaf.shape)
    if read.dtype == leaf.dtype:
        return read
    if read.size and read.dtype.kind in "iu" and leaf.dtype.kind in "iu":
        limits = np.iinfo(leaf.dtype)
        if limits.min <= read.min() and read.max() <= limits.max:
            return read.astype(leaf.dtype)
    column = Column(leaf.path, leaf.feature, values, Rows(len(values)))
    try:
        return dense(column, column.rows)
    except ValueError as error:
        raise _out_of_range(leaf, column, place, error) from None


def _unlike(leaf: Leaf, place: str, found: str) -> ValueError:
    begun = f"{leaf.dtype} of shape {leaf.shape}" if leaf.shape else f"one {leaf.dtype}"
    return ValueError(
        f"column {leaf.name!r}, {place}: found {found}, and in the stream's first rows each is "
        f"{begun}. Drop or fill such rows, ds = ds.filter(...) or ds.map(...), or leave the column "
        f"out: exclude_keys={{{leaf.path[0]!r}}}"
    )


def _out_of_range(leaf: Leaf, column: Column, place: Place, error: ValueError) -> ValueError:
    for row in range(column.rows.length):  # rare enough: which row it is
        one = Column(leaf.path, leaf.feature, column.values.slice(row, 1), Rows(1))
        try:
            dense(one, one.rows)
        except ValueError as found:
            _, _, rest = str(found).partition(": ")
            return ValueError(f"column {leaf.name!r}, {place(row)}: {rest}")
    return error


def _objects(leaf: Leaf, values: pa.Array) -> np.ndarray:
    rows = Rows(len(values))
    column = Column(leaf.path, leaf.feature, pa.chunked_array([values]), rows)
    return objects(column)(values, rows)


def _opened(leaf: Leaf, values: pa.Array, finish: Callable) -> Iterator[Any]:
    """Yields what `finish` makes of each image, None of None, the error of a damaged one."""

    def attempt(value: dict[str, Any] | None) -> Any:
        try:
            return None if value is None else finish(open_image(leaf.feature, value))
        except (DamagedImage, Misfit) as error:
            return error

    files = values.to_pylist()
    if len(files) == 1:
        return iter([attempt(files[0])])
    with ThreadPoolExecutor(min(cores(), len(files))) as pool:
        return iter(list(pool.map(attempt, files)))


def _images(leaf: Leaf, values: pa.Array) -> tuple[np.ndarray, dict[int, str]]:
    found = list(_opened(leaf, values, np.array))
    damage = {row: str(item) for row, item in enumerate(found) if isinstance(item, DamagedImage)}
    return object_array(found), damage


def _pixels(leaf: Leaf, values: pa.Array, place: Place) -> tuple[np.ndarray, dict[int, str]]:
    out, damage = np.empty((len(values), *leaf.shape), leaf.dtype), {}

    def finish(image: Any) -> np.ndarray:
        pixels = np.asarray(converted(image, leaf.mode))
        if pixels.shape != leaf.shape:
            raise Misfit(0, f"an image of mode {image.mode} and {dimensions(image.size)}")
        return pixels

    for row, item in enumerate(_opened(leaf, values, finish)):
        if isinstance(item, DamagedImage):
            damage[row] = str(item)
        elif item is None or isinstance(item, Misfit):
            raise _unlike(leaf, place(row), "None" if item is None else item.found)
        else:
            out[row] = item
    return out, damage
