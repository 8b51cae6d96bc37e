"""What the columns of a stream are, by its first rows: arrays or host columns."""

from dataclasses import dataclass
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
from datarax.columns.nested import Path, at, parts
from datarax.columns.numbers import dense
from datarax.columns.objects import host_column, objects
from datarax.stream.shards import Shards

_FIRST = 1024  # rows that decide what a column is
_FIRST_IMAGES = 16  # of them decoded
_FINGERPRINTED = 64  # rows whose values a stream is recognised by
OBJECT = np.dtype(object)


class FirstRows(NamedTuple):
    """The first table that has rows, and the features of all."""

    table: pa.Table
    features: datasets.Features


@dataclass(frozen=True, eq=False)
class ColumnSpec:
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
        return self.dtype != OBJECT and self.mode is None

    def of(self, table: pa.Table) -> pa.ChunkedArray:
        """Returns the leaf's values in a table."""
        return at(table, self.path)


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
    try:
        first = dense(column, column.rows)
    except Misfit as misfit:
        why = host_column(column, objects(column), misfit)
        return ColumnSpec(column.path, column.feature, (), OBJECT, why=f"{why.reason}. {why.fix}")
    return ColumnSpec(column.path, column.feature, first.shape[1:], first.dtype)


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
    # A photo on its side has the size of its header only before it is turned upright.
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
    return ColumnSpec(column.path, column.feature, (), OBJECT, why=f"{found}. {fix}")


def fingerprint(shards: Shards, first: FirstRows) -> str:
    """Returns a fingerprint of a stream's content, as far as it is known before it is read."""
    digest = Digest("stream", shards.num_shards, shards.length)
    for name in sorted(first.features):
        digest.note(name, first.features[name])
        column = first.table.column(name).slice(0, _FINGERPRINTED)
        digest.arrow(pa.concat_arrays(column.chunks))
    return digest.hex()
