"""Checks of arguments whose messages say what was given and what was expected."""

import difflib
from collections.abc import Iterable


def expect_between(name: str, value, low: int, high: int) -> None:
    """Raises `ValueError` unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}={value!r}: expected an integer from {low} to {high}.")
    if not low <= value.__index__() <= high:
        raise ValueError(f"{name}={value}: expected an integer from {low} to {high}.")


def listed(names: Iterable[str]) -> str:
    """Returns names for a message: quoted, in order, separated by commas."""
    return ", ".join(repr(name) for name in names)


def closest(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `names`, or nothing where none is close."""
    match = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
