"""Token lists of different lengths, each cut or padded to one length."""

from collections.abc import Mapping
from typing import Any, overload

import datasets
import numpy as np
import pyarrow as pa

from datarax.errors import expect_between
from datarax.tokens.lists import column_names, flat, flat_tokens


@overload
def pad(
    data: datasets.Dataset, length: int, *, column: str = "input_ids", pad_id: int = 0
) -> datasets.Dataset: ...


@overload
def pad(
    data: Mapping[str, Any], length: int, *, column: str = "input_ids", pad_id: int = 0
) -> dict[str, np.ndarray]: ...


def pad(
    data: datasets.Dataset | Mapping[str, Any],
    length: int,
    *,
    column: str = "input_ids",
    pad_id: int = 0,
) -> datasets.Dataset | dict[str, np.ndarray]:
    """Returns token lists cut or padded to `length` each.

    Args:
        data: A dataset with a column of integer lists, or a batch of one in
            `map(pad, batched=True, fn_kwargs={"length": length})`. Its `weights`, a number a token
            as `chat` gives them, are cut and padded alike, with 0.
        length: Tokens a row; a longer list loses its end.
        column: The column of tokens.
        pad_id: The token that fills the rest of a row.

    Returns:
        The dataset, or the new columns of the batch: `column`, `int32` of shape `(rows, length)`,
        `attention_mask`, `int8` of that shape: 1 on tokens, 0 on padding, and `weights`, `float32`,
        where the data has some.

    Raises:
        ValueError: If there is no such column, it holds no integer lists, or `weights` has other
            lengths.

    Example:
        >>> tokens = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8]]})
        >>> pad(tokens, 2)[:]
        {'input_ids': [[5, 6], [8, 0]], 'attention_mask': [[1, 1], [1, 0]]}
        >>> tokens.map(pad, batched=True, fn_kwargs={"length": 2})[1]
        {'input_ids': [8, 0], 'attention_mask': [1, 0]}
    """
    expect_between("length", length, 1, 2**31 - 1)
    values, sizes = flat_tokens(data, column)
    place = np.arange(length)
    mask = place < np.minimum(sizes, length)[:, None]
    starts = np.cumsum(sizes) - sizes
    taken = (starts[:, None] + place)[mask]
    padded = np.full((len(sizes), length), pad_id, np.int32)
    padded[mask] = values[taken]
    columns = {column: padded, "attention_mask": mask.astype(np.int8)}
    if (weights := token_weights(data, sizes)) is not None:
        columns["weights"] = np.zeros(padded.shape, np.float32)
        columns["weights"][mask] = weights[taken]
    return with_columns(data, columns) if isinstance(data, datasets.Dataset) else columns


def token_weights(
    data: datasets.Dataset | Mapping[str, Any], sizes: np.ndarray
) -> np.ndarray | None:
    """Returns the column `weights` as `float32` of shape `(tokens,)`, None where there is none.

    Raises:
        ValueError: If it has not one number a token.
    """
    if "weights" not in column_names(data):
        return None
    weights, lengths = flat(data, "weights")
    if not np.array_equal(lengths, sizes):
        row = int(np.flatnonzero(lengths != sizes)[0])
        raise ValueError(
            f"Row {row} has {sizes[row]} tokens and {lengths[row]} weights: expected one a token."
        )
    return weights.astype(np.float32)


def with_columns(
    dataset: datasets.Dataset | None, columns: Mapping[str, np.ndarray]
) -> datasets.Dataset:
    """Returns the dataset with these columns, `(rows, length)`, replaced where they exist."""
    table, features = {}, {}
    if dataset is not None:
        whole: Any = dataset.with_format("arrow")[:]
        table = dict(zip(whole.column_names, whole.columns, strict=True))
        features = dict(dataset.features)
    for name, array in columns.items():
        length = array.shape[1]
        values = pa.array(np.ascontiguousarray(array).reshape(-1))
        table[name] = pa.FixedSizeListArray.from_arrays(values, length)
        features[name] = datasets.List(datasets.Value(array.dtype.name), length=length)
    features = datasets.Features(features)
    return datasets.Dataset(pa.table(table).cast(features.arrow_schema))
