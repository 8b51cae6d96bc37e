"""Token lists of different lengths, padded or packed to one length.

Tokenising itself is the business of `tokenizers` and `transformers`.
"""

import datasets
import numpy as np
import pyarrow as pa

from datarax.errors import expect_between, listed


def pad(
    dataset: datasets.Dataset, length: int, *, column: str = "input_ids", pad_id: int = 0
) -> datasets.Dataset:
    """Returns the dataset with each row's tokens cut or padded to `length`.

    Args:
        dataset: Has a column of integer lists of any lengths.
        length: Tokens a row; what is longer loses its end.
        column: That column.
        pad_id: What fills the rest.

    Returns:
        The dataset, with `column` as `(length,)` of `int32` a row and a new column
        `attention_mask`, `(length,)` of `int8`: 1 where there is a token, 0 where there is padding.

    Raises:
        ValueError: If there is no such column, or it holds no integer lists.

    Example:
        >>> tokens = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8]]})
        >>> pad(tokens, 2)[:]
        {'input_ids': [[5, 6], [8, 0]], 'attention_mask': [[1, 1], [1, 0]]}
    """
    expect_between("length", length, 1, 2**31 - 1)
    values, starts, sizes = _ragged(dataset, column)
    place = np.arange(length)
    mask = place < np.minimum(sizes, length)[:, None]
    padded = np.full((len(sizes), length), pad_id, np.int32)
    padded[mask] = values[(starts[:, None] + place)[mask]]
    return _with(dataset, {column: padded, "attention_mask": mask.astype(np.int8)})


def pack(
    dataset: datasets.Dataset,
    length: int,
    *,
    column: str = "input_ids",
    end_id: int | None = None,
) -> datasets.Dataset:
    """Returns a dataset of all tokens one after the other, cut into rows of `length`.

    Args:
        dataset: Has a column of integer lists of any lengths.
        length: Tokens a row; fewer than `length` at the very end are left out.
        column: That column; the others have no meaning any more and are left out.
        end_id: Token to put behind each list, or None.

    Returns:
        A dataset with `column` as `(length,)` of `int32` a row, and `attention_mask`, all ones.

    Raises:
        ValueError: If there is no such column, it holds no integer lists, or there are fewer than
            `length` tokens.

    Example:
        >>> tokens = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8]]})
        >>> pack(tokens, 3, end_id=1)["input_ids"][:]
        [[5, 6, 7], [1, 8, 1]]
    """
    expect_between("length", length, 1, 2**31 - 1)
    values, starts, sizes = _ragged(dataset, column)
    values = values[starts[0] : starts[-1] + sizes[-1]] if len(starts) else values[:0]
    if end_id is not None:
        values = np.insert(values, np.cumsum(sizes), end_id)
    rows = len(values) // length
    if not rows:
        raise ValueError(f"There are {len(values)} tokens: fewer than one row of length={length}.")
    packed = values[: rows * length].reshape(rows, length)
    return _with(None, {column: packed, "attention_mask": np.ones((rows, length), np.int8)})


def _ragged(dataset, column):
    """Returns all values as `int32`, and where each row begins and how long it is."""
    if column not in dataset.features:
        raise ValueError(
            f"There is no column {column!r}: there are {listed(dataset.features)}. Tokenise first, "
            f"as in ds.map(lambda row: {{{column!r}: tokenizer.encode(row['text']).ids}})."
        )
    lists = dataset.select_columns(column).with_format("arrow")[:].column(0).combine_chunks()
    lists = lists.cast(pa.large_list(lists.type.value_type)) if _is_list(lists) else lists
    if not pa.types.is_large_list(lists.type) or not pa.types.is_integer(lists.type.value_type):
        raise ValueError(
            f"Column {column!r} is {dataset.features[column]}: expected lists of integers."
        )
    if lists.null_count or lists.flatten().null_count:
        raise ValueError(f"Column {column!r} holds nulls: fill or filter them first.")
    offsets = lists.offsets.to_numpy()
    values = lists.values.to_numpy(zero_copy_only=False)
    narrow = values.astype(np.int32)
    large = values[narrow != values]
    if len(large):
        raise ValueError(f"Column {column!r} holds {large[0]}, which does not fit into int32.")
    return narrow, offsets[:-1], np.diff(offsets)


def _is_list(array) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)


def _with(dataset: datasets.Dataset | None, columns: dict[str, np.ndarray]) -> datasets.Dataset:
    """Returns the dataset with these columns, `(rows, length)`, replaced where they exist."""
    table, features = {}, {}
    if dataset is not None:
        whole = dataset.with_format("arrow")[:]
        table = dict(zip(whole.column_names, whole.columns, strict=True))
        features = dict(dataset.features)
    for name, array in columns.items():
        length = array.shape[1]
        values = pa.array(np.ascontiguousarray(array).reshape(-1))
        table[name] = pa.FixedSizeListArray.from_arrays(values, length)
        features[name] = datasets.List(datasets.Value(array.dtype.name), length=length)
    features = datasets.Features(features)
    return datasets.Dataset(pa.table(table).cast(features.arrow_schema))
