"""The inputs of a model: which columns of a batch it is called with, and in which form."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import datasets
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax import HostColumn
from datarax.errors import listed

OWN_LOSS = (
    "write loss=my_loss, where my_loss(model, batch) returns the losses of shape (batch,), or "
    'them and a dict of outputs such as {"logits": logits, "labels": batch["label"]}'
)


_TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False}
"""Parameters of a model's call that say whether this is training, and what they say of it."""

_BESIDE = {"attention_mask", "positions", "segment_ids"}
"""Columns beside `input_ids`, given by name only, whatever the model calls the tokens."""


class Columns(Protocol):
    """What is known of a batch's columns before one is formed."""

    @property
    def spec(self) -> dict[str, Any]:
        """Shape and dtype of one record of each array column, by name."""
        ...

    @property
    def host(self) -> dict[str, HostColumn]:
        """The columns that no array holds, by name."""
        ...

    @property
    def features(self) -> Mapping[str, Any]:
        """The source's features, as far as it knows them."""
        ...

    def extent(self, name: str) -> tuple[int, int] | None:
        """Returns the least and the greatest value of an integer column, None if not known."""
        ...


class Inputs:
    """Calls a model with the columns of a batch that are its inputs.

    Images of `uint8` are given as floats in [0, 1], of shape `(batch, height, width, channels)`. A
    parameter `train`, `training`, `is_training` or `deterministic` says whether this is training,
    `rngs` is given random streams. `segment_ids`, `positions` and `attention_mask` are given to the
    parameters of these names.

    Args:
        model: The model.
        columns: The columns that may be inputs.
        label: Column of the labels, which is no input, or None.

    Attributes:
        images: Names of the columns that are images.
        positional: The column given by position, if one is.
        named: The columns given by name.
        draws: Whether training gives the model random streams.
        embeds: Whether the model has an `nnx.Embed`.

    Raises:
        TypeError: If the model cannot be called, or an input is a host column.
        ValueError: If the model's parameters and the columns do not go together.
    """

    def __init__(
        self,
        model: nnx.Module,
        columns: Columns,
        label: str | None,
    ):
        if not callable(model):
            raise TypeError(f"{type(model).__name__} has no __call__: define it, or {OWN_LOSS}.")
        spec = {name: s for name, s in columns.spec.items() if name != label}
        host = {name: column for name, column in columns.host.items() if name != label}
        self.images = {name for name, s in spec.items() if _is_image(s, columns.features.get(name))}
        parameters = list(inspect.signature(type(model).__call__).parameters.values())[1:]
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        required = [p.name for p in parameters if p.name in names and p.default is p.empty]
        modes = [name for name in names if name not in spec]
        self._training = {name: _TRAINING[name] for name in modes if name in _TRAINING}
        self._needs_rngs = "rngs" in modes and "rngs" in required
        self.draws = "rngs" in modes
        required = [name for name in required if name in spec or name not in {*_TRAINING, "rngs"}]
        self.named = tuple(name for name in spec if name in names)
        self.positional = ()
        self.embeds = any(isinstance(module, nnx.Embed) for _, module in nnx.iter_modules(model))
        missing = [name for name in required if name not in spec]
        for name in missing:
            if name in host:
                raise host[name].error()
        if not missing and self.named:
            return
        only = next(iter(spec)) if len(spec) == 1 else "input_ids"
        # A lone number a record beside text, such as its row number, is hardly the input.
        plausible = only in spec and (not host or _rank(spec[only]) > 0)
        own = [name for name in required if name not in _BESIDE]
        if plausible and len(own) <= 1 and set(missing) <= set(own):
            self.positional = (only,)
            self.named = tuple(name for name in self.named if name != only)
            return
        if len(spec) <= 1:
            for column in host.values():
                raise column.error()
        if not spec:
            raise ValueError(f"There is no input beside the label {label!r}; {OWN_LOSS}.")
        raise ValueError(
            f"{type(model).__name__} takes {listed(required) or 'any inputs'}, and the inputs are "
            f"{listed(spec)}: name the columns as the model's parameters, choose them with "
            f"include_keys, or {OWN_LOSS}."
        )

    @property
    def given(self) -> tuple[str, ...]:
        """The columns that the model is called with."""
        return self.positional + self.named

    def __call__(
        self,
        model: nnx.Module,
        batch: dict[str, jax.Array],
        *,
        training: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        """Returns the model's outputs.

        Args:
            model: The model.
            batch: Columns of shape `(batch, ...)`.
            training: Whether this is training.
            key: Key of the random streams in training, where the model takes some.
        """
        arguments = [self._input(batch, name) for name in self.positional]
        named = {name: self._input(batch, name) for name in self.named}
        named |= {name: value == training for name, value in self._training.items()}
        if key is not None:
            named["rngs"] = nnx.Rngs(key)
        elif self._needs_rngs:
            named["rngs"] = nnx.Rngs(0)
        return model(*arguments, **named)

    def described(self, spec: Mapping[str, Any]) -> str:
        """Returns what the model is called with, such as `x: float32 (batch, 4)`."""
        return ", ".join(self._described(name, spec[name]) for name in self.given)

    def _described(self, name: str, spec: Any) -> str:
        kinds = jax.tree.map(lambda s: f"{s.dtype} {shape_of(s.shape)}", spec)
        if name in self.images:
            shape = (*spec.shape, 1) if len(spec.shape) == 2 else spec.shape
            kinds = f"{spec.dtype} -> float32 in [0, 1], {shape_of(shape)}"
        return f"{name}: {kinds}"

    def _input(self, batch: dict[str, jax.Array], name: str) -> Any:
        column = batch[name]
        if name not in self.images:
            return column
        column = column[..., None] if column.ndim == 3 else column
        return column.astype(jnp.float32) / np.float32(jnp.iinfo(column.dtype).max)


def shape_of(record: tuple[int, ...]) -> str:
    """Returns the shape of a batch of records as text, such as `(batch, 28, 28, 1)`."""
    return f"(batch, {', '.join(map(str, record))})" if record else "(batch,)"


def _rank(spec: Any) -> int:
    return max(len(leaf.shape) for leaf in jax.tree.leaves(spec))


def _is_image(spec, feature) -> bool:
    if isinstance(spec, Mapping):
        return False
    declared = isinstance(feature, datasets.Image) and jnp.issubdtype(spec.dtype, jnp.integer)
    return declared or (spec.dtype == jnp.uint8 and len(spec.shape) in (2, 3))
