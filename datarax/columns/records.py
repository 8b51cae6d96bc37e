"""Rows as the records that Hugging Face gives: images opened, sounds decoded, lists as arrays."""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from datarax.columns.arrow import Column, Rows, plain
from datarax.columns.host import Cells
from datarax.columns.image_file import DamagedImage, lazy_image
from datarax.columns.lists import (
    fits,
    flatten,
    is_list,
    is_number,
    leaf_type,
    ragged,
    row_shape,
    values,
)
from datarax.columns.objects import needs_decoding, python_rows
from datarax.columns.sounds import DamagedSound, decoded


class Records:
    """Some rows, each of which becomes a record when it is asked for, on any thread.

    Args:
        table: The rows; of columns of text or bytes, no views.
        features: The features of the columns.
    """

    def __init__(self, table: pa.Table, features: datasets.Features):
        self._features = features
        self._cells = {
            name: _cells(Column((name,), feature, table.column(name), Rows(len(table))))
            for name, feature in features.items()
        }
        self._length = len(table)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Returns a row as a record: a new dict, whose arrays may be written to.

        Raises:
            ValueError: An image or a sound cannot be read; it names the column.
        """
        record = {}
        for name, feature in self._features.items():
            try:
                record[name] = _opened(feature, self._cells[name][row])
            except DamagedImage as error:
                raise ValueError(
                    f"column {name!r}: the image cannot be decoded ({error})"
                ) from error
            except DamagedSound as error:
                raise ValueError(
                    f"column {name!r}: the sound cannot be decoded ({error})"
                ) from error
        return record

    def file(self, row: int) -> str | None:
        """Returns the file of a row's image or sound, None where it is not known."""
        for name, feature in self._features.items():
            value = self._cells[name][row]
            if isinstance(feature, (datasets.Image, datasets.Audio)) and value and value["path"]:
                return str(value["path"])
        return None


def _cells(column: Column) -> Cells:
    chunks = column.values.chunks
    block = plain(chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks))
    if is_list(block.type) and is_number(leaf_type(block.type)):
        return _arrays(block)
    return python_rows(column, block, column.rows)


def _arrays(block: pa.Array) -> Cells:
    """Returns lists of numbers as arrays; as lists where they are ragged or hold None."""
    shape = row_shape(block[:1])
    if fits(block, shape):
        return values(block, shape).copy()  # Arrow's own memory is read-only
    items = flatten(block)
    if not is_list(items.type) and not items.null_count:
        return ragged(block, ())
    rows = []
    for row in range(len(block)):
        one = block[row : row + 1]
        shape = row_shape(one)
        rows.append(values(one, shape)[0].copy() if fits(one, shape) else one[0].as_py())
    return rows


def _opened(feature: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(feature, dict):
        return {key: _opened(part, value[key]) for key, part in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)) and isinstance(value, list):
        inner = feature.feature
        if isinstance(inner, datasets.Value) and is_number(inner.pa_type) and None not in value:
            return np.asarray(value, inner.pa_type.to_pandas_dtype())
        return [_opened(inner, item) for item in value]
    if isinstance(feature, datasets.Json) and feature.decode:
        return feature.decode_example(value)
    if not needs_decoding(feature):
        return value
    if isinstance(feature, datasets.Image):
        return lazy_image(feature, value)
    sound: Any = feature
    samples, rate = decoded(sound, value)
    samples = samples.mean(axis=0) if samples.ndim > 1 else samples  # as `datasets` has it
    return {"array": samples, "sampling_rate": rate}
