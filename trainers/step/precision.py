"""Precision: the dtype of the computation, beside that of parameters, statistics and sums."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def lower(tree: Any, precision: Any) -> Any:
    """Returns `tree` with its floating-point arrays in `precision`, if that is not None."""
    if precision is None:
        return tree
    return jax.tree.map(
        lambda x: x.astype(precision) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def lower_params(rest: nnx.State, precision: Any) -> nnx.State:
    """Returns `rest` with its parameters, which are not trained, in `precision`.

    Statistics and counters keep their dtype: they are carried on.
    """
    if precision is None:
        return rest
    frozen, other = nnx.split_state(rest, nnx.Param, ...)
    return nnx.merge_state(lower(frozen, precision), other)
