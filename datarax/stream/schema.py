"""What the columns of a stream are, by its first rows: arrays or host columns."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import Column, Misfit, Rows, plain
from datarax.columns.fingerprint import Digest
from datarax.columns.image_file import (
    DamagedImage,
    converted,
    dimensions,
    image_shape,
    open_image,
    widest,
)
from datarax.columns.images import one_by_one, pictures_a_row
from datarax.columns.lists import leaf_type
from datarax.columns.nested import Path, at, parts
from datarax.columns.numbers import dense
from datarax.columns.objects import Convert, host_column, item_shape, needs_decoding, objects
from datarax.stream.shards import Shards

_FIRST = 1024  # rows that decide what a column is
_FIRST_IMAGES = 16  # of them decoded
_FINGERPRINTED = 64  # rows whose values a stream is recognised by
OBJECT = np.dtype(object)


class FirstRows(NamedTuple):
    """The first table that has rows, the features of all, and the shard that it is of."""

    table: pa.Table
    features: datasets.Features
    shard: str


@dataclass(frozen=True, eq=False)
class ColumnSpec:
    """A column, or a part of a nested one.

    Args:
        path: Its name, and the names within it if it is nested.
        feature: Its feature.
        shape: The shape of one row.
        dtype: `object` for a host column.
        mode: The mode of the pixels, for an array of images.
        host: What the rows of a host column are.
    """

    path: Path
    feature: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    mode: str | None = None
    host: "HostSpec | None" = None

    @property
    def name(self) -> str:
        """The name that errors use: `"answers.text"`."""
        return ".".join(self.path)

    @property
    def is_number(self) -> bool:
        """Whether it is an array of numbers, not of pixels."""
        return self.dtype != OBJECT and self.mode is None

    def of(self, table: pa.Table) -> pa.Array:
        """Returns the column's values in a table, as one array."""
        return joined(at(table, self.path))


@dataclass(frozen=True, eq=False)
class HostSpec:
    """The rows of a host column.

    Args:
        why: What keeps the column from being an array, and the line that changes it.
        stored: The Arrow type of its first rows.
        convert: Makes Python objects of rows of this type.
        items: For lists of numbers that are given as arrays: the shape of one item.
        dtype: The dtype of these arrays.
    """

    why: str
    stored: pa.DataType
    convert: Convert
    items: tuple[int, ...] | None = None
    dtype: np.dtype = OBJECT


def column_specs(features: datasets.Features, first: pa.Table) -> list[ColumnSpec]:
    """Returns what the columns are, those within nested ones too.

    Args:
        features: The features of the rows.
        first: The first rows, at least one.
    """
    first = first.slice(0, _FIRST)
    rows = Rows(len(first))
    columns = (
        Column((name,), feature, first.column(name), rows) for name, feature in features.items()
    )
    return [_spec(part) for column in columns for part in parts(column, rows)]


def joined(values: pa.ChunkedArray) -> pa.Array:
    """Returns values as one array, without a copy where they are."""
    return plain(values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks))


def _spec(column: Column) -> ColumnSpec:
    if isinstance(column.feature, datasets.Image) and column.feature.decode:
        return _image_spec(column)
    if count := pictures_a_row(column.feature, column.values.type):
        try:
            inner = _image_spec(one_by_one(column))
        except Misfit as misfit:
            return _host_spec(column, misfit)
        if inner.host is None:
            return replace(inner, feature=column.feature, shape=(count, *inner.shape))
        return _host_spec(column, Misfit(0, "holds pictures of many sizes or modes"))
    try:
        first = dense(column, column.rows)
    except Misfit as misfit:
        return _host_spec(column, misfit)
    if 0 in first.shape and not pa.types.is_fixed_size_list(plain(column.row(0)).type):
        return _host_spec(column, Misfit(0, "is an empty list, as in all first rows"))
    return ColumnSpec(column.path, column.feature, first.shape[1:], first.dtype)


def _host_spec(column: Column, misfit: Misfit) -> ColumnSpec:
    host = host_column(column, objects(column), misfit)
    why, stored = f"{host.reason}. {host.fix}", joined(column.values).type
    items = None if needs_decoding(column.feature) else item_shape(column)
    dtype = OBJECT if items is None else np.dtype(leaf_type(stored).to_pandas_dtype())
    rows = HostSpec(why, stored, objects(column), items, dtype)
    return ColumnSpec(column.path, column.feature, (), OBJECT, host=rows)


def _image_spec(column: Column) -> ColumnSpec:
    values = joined(column.values).to_pylist()
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
    # EXIF rotation swaps width and height after decoding, so decoded sizes count too.
    mode = widest(modes)
    if len(sizes) == 1 and mode and len({image.size for image in whole}) == 1:
        pixels = np.asarray(converted(whole[0], mode))
        dtype = pixels.dtype.newbyteorder("=")
        return ColumnSpec(column.path, column.feature, pixels.shape, dtype, mode=mode)
    seen = list(sizes.items())[:2]
    found = (
        " and ".join(f"row {row} is {dimensions(size)}" for size, row in seen) or "none is whole"
    )
    made = f"{{{column.path[-1]!r}: row[{column.path[0]!r}].convert('RGB').resize((224, 224))}}"
    fix = f"Give the images one size and mode, ds = ds.map(lambda row: {made})"
    host = HostSpec(f"{found}. {fix}", joined(column.values).type, objects(column))
    return ColumnSpec(column.path, column.feature, (), OBJECT, host=host)


def fingerprint(shards: Shards, first: FirstRows) -> str:
    """Returns a fingerprint of a stream's content, as far as it is known before it is read."""
    digest = Digest("stream", shards.num_shards, shards.length)
    # Inferred labels count as the integers that Arrow sees, as in states of version 0.1.
    features = shards.features or datasets.Features.from_arrow_schema(first.table.schema)
    for name in sorted(features):
        digest.note(name, features[name])
        column = first.table.column(name).slice(0, _FINGERPRINTED)
        digest.arrow(pa.concat_arrays(column.chunks))
    return digest.hex()
