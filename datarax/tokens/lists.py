"""Lists of tokens as one flat array and a length a list, from a dataset or a batch of one."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from datarax.errors import listed


def flat_tokens(data: datasets.Dataset | Mapping[str, Any], name: str) -> tuple[np.ndarray, ...]:
    """Returns all tokens of a column of lists one after the other, and the length of each list.

    Args:
        data: A dataset, or a batch of one as `map(..., batched=True)` gives it, in any format.
        name: The column of integer lists.

    Returns:
        `int32` tokens of shape `(tokens,)` and `int64` lengths of shape `(rows,)`.

    Raises:
        ValueError: If there is no such column, it holds no integer lists or nulls, or a token does
            not fit into `int32`.
    """
    values, sizes = flat(data, name)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"Column {name!r} holds {values.dtype}: expected lists of integers.")
    narrow = values.astype(np.int32)
    if len(large := values[narrow != values]):
        raise ValueError(f"Column {name!r} holds {large[0]}, which does not fit into int32.")
    return narrow, sizes


def flat(data: datasets.Dataset | Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a column of lists of numbers as `flat_tokens` does, in its own dtype."""
    if name not in (names := column_names(data)):
        raise ValueError(
            f"There is no column {name!r}: there are {listed(names)}. Tokenise first, as in "
            f"ds.map(lambda row: {{{name!r}: tokenizer.encode(row['text']).ids}})."
        )
    if not isinstance(data, (Mapping, pa.Table)):
        dataset: Any = data
        return _of_arrow(dataset.select_columns(name).with_format("arrow")[:].column(0), name)
    if isinstance(column := data[name], (pa.Array, pa.ChunkedArray)):
        return _of_arrow(column, name)
    return _of_lists(column, name)


def column_names(data: datasets.Dataset | Mapping[str, Any]) -> list[str]:
    """Returns the names of a dataset's or a batch's columns; a batch may be an Arrow table."""
    return list(data) if isinstance(data, Mapping) else data.column_names


def _of_arrow(column: pa.Array | pa.ChunkedArray, name: str) -> tuple[np.ndarray, np.ndarray]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    lists = pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    if pa.types.is_list(lists.type) or pa.types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.large_list(lists.type.value_type))
    if not pa.types.is_large_list(lists.type):
        raise ValueError(f"Column {name!r} is {lists.type}: expected lists of integers.")
    if lists.null_count or lists.flatten().null_count:
        raise ValueError(f"Column {name!r} holds nulls: fill or filter them first.")
    sizes = np.diff(lists.offsets.to_numpy())
    return _numbers(lists.flatten().to_numpy(zero_copy_only=False), name), sizes


def _of_lists(column: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = list(column)
    if any(row is None for row in rows):
        raise ValueError(f"Column {name!r} holds nulls: fill or filter them first.")
    if any(np.ndim(row) != 1 for row in rows if not isinstance(row, list)):
        raise ValueError(f"Column {name!r} is {rows[0]!r}: expected lists of integers.")
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    if all(isinstance(row, np.ndarray) for row in rows):
        values = np.concatenate(rows) if rows else np.empty(0, np.int32)
    else:
        values = np.asarray(list(chain.from_iterable(rows)))  # np.fromiter would cut 2.5 to 2
    return _numbers(values, name), sizes


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    if not values.size:
        return values.astype(np.int32)
    if values.dtype.kind not in "iufb" or values.ndim != 1:
        example = values.reshape(-1)[0] if values.dtype.kind != "O" else "None"
        raise ValueError(
            f"Column {name!r} holds {example!r}: expected lists of integers, without nulls."
        )
    return values
