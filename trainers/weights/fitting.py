"""How weights fit a model: which variable gets which, what is left over, and how to say it."""

import dataclasses
import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.errors import listed
from trainers.devices.arrays import is_key, without_keys
from trainers.devices.variables import named, with_leaves

Match = str | Sequence[str] | Mapping[str, str]
"""Which variables to take: those whose names begin with a prefix, as `"encoder"`, or with one of
several; `""` is all. A dict says what each prefix of a saved name is in the model."""

logger = logging.getLogger(__name__)

_SHOWN = 8  # names on each side of a message
_BASE = "base_module"  # what `nnx.LoRA` calls the layer that it changes


@dataclasses.dataclass(frozen=True)
class Fit:
    """How weights fit a model.

    Args:
        taken: The weight that each of the model's variables gets, by their names.
        missing: Variables that no weight is for.
        unused: Weights that no variable is for.
        reshaped: The weight of a variable that has another shape, by the variable.
    """

    taken: dict[str, str]
    missing: list[str]
    unused: list[str]
    reshaped: dict[str, str]


def fitted(
    model: nnx.Module,
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    match: Match | None = None,
) -> Fit:
    """Returns how weights fit a model.

    A layer within `nnx.LoRA` gets the weights of the layer by itself; LoRA's own parameters are
    not missing where there are none.

    Args:
        model: The model.
        own: Its variables by name, with `shape`.
        given: The weights by name, with `shape`.
        match: Which of the weights to take; None: all.
    """
    places = _places(own, given)
    wanted = dict(_renamed(given, match))
    taken, reshaped, unused = {}, {}, []
    for name, renamed in wanted.items():
        place = places.get(renamed, renamed)
        if place not in own:
            unused.append(name)
        elif np.shape(own[place]) != np.shape(given[name]):
            reshaped[place] = name
        else:
            taken[place] = name
    lora = named(nnx.state(model, nnx.LoRAParam)).keys()
    expected = own.keys() - (set() if lora & given.keys() else lora)
    missing = [
        name
        for name in own  # a variable without elements is in no file
        if name in expected and not (name in taken or name in reshaped or 0 in own[name].shape)
    ]
    return Fit(taken, missing, unused, reshaped)


def described(fit: Fit, own: Mapping[str, Any], given: Mapping[str, Any], path: Any) -> str:
    """Returns lines that say what did not fit, with shapes, dtypes and the nearest names.

    Args:
        fit: How they fit.
        own: The model's variables by name.
        given: The weights by name.
        path: Where the weights come from.
    """
    path = os.fspath(path)
    mine = {name: own[name] for name in [*fit.missing, *fit.reshaped]}
    theirs = {name: given[name] for name in [*fit.unused, *fit.reshaped.values()]}
    shapes = [
        f"  {name}: {_kind(own[name])} in the model, {_kind(given[other])} there"
        for name, other in fit.reshaped.items()
    ]
    lines = ["Of another shape:", *_some(shapes)] if shapes else []
    lines += _side(f"In the model, not in {path}:", fit.missing, own, theirs, "there")
    lines += _side(f"In {path}, not in the model:", fit.unused, given, mine, "in the model")
    return "\n".join(lines)


def variables(model: nnx.Module, *, streams: bool = True) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a model's variables by name, of PRNG keys those of their words.

    Args:
        model: The model; what is returned does not keep its arrays alive.
        streams: Whether its random streams are among them.
    """
    state = without_keys(nnx.state(model, ... if streams else nnx.Not(nnx.RngState)))
    return {
        name: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))
        for name, x in named(state).items()
    }


def fill(model: nnx.Module, given: Mapping[str, np.ndarray]) -> None:
    """Sets a model's variables to those that are given by name; the others stay."""

    def one(name: str, own: Any) -> Any:
        if name not in given:
            return own
        if is_key(own):
            return jax.random.wrap_key_data(jnp.asarray(given[name]), impl=own.dtype)
        return jnp.asarray(given[name], jnp.result_type(own))

    nnx.update(model, with_leaves(nnx.state(model), one))


def expect_match(match: Any) -> None:
    """Raises `TypeError` unless `match` says which variables to take."""
    if match is not None and not isinstance(match, str | Sequence | Mapping):
        raise TypeError(
            f'match is a {type(match).__name__}: expected a prefix of names, as match="encoder", a '
            'list of them, or a dict from saved prefixes to the model\'s; "" takes all that fits.'
        )


def take(model: nnx.Module, given: Mapping[str, np.ndarray], path: Any, match: Match) -> None:
    """Sets the variables of a model that `match` names and that fit; a warning lists the others.

    Args:
        model: The model; it keeps its own random streams.
        given: The weights by name.
        path: Where they come from.
        match: Which of them to take.

    Raises:
        ValueError: If nothing fits.
    """
    expect_match(match)
    own = variables(model, streams=False)
    fit = fitted(model, own, given, match)
    lines = described(fit, own, given, path)
    if not fit.taken:
        raise nothing_fits(model, path, match, lines)
    if lines:
        logger.warning("%s fits in part.\n%s", os.fspath(path), lines)
    fill(model, {place: given[name] for place, name in fit.taken.items()})


def nothing_fits(model: nnx.Module, path: Any, match: Match, lines: str) -> ValueError:
    """Returns the error for weights of which the model can take none."""
    return ValueError(
        f"Nothing of {os.fspath(path)} that match={match!r} names fits this "
        f"{type(model).__name__}.\n{lines}"
    )


def _renamed(given: Iterable[str], match: Match | None) -> Iterable[tuple[str, str]]:
    """Yields the names of the weights that `match` takes, and what they are called in the model."""
    if match is None or match == "":
        yield from zip(given, given, strict=True)
        return
    if not isinstance(match, Mapping):
        match = {prefix: prefix for prefix in ([match] if isinstance(match, str) else match)}
    longest_first = sorted(match, key=len, reverse=True)
    for name in given:
        for prefix in longest_first:
            if prefix == "" or name == prefix or name.startswith(f"{prefix.rstrip('.')}."):
                rest = name[len(prefix.rstrip(".")) :].lstrip(".")
                yield name, ".".join(part for part in (match[prefix].rstrip("."), rest) if part)
                break


def _places(own: Iterable[str], given: Mapping[str, Any]) -> dict[str, str]:
    """Returns the names of layers within `nnx.LoRA`, by what they are called without it."""
    found = {}
    for name in own:
        plain = without_lora(name)
        if plain != name and name not in given:
            found[plain] = name
    return found


def without_lora(name: str) -> str:
    """Returns what a variable of a layer within `nnx.LoRA` is called without it."""
    return ".".join(part for part in name.split(".") if part != _BASE)


def _side(
    head: str, names: Sequence[str], here: Mapping[str, Any], others: Mapping[str, Any], place: str
) -> list[str]:
    def line(name: str) -> str:
        near = _nearest(name, here[name], others)
        hint = f"; nearest {place}: {near!r} {_kind(others[near])}" if near else ""
        return f"  {name} {_kind(here[name])}{hint}"

    shown = [line(name) for name in names[:_SHOWN]]
    return [head, *_some(shown, len(names))] if names else []


def _some(lines: list[str], count: int | None = None) -> list[str]:
    count = len(lines) if count is None else count
    more = count - len(lines[:_SHOWN])
    return [*lines[:_SHOWN], *([f"  and {more} more"] if more else [])]


def _nearest(name: str, array: Any, others: Mapping[str, Any]) -> str | None:
    """Returns the name most like another, of arrays with the same lengths if there are such."""
    lengths = sorted(np.shape(array))
    alike = [other for other, x in others.items() if sorted(np.shape(x)) == lengths]
    cutoff = 0.3 if alike else 0.6
    found = difflib.get_close_matches(name, alike or list(others), n=1, cutoff=cutoff)
    return found[0] if found else None


def _kind(array: Any) -> str:
    return f"{tuple(np.shape(array))} {jnp.result_type(array)}"


def shown(names: Iterable[str]) -> str:
    """Returns the first few of some names, in order, for a message."""
    return listed(sorted(names)[:5])
