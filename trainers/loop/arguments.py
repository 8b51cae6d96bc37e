"""The arguments of `Trainer`, checked before anything is loaded or compiled."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import optax
from clu import metrics as clu
from flax import nnx

from datarax.errors import expect_between

_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save and what to keep.

    The last step is always saved, and so is the step at which a run is stopped, preempted or ended
    by an exception of a callback or of the data.

    Args:
        every: Steps between two checkpoints.
        keep: How many of the newest to keep.
        best: `(metric, "min" | "max")`, such as `("eval/accuracy", "max")`: the checkpoint with the
            best value is kept beside them, under `<workdir>/best`.
        every_minutes: Minutes between two checkpoints, beside `every`.

    Raises:
        ValueError: If a number is not positive or `best` is no such pair.

    Example:
        >>> Checkpoints(every=500, best=("eval/accuracy", "max")).keep
        3
    """

    every: int = 1000
    keep: int = 3
    best: tuple[str, str] | None = None
    every_minutes: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "every", integer("every", self.every))
        object.__setattr__(self, "keep", integer("keep", self.keep))
        if self.best is not None and (len(self.best) != 2 or self.best[1] not in ("min", "max")):
            raise ValueError(f'best={self.best!r}: expected a pair as ("eval/accuracy", "max").')
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(f"every_minutes={self.every_minutes}: expected a positive number.")


def checked(**given: Any) -> SimpleNamespace:
    """Returns arguments of `Trainer` as the run takes them: integers as `int`, lists as tuples.

    Args:
        given: Arguments by name; those that the table below lacks are returned as they are.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a value is out of its range, or arguments contradict each other.
    """
    found = SimpleNamespace(
        **{name: _CHECKS.get(name, _anything)(name, value) for name, value in given.items()}
    )
    expect_one_end(found.steps, found.epochs)
    if found.profile is not None and found.workdir is None:
        raise ValueError(
            f"profile={found.profile} is written under the workdir: give workdir= as well."
        )
    return found


def expect_one_end(steps: int | None, epochs: int | None) -> None:
    """Raises `ValueError` where a run is given two ends."""
    if steps is not None and epochs is not None:
        raise ValueError(f"steps={steps} and epochs={epochs}: give one of the two.")


def integer(name: str, value: Any, low: int = 1, high: int = _MOST) -> int:
    """Returns `value` as a Python `int`; it may be one of NumPy's or JAX's.

    Raises:
        ValueError: If it is no integer from `low` to `high`.
    """
    expect_between(name, value, low, high)
    return value.__index__()


def optional_integer(name: str, value: Any) -> int | None:
    """Returns `value` as `integer` does, or None."""
    return None if value is None else integer(name, value)


# --- one check an argument: `(name, value) -> value` ---------------------------------------------


def _anything(name: str, value: Any) -> Any:
    return value


def _model(name: str, value: Any) -> nnx.Module:
    if not isinstance(value, nnx.Module):
        raise TypeError(f"{name} is a {type(value).__name__}: expected a flax nnx.Module.")
    return value


def _loss(name: str, value: Any) -> Callable | None:
    if value is not None and not callable(value):
        raise TypeError(
            f"{name} is a {type(value).__name__}: expected a function (model, batch) -> losses of "
            "shape (batch,), or None for the one that fits the features."
        )
    return value


def _optimizer(name: str, value: Any) -> optax.GradientTransformation:
    if value is None:
        return optax.adamw(1e-3)
    if not isinstance(value, optax.GradientTransformation):
        hint = "such as optimizer=optax.adamw(1e-3)"
        if isinstance(value, optax.MultiSteps):
            hint = "write optimizer=optax.MultiSteps(...).gradient_transformation()"
        raise TypeError(
            f"{name} is a {type(value).__name__}: expected an optax transformation, {hint}."
        )
    return value


def _metrics(name: str, value: Any) -> type[clu.Collection] | None:
    is_collection = isinstance(value, type) and issubclass(value, clu.Collection)
    if value is not None and not is_collection:
        raise TypeError(
            f"{name}={value!r}: expected a clu.metrics.Collection class, such as "
            "metrics=clu.metrics.Collection.create(accuracy=clu.metrics.Accuracy)."
        )
    return value


def _ema(name: str, value: Any) -> float | Callable[..., Any] | None:
    if value is None or callable(value):
        return value
    if not (hasattr(value, "__float__") and 0 < value < 1):
        raise ValueError(
            f"{name}={value!r}: expected a number between 0 and 1, such as ema=0.999, or a "
            "function (optimizer's state, parameters) -> parameters."
        )
    return float(value)


def _precision(name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} is no dtype: write precision=jnp.bfloat16.") from None
    if dtype not in (jnp.bfloat16, jnp.float32):
        why = " overflows without loss scaling" * (dtype == jnp.float16)
        raise ValueError(f"{name}={dtype}{why}: write precision=jnp.bfloat16.")
    return value


def _resume_data(name: str, value: Any) -> str:
    if value not in ("exact", "restart"):
        raise ValueError(f'{name}={value!r}: expected "exact" or "restart".')
    return value


def _checkpoint(name: str, value: Any) -> Checkpoints:
    if not isinstance(value, Checkpoints):
        raise TypeError(f"{name} is a {type(value).__name__}: write checkpoint=Checkpoints(...).")
    return value


def _callbacks(name: str, value: Any) -> tuple:
    return _all(name, value, callable, "functions run -> bool | None", "fn")


def _writers(name: str, value: Any) -> tuple:
    writes = lambda one: callable(getattr(one, "write_scalars", None))  # noqa: E731
    return _all(
        name, () if value is None else value, writes, "objects with write_scalars", "writer"
    )


def _all(name: str, given: Any, fits: Callable[[Any], bool], what: str, one: str) -> tuple:
    """Returns a list's elements; raises `TypeError` where it is no list or one does not fit."""
    is_list = isinstance(given, Iterable) and not isinstance(given, str)
    found = tuple(given) if is_list else ()
    wrong = [element for element in found if not fits(element)]
    if not is_list or wrong:
        verb, kind = ("holds", type(wrong[0])) if wrong else ("is", type(given))
        raise TypeError(
            f"{name} {verb} a {kind.__name__}: expected a list of {what}, write {name}=[{one}]."
        )
    return found


def _profile(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{name}={value!r}: expected (first, last), such as profile=(100, 110).")
    first = integer("profile[0]", value[0])
    return first, integer("profile[1]", value[1], low=first)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "model": _model,
    "loss": _loss,
    "optimizer": _optimizer,
    "metrics": _metrics,
    "batch_size": optional_integer,
    "steps": optional_integer,
    "epochs": optional_integer,
    "accumulate": integer,
    "ema": _ema,
    "precision": _precision,
    "log_every": integer,
    "eval_every": optional_integer,
    "checkpoint": _checkpoint,
    "shards": integer,
    "resume_data": _resume_data,
    "callbacks": _callbacks,
    "writers": _writers,
    "profile": _profile,
    "seed": functools.partial(integer, low=0, high=2**32 - 1),
}
