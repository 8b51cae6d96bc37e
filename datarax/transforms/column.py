"""The column of a record that a transform changes."""

from collections.abc import Mapping
from typing import Any

from datarax.errors import closest, listed


def value_of(record: Mapping[str, Any], column: str, transform: str) -> Any:
    """Returns the value of a record's column.

    Raises:
        ValueError: If there is no such column; it says which there are.
    """
    if column not in record:
        raise ValueError(
            f"{transform}: the record has no column {column!r}.{closest(column, record)} It has "
            f"{listed(record)}; choose one with column=."
        )
    return record[column]
