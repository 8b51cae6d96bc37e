"""Weights from elsewhere: safetensors files of other libraries, by a map of names."""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Sharding

from trainers.devices.private import is_committed
from trainers.devices.variables import named, with_leaves, without_value
from trainers.weights import hub
from trainers.weights.fitting import Match, described, expect_match, fitted, nothing_fits, variables
from trainers.weights.safetensors import Tensor, tensors
from trainers.workdir.store import absolute

logger = logging.getLogger(__name__)

Transform = Callable[[np.ndarray], np.ndarray]
Name = tuple[str, str | None] | tuple[str, str | None, Transform | None]
"""`(pattern, replacement, transform)`, as `load_safetensors` takes them."""


def load_safetensors(
    model: nnx.Module,
    path_or_hub_name: epath.PathLike,
    names: Iterable[Name] = (),
    *,
    match: Match | None = None,
    sharding: Sharding | Callable[[str, tuple[int, ...]], Sharding | None] | None = None,
    revision: str | None = None,
) -> nnx.Module:
    """Loads weights of another library into a model, one tensor at a time.

    The names, shapes and dtypes are compared before anything is read. Host memory holds one tensor
    beside the model.

    Args:
        model: The model, or one of `nnx.eval_shape`; its variables are set in place, in their own
            dtypes. A layer within `nnx.LoRA` gets the weights of the layer by itself.
        path_or_hub_name: A `.safetensors` file, a `.safetensors.index.json` of several, a folder
            that holds either, or a model's name on the Hub.
        names: From the names in the file to the model's: `(pattern, replacement, transform)`,
            applied in order as `re.sub(pattern, replacement, name)`. A replacement None leaves
            the tensor out. The transform of each pattern that is found, if it has one, is applied
            to the tensor, a NumPy array: `numpy.transpose` makes a `Linear`'s kernel of torch's
            weight.
        match: What to take where not all fits, as in `load`: `""` takes all that fits and lists
            the rest in a warning. None: everything in the file must have a place, and every
            parameter and statistic of the model, but LoRA's own, a tensor.
        sharding: Where the arrays go: a sharding, or a function `(name, shape) -> sharding`. None:
            where the model's are.
        revision: A branch, a tag or a commit on the Hub.

    Returns:
        `model`.

    Raises:
        FileNotFoundError: If there is no such file, folder or model.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If something does not fit; the message lists what was not found on both sides,
            with shapes, dtypes and the nearest names.
        RuntimeError: If a file is damaged.

    Example:
        >>> from safetensors.numpy import save_file
        >>> weight = np.arange(6, dtype=np.float32).reshape(3, 2)
        >>> save_file({"fc.weight": weight}, "/tmp/torch-linear.safetensors")
        >>> model = nnx.Dict(linear=nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)))
        >>> names = [(r"^fc\\.", "linear.", None), (r"weight$", "kernel", np.transpose)]
        >>> load_safetensors(model, "/tmp/torch-linear.safetensors", names).linear.kernel.shape
        (2, 3)
    """
    expect_match(match)
    path = _found(path_or_hub_name, revision)
    given = _named(tensors(path), names)
    own = variables(model, streams=False)
    fit = fitted(model, own, given, match)
    wanted = set(named(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    fit = dataclasses.replace(fit, missing=[name for name in fit.missing if name in wanted])
    lines = described(fit, own, given, path_or_hub_name)
    if not fit.taken and match is not None:
        raise nothing_fits(model, path_or_hub_name, match, lines)
    if lines and match is None:
        raise ValueError(
            f"{os.fspath(path_or_hub_name)} does not fit this {type(model).__name__}. Write a rule "
            "(pattern, replacement, transform) in names= for each, with the replacement None to "
            f'leave a tensor out, or take what fits with match="".\n{lines}'
        )
    if lines:
        logger.warning("%s fits in part.\n%s", os.fspath(path_or_hub_name), lines)
    _fill_one_by_one(model, {place: given[name] for place, name in fit.taken.items()}, sharding)
    if empty := without_value(nnx.state(model, nnx.Not(nnx.RngState))):
        raise ValueError(f"{empty[:5]} of the model have no value: build the model itself.")
    return model


@dataclasses.dataclass(frozen=True)
class _Renamed:
    """A tensor with what is done to it once it is read.

    Args:
        name: Its name in the file.
        tensor: The tensor.
        transforms: What is done, in order.
        shape: The shape that comes of it.
        dtype: The dtype that comes of it.
    """

    name: str
    tensor: Tensor
    transforms: tuple[Transform, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        return _transformed(self.name, self.tensor.read(), self.transforms)


def _found(path_or_hub_name: epath.PathLike, revision: str | None) -> epath.Path:
    text, path = os.fspath(path_or_hub_name), absolute(path_or_hub_name)
    if path.exists():
        return path
    if hub.is_name(text):
        return hub.downloaded(text, revision)
    raise FileNotFoundError(
        f"There is no {text!r}: give a .safetensors file, an index of several, a folder with "
        "either, or a model's name on the Hub, as 'namespace/name'."
    )


def _named(found: Mapping[str, Tensor], names: Iterable[Name]) -> dict[str, _Renamed]:
    """Returns tensors by the names that the rules give them."""
    rules = [_rule(rule) for rule in names]
    renamed: dict[str, _Renamed] = {}
    for name, tensor in found.items():
        new, transforms = name, []
        for pattern, replacement, transform in rules:
            if pattern.search(new) is None:
                continue
            if replacement is None:
                new = None
                break
            new = pattern.sub(replacement, new)
            transforms += [] if transform is None else [transform]
        if new is None:
            continue
        if new in renamed:
            raise ValueError(
                f"names= makes {new!r} of both {renamed[new].name!r} and {name!r}: give each "
                "tensor a place of its own, or leave one out with the replacement None."
            )
        # Zeros without memory of their own show which shape comes out, before anything is read.
        zeros = np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)
        like = _transformed(name, zeros, transforms)
        renamed[new] = _Renamed(name, tensor, tuple(transforms), like.shape, like.dtype)
    return renamed


def _rule(rule: Any) -> tuple[re.Pattern[str], str | None, Transform | None]:
    is_rule = isinstance(rule, Sequence) and not isinstance(rule, str) and len(rule) in (2, 3)
    parts: Any = (*rule, None)[:3] if is_rule else (None, None, None)
    pattern, replacement, transform = parts
    fits = isinstance(pattern, str) and isinstance(replacement, str | None)
    if not fits or not callable(transform or np.asarray):
        raise TypeError(
            f"names= holds {rule!r}: expected (pattern, replacement, transform), as "
            r'(r"\.weight$", ".kernel", numpy.transpose).'
        )
    try:
        return re.compile(pattern), replacement, transform
    except re.error as error:
        raise ValueError(
            f"names= holds the pattern {pattern!r}, which re refuses: {error}."
        ) from error


def _transformed(name: str, array: np.ndarray, transforms: Iterable[Transform]) -> np.ndarray:
    for transform in transforms:
        try:
            array = np.asarray(transform(array))
        except Exception as error:  # the transform is the user's: it may raise what it likes
            raise ValueError(
                f"The transform of {name!r} fails on an array of shape {array.shape}: "
                f"{type(error).__name__}: {error}"
            ) from error
    return array


def _fill_one_by_one(model: nnx.Module, given: Mapping[str, _Renamed], sharding: Any) -> None:
    """Sets variables one after the other: the former array of each is freed before the next."""

    def one(name: str, own: Any) -> Any:
        if name not in given:
            return own
        place: Any = sharding(name, np.shape(own)) if callable(sharding) else sharding
        if place is None and (isinstance(own, jax.ShapeDtypeStruct) or is_committed(own)):
            place = own.sharding
        host = given[name].read().astype(jnp.result_type(own), copy=False)
        if place is None:
            return jnp.asarray(host)
        return jax.make_array_from_callback(host.shape, place, lambda index: np.array(host[index]))

    flat = dict(nnx.to_flat_state(nnx.state(model)))
    while flat:
        path, variable = flat.popitem()
        part = nnx.from_flat_state([(path, variable)])
        if named(part).keys() & given.keys():
            nnx.update(model, with_leaves(part, one))
