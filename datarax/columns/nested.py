"""Paths of nested columns: a nested feature becomes one column a path, and one dict again."""

from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import compute

from datarax.columns.arrow import Column, Rows, blocks

Path = tuple[str, ...]

_compute: Any = compute  # its functions are made at run time


def nested(leaves: Iterable[tuple[Path, Any]]) -> dict[str, Any]:
    """Returns a nested dict of paths and their values.

    Args:
        leaves: Pairs of a path and a value; the order of the paths is that of the dict.

    Example:
        >>> nested([(("x",), 1), (("a", "b"), 2), (("a", "c"), 3)])
        {'x': 1, 'a': {'b': 2, 'c': 3}}
    """
    data: dict[str, Any] = {}
    for (*parents, name), value in leaves:
        inner = data
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return data


def at(table: pa.Table, path: Path) -> pa.ChunkedArray:
    """Returns the values that a table holds at a path."""
    values = table.column(path[0])
    return _compute.struct_field(values, list(path[1:])) if path[1:] else values


def parts(column: Column, scope: Rows) -> Iterator[Column]:
    """Yields the columns within a nested column, or the column itself.

    A nested column with a row that is None stays one column, since a dict of columns cannot say
    which of its rows are None.

    Args:
        column: A column, nested or not.
        scope: The rows that decide whether it is None somewhere.
    """
    feature, values = column.feature, column.values
    if isinstance(feature, (datasets.Translation, datasets.TranslationVariableLanguages)):
        feature = {field.name: None for field in values.type}
    if isinstance(feature, dict) and feature and not _has_nulls(values, scope):
        for key, part in feature.items():
            inner = _compute.struct_field(values, [key])
            yield from parts(Column((*column.path, key), part, inner, column.rows), scope)
    else:
        yield column


def _has_nulls(values: pa.ChunkedArray, scope: Rows) -> bool:
    return values.null_count > 0 and any(block.null_count for _, block in blocks(values, scope))
