"""Rows that are no numbers of one shape become Python objects, when they are asked for."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import ArrowCells, Column, Misfit, Rows, as_python, blocks
from datarax.columns.host import HostColumn, object_array
from datarax.columns.image_file import DamagedImage, pixels
from datarax.columns.images import damaged
from datarax.columns.lists import (
    fits,
    flatten,
    is_list,
    is_number,
    is_text,
    leaf_type,
    ragged,
    row_shape,
)
from datarax.columns.sounds import DamagedSound, samples

Convert = Callable[[pa.Array, Rows], np.ndarray]


def host_column(column: Column, convert: Convert, misfit: Misfit) -> HostColumn:
    """Makes the host column of a column that is no array.

    Args:
        column: The column.
        convert: Makes an object array of shape `(k,)` of `k` rows of it.
        misfit: The first row that keeps it from being an array.

    Returns:
        The column, none of whose rows has been read.
    """
    return HostColumn(
        column.name,
        ArrowCells(column.values, column.rows, convert),
        reason=f"row {misfit.row} {misfit.found}",
        first_bad=misfit.row,
        fix=f"{_fix(column, misfit)}, or leave it out: exclude_keys={{{column.path[0]!r}}}",
    )


def _fix(column: Column, misfit: Misfit) -> str:
    row = "row" + "".join(f"[{key!r}]" for key in column.path)
    made = f"ds = ds.map(lambda row: {{{column.path[-1]!r}:"
    leaf = leaf_type(column.values.type)
    if is_text(leaf):
        text = row.replace("row", "batch", 1)
        return (
            f"Tokenise it, ds = ds.map(lambda batch: tokenizer({text}, padding='max_length', "
            "truncation=True), batched=True)"
        )
    if misfit.found.startswith(("is None", "holds None")):
        return f"Drop such rows, ds = ds.filter(lambda row: {row} is not None), or fill them"
    if isinstance(column.feature, datasets.Image):
        resized = f"{row}.convert('RGB').resize((224, 224))"
        return f"Give the images one size and mode, {made} {resized}}})"
    encoded = f"ds = ds.cast_column({column.path[0]!r}, datasets.{{}}(decode=False)).map(...)"
    if isinstance(column.feature, datasets.Audio):
        return f"Cut the sounds to one length, {encoded.format('Audio')}"
    if isinstance(column.feature, datasets.Video):
        return f"Videos stay encoded: make arrays of their frames, {encoded.format('Video')}"
    if is_number(leaf):
        return f"Pad or cut it to one length, {made} pad({row})}})"
    return f"Turn it into numbers, {made} encode({row})}})"


def objects(column: Column) -> Convert:
    """Returns what makes Python objects of a column's rows.

    Ragged lists of numbers become arrays of the dtype that the feature declares, images arrays of
    pixels, sounds arrays of samples, and all else what `datasets` gives: text, bytes, dates, lists,
    dicts, and None.

    Args:
        column: A column that is no array.

    Returns:
        A function of `k` rows that returns an object array of shape `(k,)`; it can be pickled.
    """
    type_ = column.values.type
    if needs_decoding(column.feature):
        return partial(_decode, column)
    if not isinstance(type_, pa.BaseExtensionType) and (
        is_text(type_) or pa.types.is_binary(type_)
    ):
        return partial(_stored, column)
    inner = item_shape(column)
    return partial(python_rows, column) if inner is None else partial(_ragged, inner)


def _stored(column: Column, block: pa.Array, rows: Rows) -> np.ndarray:
    try:
        return block.to_numpy(zero_copy_only=False)
    except pa.ArrowException:  # NumPy cannot say which row's text is no UTF-8
        return python_rows(column, block, rows)


def python_rows(column: Column, block: pa.Array, rows: Rows) -> np.ndarray:
    """Returns rows of any type as the Python objects that Arrow makes of them."""
    try:
        return object_array(block.to_pylist())
    except (OverflowError, UnicodeDecodeError):
        return object_array([_object(column, rows.number(i), v) for i, v in enumerate(block)])


def _object(column: Column, row: int, value: pa.Scalar) -> Any:
    try:
        return as_python(value)
    except UnicodeDecodeError as error:
        name = column.path[0]
        raise ValueError(
            f"column {column.name!r}, row {row}: its text is no UTF-8, {error.object[:40]!r}. "
            f"Store it as bytes, ds = ds.cast_column({name!r}, datasets.Value('binary')), or "
            f"leave the column out: exclude_keys={{{name!r}}}"
        ) from None


def _ragged(inner: tuple[int, ...], block: pa.Array, rows: Rows) -> np.ndarray:
    return ragged(block, inner)


def _decode(column: Column, block: pa.Array, rows: Rows) -> np.ndarray:
    found = []
    for row, value in enumerate(block.to_pylist()):
        try:
            found.append(_decoded(column.feature, value))
        except DamagedImage as error:
            raise damaged(replace(column, rows=rows), row, str(error)) from error
        except DamagedSound as error:
            raise ValueError(
                f"column {column.name!r}, row {rows.number(row)}: the sound cannot be decoded "
                f"({error}). Repair it, drop the row, ds = ds.select(...), or leave the column "
                f"out: exclude_keys={{{column.path[0]!r}}}"
            ) from error
    return object_array(found)


def item_shape(column: Column) -> tuple[int, ...] | None:
    """Returns the shape that every item of every list has, or None if there is no such shape.

    Numbers have the shape `()`, in empty lists too; the shape of lists needs one to be seen.
    """
    if not is_number(leaf_type(column.values.type)):
        return None
    inner = None
    for _, block in blocks(column.values, column.rows):
        if not is_list(block.type):
            return None
        items = flatten(block)
        if not is_list(items.type):
            inner = ()
        if len(items):
            inner = row_shape(items.slice(0, 1)) if inner is None else inner
            if not fits(items, inner):
                return None
    return inner


def needs_decoding(feature: Any) -> bool:
    """Returns whether values of a feature are stored in another form than they are given in."""
    if isinstance(feature, dict):
        return any(map(needs_decoding, feature.values()))
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return needs_decoding(feature.feature)
    return isinstance(feature, (datasets.Image, datasets.Audio, datasets.Json)) and feature.decode


def _decoded(feature: Any, value: Any) -> Any:
    if value is None or not needs_decoding(feature):
        return value
    if isinstance(feature, dict):
        return {key: _decoded(part, value[key]) for key, part in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return [_decoded(feature.feature, item) for item in value]
    if isinstance(feature, datasets.Image):
        return pixels(feature, value)
    if isinstance(feature, datasets.Audio):
        return samples(feature, value)
    return feature.decode_example(value)
