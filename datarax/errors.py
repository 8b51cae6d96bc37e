"""Checks of arguments whose messages say what was given and what was expected."""

import difflib
from collections.abc import Collection, Iterable

import numpy as np


def expect_between(name: str, value, low: int, high: int) -> None:
    """Raises `ValueError` unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}={value!r}: expected an integer from {low} to {high}.")
    if not low <= value.__index__() <= high:
        raise ValueError(f"{name}={value}: expected an integer from {low} to {high}.")


def expect_rows(
    rows: np.ndarray, length: int, owner: str = "The dataset", *, noun: str = "row", low: int = 0
) -> None:
    """Raises `IndexError` unless all of `rows` are integers from `low` to `length - 1`.

    Args:
        rows: Row numbers, integers of any shape.
        length: How many rows there are.
        owner: What has them.
        noun: What one of them is called.
        low: The least number; `-length` where negative ones count from the end.

    Example:
        >>> expect_rows(np.array([2, 5]), 5)
        Traceback (most recent call last):
        ...
        IndexError: The dataset has 5 rows, 0 to 4: there is no row 5.
    """
    outside = (rows < low) | (rows >= length)
    if outside.any():
        raise IndexError(
            f"{owner} has {length} {noun}s, 0 to {length - 1}: there is no {noun} "
            f"{rows[outside].flat[0]}."
        )


def expect_dict(state: object) -> None:
    """Raises `TypeError` unless `state` is a dict."""
    if not isinstance(state, dict):
        raise TypeError(
            f"The state is a {type(state).__name__}: expected the dict that get_state() returned."
        )


def listed(names: Iterable[object]) -> str:
    """Returns names for a message: quoted, in order, separated by commas."""
    return ", ".join(repr(name) for name in names)


def expect_columns(given: Iterable[str], columns: Collection[str]) -> None:
    """Raises `ValueError` for the first of `given` that is no column, with the closest name."""
    for name in given:
        if name not in columns:
            hint = closest(name, columns)
            raise ValueError(
                f"There is no column {name!r}.{hint} The columns are {listed(columns)}."
            )


def chosen(
    columns: Collection[str], include: Iterable[str] | None, exclude: Iterable[str] | None
) -> list[str]:
    """Returns the names of the columns to read, in their order.

    Args:
        columns: All columns.
        include: The columns to read; None for all.
        exclude: Columns to leave out; a name that does not exist is no error.

    Raises:
        ValueError: A column of `include` does not exist, or none is left.

    Example:
        >>> chosen(["image", "label", "id"], None, {"id"})
        ['image', 'label']
    """
    include = set(columns if include is None else include)
    expect_columns(sorted(include.difference(columns)), columns)
    wanted = include.difference(exclude or ())
    left = [name for name in columns if name in wanted]
    if not left:
        raise ValueError(
            f"include_keys, exclude_keys: no column is left to read of {listed(columns)}."
        )
    return left


def closest(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `names`, or nothing where none is close."""
    match = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
