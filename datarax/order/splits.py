"""Splits: which records are in which part, the same on every machine."""

import numbers

import numpy as np

from datarax.errors import expect_between
from datarax.order.permutation import index_shuffle


def split(
    num_records: int, fraction: float, *, seed: int = 0, classes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the records of the rest and of a part, drawn at random, each in stored order.

    Args:
        num_records: Number of records, at least 2.
        fraction: The part's share of them, between 0 and 1.
        seed: Seed of the draw.
        classes: The class of each record, shape `(num_records,)`: the part has `fraction` of each
            class, to within one record. None: whatever the draw gives.

    Returns:
        Two `int64` arrays, disjoint and complete; neither is empty.

    Raises:
        ValueError: If `fraction` is not between 0 and 1, or there are fewer than two records.
    """
    if not isinstance(fraction, numbers.Real) or not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction!r}: expected a number between 0 and 1, such as 0.1.")
    if num_records < 2:
        raise ValueError(f"There is {num_records} record: a split needs two at least.")
    size = min(max(round(fraction * num_records), 1), num_records - 1)
    # Evenly spaced in an order by class, the part has its share of every class.
    drawn = np.zeros(num_records, bool)
    place = np.arange(num_records, dtype=np.int64)
    drawn[_mixed(num_records, seed, classes)] = (place + 1) * size // num_records > (
        place * size // num_records
    )
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def fold(
    num_records: int, i: int, of: int, *, seed: int = 0, classes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the records of training and validation of fold `i`, each in stored order.

    Args:
        num_records: Number of records, at least `of`.
        i: The fold, from 0 to `of - 1`. Its records are its validation; those of all folds are
            disjoint and complete.
        of: Number of folds, at least 2.
        seed: Seed of the draw, the same for all folds.
        classes: The class of each record, shape `(num_records,)`: every fold has as many of each
            class, to within one record. None: whatever the draw gives.

    Returns:
        Two `int64` arrays.

    Raises:
        ValueError: If there are fewer records than folds, or `i` or `of` is out of range.
    """
    if not hasattr(of, "__index__") or not 2 <= of <= num_records:
        raise ValueError(
            f"of={of!r}: expected 2 to {num_records} folds, since each needs a record of its own."
        )
    expect_between("i", i, 0, of - 1)
    number = np.empty(num_records, np.int64)
    number[_mixed(num_records, seed, classes)] = np.arange(num_records) % of
    return np.flatnonzero(number != i), np.flatnonzero(number == i)


def _mixed(num_records: int, seed: int, classes: np.ndarray | None) -> np.ndarray:
    """Returns all records in random order, class by class where there are classes."""
    expect_between("seed", seed, 0, 2**32 - 1)
    order = np.asarray(
        index_shuffle(np.arange(num_records), num_records=num_records, seed=seed)
    ).astype(np.int64)
    if classes is None:
        return order
    return order[np.argsort(np.asarray(classes)[order], kind="stable")]
