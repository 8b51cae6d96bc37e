"""Columns: from Arrow to one array a column, or to a host column of objects."""

from datarax.columns.host import HostColumn
from datarax.columns.load import load_columns

__all__ = ["HostColumn", "load_columns"]
