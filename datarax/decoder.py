"""Arrow rows of a stream become columns, by rules that its first rows decide."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datarax.arrow import Column, Misfit, Rows, cores, plain
from datarax.dense import dense
from datarax.host import object_array
from datarax.imagefile import DamagedImage, image_shape, open_image
from datarax.lists import fits, is_number, misfits
from datarax.objects import host_column, objects

Path = tuple[str, ...]
Part = dict[Path, np.ndarray]  # columns, in flat form
Place = Callable[[int], str]

_FIRST = 1024  # rows that decide what a column is
_FIRST_IMAGES = 16  # of them decoded
_OBJECT = np.dtype(object)


@dataclass(frozen=True, eq=False)
class Leaf:
    """A column, or a part of a nested one.

    Args:
        path: Its name, and the names within it if it is nested.
        feature: Its feature.
        shape: The shape of one row.
        dtype: `object` for a host column.
        mode: The mode of the pixels, for an array of images.
        why: What keeps a host column from being an array, and the line that changes it.
    """

    path: Path
    feature: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    mode: str | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """The name that errors use: `"answers.text"`."""
        return ".".join(self.path)

    @property
    def is_number(self) -> bool:
        """Whether it is an array of numbers, not of pixels."""
        return self.dtype != _OBJECT and self.mode is None

    def of(self, table: pa.Table) -> pa.ChunkedArray:
        """Returns the leaf's values in a table."""
        values = table.column(self.path[0])
        for key in self.path[1:]:
            values = pc.struct_field(values, [key])
        return values


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
        first = first.slice(0, _FIRST)
        rows = Rows(len(first))
        columns = (
            Column((name,), feature, first.column(name), rows) for name, feature in features.items()
        )
        self.features = features
        self.leaves = [_leaf(part) for column in columns for part in _parts(column)]
        self.lazy = [leaf for leaf in self.leaves if not leaf.is_number]
        self._numbers = [leaf for leaf in self.leaves if leaf.is_number]

    def spec(self) -> dict[str, Any]:
        """Returns shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`."""
        return nested(
            (leaf.path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) for leaf in self.leaves
        )

    def host_errors(self) -> dict[str, str]:
        """Returns why each host column is no array, by its name."""
        return {leaf.name: leaf.why for leaf in self.leaves if leaf.dtype == _OBJECT}

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
            values = _joined(leaf.of(table))
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


# --- what a column is ------------------------------------------------------------------------


def _parts(column: Column) -> Iterator[Column]:
    """Yields the columns within a nested column; one that is None in a first row is a whole."""
    feature = column.feature
    if isinstance(feature, (datasets.Translation, datasets.TranslationVariableLanguages)):
        feature = {field.name: None for field in column.values.type}
    if isinstance(feature, dict) and feature and not column.values.null_count:
        for key, part in feature.items():
            inner = pc.struct_field(column.values, [key])
            yield from _parts(Column((*column.path, key), part, inner, column.rows))
    else:
        yield column


def _leaf(column: Column) -> Leaf:
    if isinstance(column.feature, datasets.Image) and column.feature.decode:
        return _image_leaf(column)
    try:
        first = dense(column, column.rows)
    except Misfit as misfit:
        why = host_column(column, objects(column), misfit)
        return Leaf(column.path, column.feature, (), _OBJECT, why=f"{why.reason}. {why.fix}")
    return Leaf(column.path, column.feature, first.shape[1:], first.dtype)


def _image_leaf(column: Column) -> Leaf:
    values = _joined(column.values).to_pylist()
    sizes, modes, whole = {}, set(), []
    for row, value in enumerate(values):
        shape = value and image_shape(value)
        size = shape and shape[:2]
        if value is None or size:
            sizes.setdefault(size, row)
    for value in filter(None, values[:_FIRST_IMAGES]):
        try:
            image = open_image(column.feature, value)
        except DamagedImage:
            continue
        modes.add(image.mode)
        whole.append(image)
    # A photo on its side has the size of its header only before it is turned upright.
    mode = _widest(modes)
    if len(sizes) == 1 and mode and len({image.size for image in whole}) == 1:
        pixels = np.asarray(_converted(whole[0], mode))
        dtype = pixels.dtype.newbyteorder("=")
        return Leaf(column.path, column.feature, pixels.shape, dtype, mode=mode)
    seen = list(sizes.items())[:2]
    found = " and ".join(f"row {row} is {_size(size)}" for size, row in seen) or "none is whole"
    made = f"{{{column.path[-1]!r}: row[{column.path[0]!r}].convert('RGB').resize((224, 224))}}"
    fix = f"Give the images one size and mode, ds = ds.map(lambda row: {made})"
    return Leaf(column.path, column.feature, (), _OBJECT, why=f"{found}. {fix}")


def _size(size: tuple[int, int] | None) -> str:
    return "None" if size is None else f"{size[0]}x{size[1]} pixels"


def _widest(modes: set[str]) -> str | None:
    """Returns the smallest mode that holds the pixels of all, None if there is none."""
    if len(modes) == 1:
        return next(iter(modes))
    if not modes or not modes <= {"L", "LA", "RGB", "RGBA"}:
        return None
    colour = "RGB" if any(mode.startswith("RGB") for mode in modes) else "L"
    return colour + "A" * any(mode.endswith("A") for mode in modes)


# --- values ----------------------------------------------------------------------------------


def _numbers(leaf: Leaf, values: pa.ChunkedArray, place: Place) -> np.ndarray:
    if not leaf.shape and not values.null_count and is_number(values.type):
        read = values.to_numpy()  # without a copy where the table is one block
        if read.dtype == leaf.dtype:
            return read
        if read.dtype.kind in "iu" and leaf.dtype.kind in "iu":
            limits = np.iinfo(leaf.dtype)
            if limits.min <= read.min() and read.max() <= limits.max:
                return read.astype(leaf.dtype)
    joined = _joined(values)
    if not fits(joined, leaf.shape):
        row = int(np.flatnonzero(misfits(joined, leaf.shape))[0])
        found = repr(joined[row].as_py())
        raise _unlike(leaf, place(row), found if len(found) < 60 else f"{found[:56]} ...")
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


def _joined(values: pa.ChunkedArray) -> pa.Array:
    return plain(values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks))


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
        pixels = np.asarray(_converted(image, leaf.mode))
        if pixels.shape != leaf.shape:
            raise Misfit(0, f"an image of mode {image.mode} and {_size(image.size)}")
        return pixels

    for row, item in enumerate(_opened(leaf, values, finish)):
        if isinstance(item, DamagedImage):
            damage[row] = str(item)
        elif item is None or isinstance(item, Misfit):
            raise _unlike(leaf, place(row), "None" if item is None else item.found)
        else:
            out[row] = item
    return out, damage


def _converted(image: Any, mode: str) -> Any:
    """Returns an image in a mode that holds all its pixels, or as it is."""
    if image.mode != mode and _widest({image.mode, mode}) == mode:
        return image.convert(mode)
    return image
