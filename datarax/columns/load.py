"""A `datasets.Dataset` becomes one array a column, whatever is in it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import datasets
import numpy as np

from datarax.columns.arrow import Column, Misfit, Rows, expect_no_transform, rows_of, without_views
from datarax.columns.host import HostColumn
from datarax.columns.images import (
    Damage,
    damaged,
    damaged_rows,
    image_objects,
    load_images,
    one_by_one,
    pictures_a_row,
)
from datarax.columns.labels import expect_named
from datarax.columns.nested import nested, parts
from datarax.columns.numbers import dense
from datarax.columns.objects import host_column, objects
from datarax.errors import chosen, expect_rows, listed
from datarax.hub.private import table_of

_COMPACTED = 1024  # rows moved at a time


@dataclass(frozen=True, eq=False)
class Columns:
    """A dataset as columns.

    Args:
        data: One entry a column: an array of shape `(length, ...)`, a `HostColumn`, or, for a
            nested feature, a dict of them.
        length: The number of rows.
        skipped: The number of rows that were left out because an image in them is damaged.
        features: The features of the columns, as the dataset declares them.
    """

    data: dict[str, Any]
    length: int
    skipped: int
    features: datasets.Features


def load_columns(
    dataset: datasets.Dataset,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    on_bad_rows: Literal["raise", "skip"] = "raise",
    cache: bool = True,
    rows: np.ndarray | None = None,
) -> Columns:
    """Loads a dataset from Arrow into host memory, one array a column.

    Numbers, booleans, class labels, lists and arrays of one shape and images of one size become
    arrays; what cannot be one array becomes a `HostColumn`. The features decide the dtypes: images
    `uint8`, class labels `int32`, 64-bit numbers 32 bits unless JAX has `jax_enable_x64`, and
    everything else as declared. A format set on the dataset is ignored.

    Args:
        dataset: Any dataset, selected, shuffled, mapped or filtered.
        include: The columns to load; None for all.
        exclude: Columns to leave out; a name that does not exist is no error.
        on_bad_rows: What to do where an image is damaged: raise, or skip the row in all columns.
        cache: Whether decoded images may be kept on disk (`datarax.columns.image_cache`).
        rows: Load these rows only, in this order; integers of shape `(k,)`. What a column becomes
            depends on all rows, save that images are looked at in these only.

    Returns:
        The columns.

    Raises:
        TypeError: `dataset` is no `datasets.Dataset`.
        IndexError: A number of `rows` is out of range.
        ValueError: The dataset is empty, a column of `include` does not exist or none is left, a
            64-bit integer is out of range, a class label has no name, or an image is damaged; it
            names column and row.

    Example:
        >>> columns = load_columns(datasets.Dataset.from_dict({"x": [1, 2, 3]}))
        >>> columns.data["x"]
        array([1, 2, 3], dtype=int32)
    """
    if on_bad_rows not in ("raise", "skip"):
        raise ValueError(f"on_bad_rows={on_bad_rows!r}: expected 'raise' or 'skip'.")
    features = chosen_features(dataset, include, exclude)
    scope = rows_of(dataset)
    kept = scope if rows is None else scope.take(row_numbers(rows, len(dataset)))
    table = without_views(table_of(dataset).select(list(features)))
    stored = (
        Column((name,), feature, table.column(name), kept) for name, feature in features.items()
    )
    leaves = [leaf for column in stored for leaf in parts(column, scope)]

    loaded, damage = {}, {}
    for leaf in filter(is_image, leaves):  # first, since they tell which rows to skip
        loaded[leaf.path], found = _images(leaf, cache, verify=on_bad_rows == "skip")
        if found and on_bad_rows == "raise":
            raise damaged(leaf, *min(found.items()))
        damage |= found
    if damage:
        whole = np.delete(np.arange(kept.length), sorted(damage))
        kept = kept.take(whole)
        scope = kept if rows is None else scope
        loaded = {path: _compact(column, whole) for path, column in loaded.items()}
    for leaf in leaves:
        if leaf.path not in loaded:
            leaf = replace(leaf, rows=kept)
            expect_named(leaf)
            loaded[leaf.path] = _values(leaf, scope)

    data = nested((leaf.path, loaded[leaf.path]) for leaf in leaves)
    return Columns(data, kept.length, len(damage), features)


def _check(dataset: datasets.Dataset) -> None:
    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise TypeError(
            f"Expected one split, got a dict of them: take one of {listed(map(str, dataset))}."
        )
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(f"Expected a datasets.Dataset, got {type(dataset).__name__}.")
    expect_no_transform(dataset)
    if not len(dataset):
        split = f"The split {str(dataset.split)!r}" if dataset.split else "The dataset"
        raise ValueError(f"{split} is empty: there are no rows to load.")


def chosen_features(
    dataset: datasets.Dataset, include: Iterable[str] | None, exclude: Iterable[str] | None
) -> datasets.Features:
    """Returns the features of the columns that `load_columns` loads; it raises what that raises."""
    _check(dataset)
    features = dataset.features  # a deep copy, whenever it is asked for
    return datasets.Features({name: features[name] for name in chosen(features, include, exclude)})


def row_numbers(rows: np.ndarray, length: int) -> np.ndarray:
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
        raise ValueError(f"rows: expected at least one row number, got {rows!r}.")
    expect_rows(numbers, length)
    return numbers.astype(np.int64)


def is_image(column: Column) -> bool:
    if pictures_a_row(column.feature, column.values.type):
        return True
    return isinstance(column.feature, datasets.Image) and column.feature.decode


def _images(column: Column, cache: bool, verify: bool) -> tuple["np.ndarray | HostColumn", Damage]:
    count = pictures_a_row(column.feature, column.values.type)
    try:
        if count is None:
            return load_images(column, cache)
        pixels, damage = load_images(one_by_one(column), cache)
        shape = (column.rows.length, count, *pixels.shape[1:])
        return pixels.reshape(shape), {item // count: said for item, said in damage.items()}
    except Misfit as misfit:
        if count is not None:
            return host_column(column, objects(column), misfit), {}
        host = host_column(column, partial(image_objects, column), misfit)
        return host, damaged_rows(column) if verify else {}


def _values(column: Column, scope: Rows) -> "np.ndarray | HostColumn":
    try:
        return dense(column, scope)
    except Misfit as misfit:
        return host_column(column, objects(column), misfit)


def _compact(column: "np.ndarray | HostColumn", whole: np.ndarray) -> "np.ndarray | HostColumn":
    """Keeps the rows at `whole`, which ascend, in place: there may be no memory for two arrays."""
    if isinstance(column, HostColumn):
        cells: Any = column.cells  # of Arrow: `select` reads none of them
        return column.over(cells.select(whole))
    for start in range(0, len(whole), _COMPACTED):
        some = whole[start : start + _COMPACTED]
        column[start : start + len(some)] = column[some]
    return column[: len(whole)]
