"""A user's function of one record: how it is called, and what it draws from."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from datarax.columns.nested import Path

TransformFunction = Callable[..., Mapping[str, Any]]
"""`(record) -> record` or `(record, rng) -> record`."""


class NoRecord(TypeError):
    """What a function returned where a dict of columns was expected."""


class Transform:
    """A function `record -> record`, or `(record, rng) -> record`.

    Args:
        function: It is given a dict of columns, and a `numpy.random.Generator` if it has a
            parameter `rng`, or a second one without a default. It may be called from several
            threads at once.

    Attributes:
        draws: Whether it is given a generator.
        name: Its module and qualified name, by which errors call it.

    Raises:
        TypeError: If it cannot be called with these.
    """

    def __init__(self, function: TransformFunction):
        if not callable(function):
            raise TypeError(
                f"transform={function!r}: expected a function of one record, as in "
                "transform=lambda record: {...}, or one of datarax.transforms."
            )
        self.function = function
        self.name = _name(function)
        self.draws, self._keyword = _takes_rng(function, self.name)

    @property
    def digest(self) -> str:
        """What a state keeps of it: a digest of its name."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def __call__(self, record: dict[str, Any], seed: int, number: int) -> dict[Path, Any]:
        """Returns the columns of a record, nested ones too, by their path.

        Args:
            record: The record; the function may change it.
            seed: The epoch's seed, `(seed + epoch) % 2**32`.
            number: The record's number.

        Raises:
            NoRecord: The function returned no dict of columns.
        """
        returned = self.call(record, generator(seed, number) if self.draws else None)
        columns = dict(_flat((), returned))
        if not isinstance(returned, Mapping) or not columns:
            raise NoRecord(
                f"the transform {self.name} returned {_shown(returned)}: return a dict of at least "
                'one column, as in return record | {"x": ...}'
            )
        return columns

    def call(self, record: Any, rng: np.random.Generator | None) -> Any:
        """Returns what the function returns; it is given `rng` if it takes one."""
        if not self.draws:
            return self.function(record)
        return self.function(record, rng=rng) if self._keyword else self.function(record, rng)


def generator(seed: int, number: int) -> np.random.Generator:
    """Returns the random numbers of a record in an epoch; takes 9 us.

    Philox is keyed: each key is a stream of its own, and none needs the one before.

    Args:
        seed: The epoch's seed, `(seed + epoch) % 2**32`.
        number: The record's number, below 2**64.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))


def takes_rng(function: TransformFunction) -> bool:
    """Returns whether a transform draws at random: whether it is called with a generator."""
    return Transform(function).draws


def placed(error: Exception, label: str, note: str) -> Exception:
    """Returns an error of a user's function, whose message begins with the row that it got.

    Args:
        error: What the function raised; it keeps its class and its traceback.
        label: The row.
        note: What follows the traceback.
    """
    error.add_note(note)
    if isinstance(error, OSError) and error.strerror is not None:
        error.strerror = f"{label}: {error.strerror}"
    elif len(error.args) <= 1:
        error.args = (": ".join([label, *map(str, error.args)]),)
    return error


def _takes_rng(function: TransformFunction, name: str) -> tuple[bool, bool]:
    """Returns whether a function takes a generator, and whether by the keyword `rng`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # functions written in C may tell nothing
        return False, False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    keyword = any(p.name == "rng" and p.kind is not p.POSITIONAL_ONLY for p in parameters)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(required) > 2 or not (positional or variadic):
        raise TypeError(
            f"The transform {name} takes {inspect.signature(function)}: expected (record) or "
            "(record, rng). Set other parameters with functools.partial."
        )
    return keyword or len(required) == 2, keyword


def _name(function: Any) -> str:
    while hasattr(function, "func"):  # of functools.partial
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _flat(path: Path, value: Any) -> Any:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise NoRecord(f"the transform returned a column named {name!r}: names are text")
            yield from _flat((*path, name), inner)
    elif path:
        yield path, value


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if value is None or value == {} else f"a {type(value).__name__}"
