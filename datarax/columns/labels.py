"""Class labels that have no name: the names of a card or a schema, compared with the rows."""

from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from datarax.columns.arrow import Column, blocks, indices, plain
from datarax.columns.lists import flatten, is_list, leaf_type
from datarax.errors import listed

_UNLABELLED = -1  # what `datasets` stores where a row has no label, as in the test splits of GLUE


def class_label(feature: Any) -> datasets.ClassLabel | None:
    """Returns the class labels that a column, or lists in it, hold; None for other columns."""
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    return feature if isinstance(feature, datasets.ClassLabel) and feature.names else None


def unnamed(feature: datasets.ClassLabel, values: pa.Array) -> dict[int, int]:
    """Returns the rows whose label has no name, with the label.

    Args:
        feature: The names.
        values: `n` labels, or lists of them, nested or not.
    """
    if not _outside(feature, values):
        return {}
    rows = ((row, _outside(feature, values[row : row + 1])) for row in range(len(values)))
    return {row: outside[0] for row, outside in rows if outside}


def expect_named(column: Column) -> None:
    """Raises a `ValueError` that names column and row if a label of a column has no name."""
    feature = class_label(column.feature)
    if feature is None:
        return
    for where, block in blocks(column.values, column.rows):
        for row, label in unnamed(feature, plain(block)).items():
            number = column.rows.number(int(indices(where)[row]))
            said = said_of(feature, label, column.path[0])
            raise ValueError(f"column {column.name!r}, row {number}: {said}.")


def said_of(feature: datasets.ClassLabel, label: int, column: str) -> str:
    """Returns what an error says of a label without a name.

    Args:
        feature: The names.
        label: The label.
        column: The name of the column.
    """
    names = feature.names or []
    shown = listed(names) if len(names) < 10 else f"{names[0]!r} to {names[-1]!r}"
    return (
        f"found the label {label}, and the class labels are 0 to {len(names) - 1} "
        f"({shown}). Give each label a name, features=datasets.Features({{{column!r}: "
        "datasets.ClassLabel(names=[...]), ...}), repair the row, or leave the column out: "
        f"exclude_keys={{{column!r}}}"
    )


def _outside(feature: datasets.ClassLabel, values: pa.Array) -> list[int]:
    if not pa.types.is_integer(leaf_type(values.type)):
        return []
    while is_list(values.type):
        values = flatten(values)
    found = pc.call_function("min_max", [values]).as_py()
    low, high = found["min"], found["max"]
    if low is None or (low >= _UNLABELLED and high < len(feature.names or ())):
        return []
    return [low if low < _UNLABELLED else high]
