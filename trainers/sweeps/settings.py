"""The settings of a sweep: what each member is given, and what all of them share."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from datarax.errors import closest, listed
from trainers.loop.arguments import integer

Settings = dict[str, Any]
"""What a member is given: numbers by name, such as `{"learning_rate": 1e-3, "seed": 0}`."""


def members_of(given: Mapping[str, Any], optimizer: Any, shared: set[str]) -> list[Settings]:
    """Returns the settings of each member: one for every combination of the lists.

    Args:
        given: What the sweep is given beside the trainer's arguments.
        optimizer: The function that makes an optimizer.
        shared: Names of the trainer's arguments.

    Raises:
        TypeError: If a name is of neither the optimizer nor the trainer.
        ValueError: If there is nothing to sweep, or a value is no number.
    """
    known = {*_parameters(optimizer), "seed"}
    lists = {}
    for name, value in given.items():
        if name not in known:
            hint = closest(name, known | shared)
            raise TypeError(
                f"sweep() takes no {name!r}.{hint} Beside a Trainer's arguments it takes those of "
                f"the optimizer {_name(optimizer)}, {listed(sorted(known - {'seed'}))}, and 'seed'."
            )
        lists[name] = _values(name, value)
    if not lists:
        raise ValueError("There is nothing to sweep: write sweep(..., learning_rate=[1e-3, 1e-2]).")
    if optimizer is optax.adamw:
        lists.setdefault("learning_rate", [1e-3])  # a Trainer's default
    for one in inspect.signature(optimizer).parameters.values():
        if one.default is one.empty and one.name in known and one.name not in lists:
            raise ValueError(
                f"The optimizer {_name(optimizer)} needs {one.name}: write sweep(..., "
                f"{one.name}=1e-3), or a list of such."
            )
    return [dict(zip(lists, one, strict=True)) for one in itertools.product(*lists.values())]


def optimizer_of(optimizer: Callable[..., Any], settings: Settings) -> Any:
    """Returns a member's optimizer, which keeps in its state what members differ in.

    Args:
        optimizer: The function that makes an optimizer.
        settings: The member's settings.
    """
    own = {name: value for name, value in settings.items() if name != "seed"}

    def make(**given: Any) -> optax.GradientTransformation:
        return optimizer(**given)

    # Only these are injected: the other arguments stay constants of the program.
    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in own])
    make.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return optax.inject_hyperparams(make)(**own)


def model_of(make_model: Callable[..., nnx.Module], settings: Settings) -> nnx.Module:
    """Returns a member's model.

    It is `make_model(rngs=nnx.Rngs(seed))` or `make_model(seed=seed)` where a parameter is called
    so, `make_model(seed)` where it needs another argument, and else `make_model()`.

    Raises:
        TypeError: If it returns no model.
        ValueError: If it takes no seed, and there are several.
    """
    seed = settings.get("seed", 0)
    names, required = _parameters(make_model), _parameters(make_model, required=True)
    if "rngs" in names:
        model = make_model(rngs=nnx.Rngs(seed))
    elif "seed" in names:
        model = make_model(seed=seed)
    elif required:
        model = make_model(seed)
    elif "seed" in settings:
        raise ValueError(
            "make_model takes no argument, so seed=[...] changes nothing: write "
            "make_model=lambda seed: MyModel(rngs=nnx.Rngs(seed))."
        )
    else:
        model = make_model()
    if not isinstance(model, nnx.Module):
        raise TypeError(f"make_model returns a {type(model).__name__}: expected an nnx.Module.")
    return model


def told(settings: Settings) -> str:
    """Returns settings as people read them, such as `learning_rate 0.001, seed 0`."""
    return ", ".join(f"{name} {value:.6g}" for name, value in settings.items())


def _values(name: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple | range) else [value]
    if isinstance(value, np.ndarray | jax.Array):
        values = np.asarray(value).reshape(-1).tolist()
    if name == "seed":
        return [integer(name, one, low=0, high=2**32 - 1) for one in values]
    wrong = [one for one in values if isinstance(one, bool) or not hasattr(one, "__float__")]
    if wrong or not values:
        hint = ""
        if any(callable(one) for one in wrong):
            hint = (
                " A schedule belongs into the optimizer: write optimizer=lambda learning_rate: "
                "optax.adamw(optax.cosine_decay_schedule(learning_rate, 1000))."
            )
        raise ValueError(f"{name}={value!r}: expected a list of numbers.{hint}")
    return [float(one) for one in values]


def _parameters(function: Any, *, required: bool = False) -> list[str]:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    if isinstance(function, type):  # nnx's metaclass takes anything
        function = functools.partial(function.__init__, None)
    found = [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    return [one.name for one in found if one.default is one.empty or not required]


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
