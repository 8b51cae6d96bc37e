"""The shape and dtype that every row of a source has."""

from typing import Any

import jax
import numpy as np

from datarax.columns.host import is_host
from datarax.errors import listed


class RowSpec:
    """What every row of a source is, as of its first: static to JAX, and shared by copies.

    Args:
        rows: The columns of the first row alone.
    """

    def __init__(self, rows: dict[str, Any]):
        self.record = jax.tree.map(
            lambda c: jax.ShapeDtypeStruct(c.shape[1:], c.dtype), rows, is_leaf=is_host
        )
        columns = jax.tree.leaves(rows, is_leaf=is_host)
        self.host = tuple(column.over(np.empty(0, object)) for column in columns if is_host(column))

    def check(self, rows: dict[str, Any], records: np.ndarray) -> None:
        """Raises `ValueError` unless the rows' columns are those of the first row."""
        own = jax.tree.leaves_with_path(self.record)
        given = jax.tree.leaves_with_path(rows, is_leaf=is_host)
        if [path for path, _ in own] != [path for path, _ in given]:
            raise ValueError(
                f"read_rows returned the columns {listed(rows)} for row {records[0]}, and "
                f"{listed(self.record)} for row 0: return the same columns for all rows."
            )
        for (path, spec), (_, column) in zip(own, given, strict=True):
            found = len(column), column.shape[1:], column.dtype
            if found != (len(records), spec.shape, spec.dtype):
                raise ValueError(
                    f"read_rows returned {jax.tree_util.keystr(path)} of shape {column.shape} and "
                    f"dtype {column.dtype} for {len(records)} rows from row {records[0]} on: "
                    f"expected {(len(records), *spec.shape)} and {spec.dtype}, as for row 0."
                )
