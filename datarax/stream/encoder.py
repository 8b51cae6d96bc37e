"""Rows that Python makes become Arrow tables, by one set of features."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa

from datarax.columns.lists import leaf_type
from datarax.errors import listed
from datarax.hub.private import (
    TypedSequence,
    cast_array_to_feature,
    cast_to_python_objects,
    encode_nested_example,
    generate_from_arrow_type,
)
from datarax.stream.pictures import stored_of
from datarax.stream.shards import Unfit
from datarax.stream.sounds import Sound, stored_samples

Row = dict[str, Any]

# Arrow and `datasets` raise these where a value does not fit a type.
MISFITS = (
    *(pa.ArrowException, TypeError, ValueError, LookupError, AttributeError, OverflowError),
    OSError,  # Pillow has no format for pictures of a mode such as HSV
)


_ARRAYS = (datasets.Array2D, datasets.Array3D, datasets.Array4D, datasets.Array5D)


class Encoder:
    """Makes Arrow tables of rows, always by the same features.

    Declared features decide what a column is. Without them the first block decides: each column has
    the type that Arrow infers for the block's values. Pictures stay pictures, and a column that the
    rows had before their last `map` keeps its labels and pictures while its values fit.

    Args:
        declared: The features that the dataset declares, None if it declares none.
        known: The features that the rows had before their last `map`.
        columns: The columns to encode; None for all.
    """

    def __init__(
        self,
        declared: datasets.Features | None = None,
        known: datasets.Features | None = None,
        columns: Sequence[str] | None = None,
    ):
        self._declared, self._known, self._columns = declared, known or {}, columns
        self._resolved: datasets.Features | None = None
        self._types = pa.schema([])  # those of `_resolved`

    @property
    def features(self) -> datasets.Features | None:
        """The features of all tables; None until the first table, where none are declared."""
        return self._declared or self._resolved

    def tables(self, rows: list[Row]) -> Iterator[pa.Table]:
        """Yields rows as tables: one table, if the values of each column have one type.

        Args:
            rows: The rows, by column; a column that a row lacks is None there.

        Raises:
            Unfit: A row fits no table; the tables of the rows before it were yielded.
        """
        while rows:
            # The first `low` rows make a table, the first `high` rows do not.
            low, high, count = 0, len(rows) + 1, len(rows)
            found, unfit = None, None
            while high - low > 1:
                try:
                    found, low = self._encoded(rows[:count]), count
                except Unfit as error:
                    unfit, high = error, count
                count = (low + high) // 2
            if found is None:
                raise unfit or AssertionError("no row")
            table, features = found
            if self.features is None:
                self._resolved, self._types = features, table.schema
            yield table
            rows = rows[low:]

    def _encoded(self, rows: list[Row]) -> tuple[pa.Table, datasets.Features]:
        seen = list(dict.fromkeys(name for row in rows for name in row))
        names = self._columns or (list(self.features) if self.features is not None else seen)
        known = set(names)
        extra = [name for name in seen if name not in known]
        if extra and self._columns is None:
            raise Unfit(
                extra[0],
                f"the stream's first rows have no such column, only {listed(names)}. Declare all "
                "columns, features=datasets.Features({...}), or choose some with include_keys or "
                "exclude_keys",
            )
        arrays, features = [], {}
        for name in names:
            values = [row.get(name) for row in rows]
            try:
                array, features[name] = self._column(name, values)
            except MISFITS as error:
                raise _unfit(name, values[0], error) from error
            arrays.append(array)
        return pa.Table.from_arrays(arrays, names=names), datasets.Features(features)

    def _column(self, name: str, values: list[Any]) -> tuple[pa.Array, Any]:
        if self._declared is not None:
            feature = self._declared[name]
            return _cast(values, feature), feature
        known = (self._known if self._resolved is None else self._resolved).get(name)
        if not _is_plain(known) and _may_be(known, values):
            try:
                return _encode(values, known), known
            except MISFITS:  # the last `map` changed what the column is
                pass
        picture = _pictured(values)
        if picture is not None:
            return _encode(values, picture), picture
        array = pa.array(TypedSequence(values))
        if self._resolved is not None:
            array = _promoted(array, self._types.field(name).type)
        return array, generate_from_arrow_type(array.type)


def fitted(table: pa.Table, features: datasets.Features) -> pa.Table:
    """Returns a table with the types of the features; a column that does not fit stays as it is.

    Args:
        table: A table that a file was read into, which may lack columns and have others.
        features: The features of the dataset.
    """
    if table.schema == features.arrow_schema:
        return table
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for name in features.keys() & columns.keys():
        try:
            chunks = [cast_array_to_feature(c, features[name]) for c in columns[name].chunks]
        except MISFITS:  # the decoder names the rows
            continue
        columns[name] = pa.chunked_array(chunks) if chunks else columns[name]
    return pa.table(columns)


def _cast(values: list[Any], feature: Any) -> pa.Array:
    if not _is_plain(feature):
        return _encode(values, feature)
    try:
        return pa.array(TypedSequence(values, type=feature))
    except MISFITS:
        if _is_truncated(values, feature):
            raise
        return _encode(values, feature)  # as `datasets` does: "7" is 7 in a column of integers


def _encode(values: list[Any], feature: Any) -> pa.Array:
    stored = [_stored(feature, cast_to_python_objects(_with_files(value))) for value in values]
    return pa.array(TypedSequence(stored, type=feature))


def _stored(feature: Any, value: Any) -> Any:
    """Returns a value as `datasets` stores it; a file that is stored already stays as it is."""
    if isinstance(feature, _ARRAYS) and isinstance(value, float):
        return None  # `datasets` gives nan for a None among arrays of many lengths
    is_file = isinstance(value, dict) and value.keys() == {"bytes", "path"}
    if is_file and not isinstance(feature, dict):
        return value
    if isinstance(feature, datasets.Audio) and value is not None:
        return _stored_sound(value)
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _stored(part, value.get(key)) for key, part in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)) and not _is_plain(feature):
        return None if value is None else [_stored(feature.feature, item) for item in value]
    return encode_nested_example(feature, value, level=1)


def _stored_sound(value: Any) -> Any:
    """Returns a sound as `Audio.encode_example` would, which asks for torchcodec first."""
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, (str, Path)):
        return {"bytes": None, "path": str(value)}
    if isinstance(value, dict) and value.get("array") is not None:
        return stored_samples(value)
    return datasets.Audio().encode_example(value)


def _is_truncated(values: list[Any], feature: Any) -> bool:
    """Returns whether floats would become integers, which `datasets` rounds without a word."""
    try:
        given = leaf_type(pa.array(TypedSequence(values)).type)
    except MISFITS:
        return any(isinstance(value, float) and not value.is_integer() for value in values)
    wanted = leaf_type(pa.schema(datasets.Features({"x": feature}).type).field("x").type)
    return pa.types.is_floating(given) and pa.types.is_integer(wanted)


def _with_files(value: Any) -> Any:
    """Returns a value with files of the pictures and sounds in it."""
    if isinstance(value, PIL.Image.Image):
        return stored_of(value)
    if isinstance(value, Sound):
        return value.stored
    if isinstance(value, dict):
        return {key: _with_files(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and _first(
        value, (PIL.Image.Image, Sound, dict, list, tuple)
    ):
        return [_with_files(item) for item in value]
    return value


def _pictured(values: Sequence[Any]) -> Any:
    """Returns the feature of values that hold pictures or sounds, None for others."""
    first = next((v for v in values if v is not None and not _is_empty(v)), None)
    if isinstance(first, PIL.Image.Image):
        return datasets.Image()
    if isinstance(first, Sound):
        return first.feature
    if isinstance(first, (list, tuple)):
        inner = _pictured(first)
        return None if inner is None else datasets.List(inner)
    if isinstance(first, dict):
        parts = {key: [value[key] for value in values if value and key in value] for key in first}
        found = {key: _pictured(part) for key, part in parts.items()}
        if any(feature is not None for feature in found.values()):
            for key in (key for key, feature in found.items() if feature is None):
                found[key] = generate_from_arrow_type(pa.array(TypedSequence(parts[key])).type)
            return found
    return None


def _is_plain(feature: Any) -> bool:
    """Returns whether Arrow infers all that the feature says: no labels, pictures or arrays."""
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return _is_plain(feature.feature)
    return feature is None or isinstance(feature, datasets.Value)


def _may_be(feature: Any, values: Sequence[Any]) -> bool:
    """Returns whether values look like those of a feature, so that encoding changes none."""
    values = [value for value in values if value is not None]
    if isinstance(feature, dict):
        return all(isinstance(v, dict) and v.keys() == feature.keys() for v in values) and all(
            _may_be(part, [value[key] for value in values]) for key, part in feature.items()
        )
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        lists = all(isinstance(value, (list, tuple, np.ndarray)) for value in values)
        return lists and _may_be(feature.feature, [item for value in values for item in value])
    if isinstance(feature, datasets.ClassLabel):
        return all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values)
    if isinstance(feature, datasets.Image):
        return all(isinstance(v, PIL.Image.Image) for v in values) or not feature.decode
    if isinstance(feature, datasets.Audio):
        return all(isinstance(v, Sound) for v in values) or not feature.decode
    # Lists of lists are all that Arrow must know of an array.
    return not isinstance(feature, _ARRAYS)


def _promoted(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Returns Nones, empty lists and integers in the type of a column that has more."""
    given, leaf = leaf_type(array.type), leaf_type(wanted)
    if pa.types.is_null(given) or (pa.types.is_integer(given) and pa.types.is_floating(leaf)):
        try:
            return array.cast(wanted)
        except pa.ArrowException:  # another nesting, or too large for a float: the decoder names it
            return array
    return array


def _first(values: Sequence[Any], kinds: tuple[type, ...]) -> bool:
    """Returns whether the first value that is not None is of one of the kinds."""
    return isinstance(next((value for value in values if value is not None), None), kinds)


def _is_empty(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not value


def _unfit(name: str, value: Any, error: Exception) -> Unfit:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Unfit(
        name,
        f"found {value!r:.60}, which does not fit its type ({text:.200}). "
        f"Declare a type that holds all rows, features=datasets.Features({{{name!r}: ...}}), or "
        "change such rows with ds.map(...)",
    )
