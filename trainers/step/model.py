"""A model as the compiled program takes it: its graph, its trained and its other variables."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from datarax.errors import listed


def split(model: nnx.Module, wrt: Any, *, training: bool | None = None):
    """Returns the graph, the trained and the other variables; the model itself stays as it is.

    Args:
        model: The model.
        wrt: Filter of the variables to train.
        training: Whether the graph is in training or in evaluation mode; None: as the model is.
    """
    model = nnx.clone(model)
    if training is not None:
        model.train() if training else model.eval()
    nnx.pop(model, nnx.Intermediate)  # what `sow` left would grow from step to step
    return nnx.split(model, wrt, ...)


def expect_trainable(model: nnx.Module, wrt: Any) -> None:
    """Raises unless the filter `wrt` selects floating-point variables of the model."""
    _, params, rest = split(model, wrt)
    found = jax.tree.leaves_with_path(params)
    kinds = sorted({type(v).__name__ for _, v in nnx.to_flat_state(rest)})
    if not found:
        raise ValueError(
            f"wrt={wrt} selects none of the model's variables, which are {listed(kinds) or 'none'}"
            ": there is nothing to train. Write wrt=nnx.Param, and a model that has some."
        )
    for path, leaf in found:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"wrt={wrt} selects {jax.tree_util.keystr(path)} of {jnp.result_type(leaf)}, "
                "which has no gradient: write a narrower filter, such as wrt=nnx.Param."
            )
