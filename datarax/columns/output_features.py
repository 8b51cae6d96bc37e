"""The features of columns that a transform makes, by its first records."""

from typing import Any

import datasets
import jax
import numpy as np

from datarax.columns.lists import is_number, leaf_type
from datarax.columns.nested import Path

_HOST = {str: datasets.Value("string"), bytes: datasets.Value("binary")}


def feature_at(features: Any, path: Path) -> Any:
    """Returns the feature at a path of nested features, None where there is none."""
    for name in path:
        features = features.get(name) if isinstance(features, dict) else None
    return features


def is_same(record: dict[str, Any], path: Path, made: dict[Path, Any]) -> bool:
    """Returns whether a column is the record's own: the same object, or an equal number or text."""
    own: Any = record
    for name in path:
        if not isinstance(own, dict) or name not in own:
            return False
        own = own[name]
    value = made.get(path)
    if own is value:
        return True
    return type(own) is type(value) and isinstance(own, (int, float, str, bytes)) and own == value


def made_feature(own: Any, value: Any, array: np.ndarray | None) -> Any:
    """Returns the feature of a column that is not the record's own, None if none says what it is.

    Args:
        own: The feature of the record's column of the same name, None if there is no such column.
        value: What the transform returned for the first record.
        array: The same as an array, None of a host column.
    """
    if array is None:
        return _HOST.get(type(value))
    if isinstance(own, datasets.Image) and array.dtype == np.uint8 and array.ndim in (2, 3):
        return own
    try:
        feature: Any = datasets.Value(array.dtype.name)
    except ValueError:  # of complex numbers, and of bfloat16
        return None
    for size in reversed(array.shape):
        feature = datasets.List(feature, length=size)
    return feature


def stored_dtype(feature: Any) -> np.dtype | None:
    """Returns the dtype of the numbers that a feature declares, None if it declares none."""
    if feature is None:
        return None
    leaf = leaf_type(datasets.Features({"": feature}).arrow_schema.field(0).type)
    return np.dtype(leaf.to_pandas_dtype()) if is_number(leaf) else None


def device_dtype(dtype: np.dtype) -> np.dtype:
    """Returns a dtype as JAX has it: in 32 bits where it has no 64."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))
