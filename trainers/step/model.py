"""A model as the compiled program takes it: its graph, its trained and its other variables."""

import logging
from typing import Any

import jax.numpy as jnp
from flax import nnx

from datarax.errors import listed
from trainers.devices.variables import named

_MODES = "deterministic", "use_running_average"  # what `nnx.Module.train` sets to False

logger = logging.getLogger(__name__)


def split(
    model: nnx.Module, wrt: Any, *, training: bool = True
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns the graph, the trained and the other variables; the model itself stays as it is.

    Args:
        model: The model.
        wrt: Filter of the variables to train.
        training: Whether the graph is in training mode, but for the layers that the user put into
            evaluation mode, such as a frozen BatchNorm; or all of it in evaluation mode.
    """
    model = nnx.clone(model)
    if not training:
        model.eval()
    for module, mode in _modes(model):
        if vars(module)[mode] is None:  # nnx.MultiHeadAttention's, which nobody has set
            setattr(module, mode, False)
    nnx.pop(model, nnx.Intermediate)  # what `sow` left would grow from step to step
    definition, params, rest = nnx.split(model, wrt, ...)
    return definition, params, rest


def say_modes(model: nnx.Module) -> None:
    """Warns where every layer that has modes is in evaluation mode, which may be an oversight."""
    modes = _modes(model)
    if modes and all(vars(module)[mode] for module, mode in modes):
        logger.warning(
            "Every %s of the model is in evaluation mode, and stays so in training. If that is not "
            "meant, call model.train() before fit().",
            listed(sorted({type(module).__name__ for module, _ in modes})),
        )


def _modes(model: nnx.Module) -> list[tuple[nnx.Module, str]]:
    modules = [module for _, module in nnx.iter_modules(model)]
    return [(module, mode) for module in modules for mode in _MODES if mode in vars(module)]


def expect_trainable(model: nnx.Module, wrt: Any) -> None:
    """Raises unless the filter `wrt` selects floating-point variables of the model."""
    _, params, rest = split(model, wrt)
    found = named(params)
    named(nnx.state(model))  # which raises where two variables have one name
    kinds = sorted({type(v).__name__ for _, v in nnx.to_flat_state(rest)})
    if not found:
        raise ValueError(
            f"wrt={wrt} selects none of the model's variables, which are {listed(kinds) or 'none'}"
            ": there is nothing to train. Write wrt=nnx.Param, and a model that has some."
        )
    for name, leaf in found.items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"wrt={wrt} selects {name} of {jnp.result_type(leaf)}, "
                "which has no gradient: write a narrower filter, such as wrt=nnx.Param."
            )
