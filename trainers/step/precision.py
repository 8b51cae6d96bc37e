"""Precision: the dtype of the computation, beside that of parameters, statistics and sums."""

import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_entered = contextvars.ContextVar("entered", default=False)


def lower(tree: Any, precision: Any) -> Any:
    """Returns `tree` with its floating-point arrays in `precision`, if that is not None."""
    return tree if precision is None else jax.tree.map(_to(precision, jnp.floating), tree)


def _to(precision: Any, kind: Any) -> Callable[[Any], Any]:
    """Returns the function that gives an array of a `kind` of dtype in `precision`."""

    def one(x: Any) -> Any:
        fits = isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, kind)
        return x.astype(precision) if fits else x

    return one


def lower_params(rest: nnx.State, precision: Any) -> nnx.State:
    """Returns `rest` with its parameters, which are not trained, in `precision`.

    Statistics and counters keep their dtype: they are carried on.
    """
    if precision is None:
        return rest
    frozen, other = nnx.split_state(rest, nnx.Param, ...)
    return nnx.merge_state(lower(frozen, precision), other)


def entered_in(model: nnx.Module, precision: Any) -> nnx.Module:
    """Returns `model`, which now computes in `precision` and gives `float32` back.

    That holds for calls from outside, of the model and of each layer. So a loss keeps its columns,
    targets and arithmetic in `float32`, and a layer may compute in `float32` within the model.

    Args:
        model: The model; it is changed in place.
        precision: A dtype; None: the model stays as it is.
    """
    if precision is not None:
        for _, module in list(nnx.iter_modules(model)):
            kind = _entrance(type(module), jnp.dtype(precision))
            object.__setattr__(module, "__class__", kind)
    return model


@functools.lru_cache(maxsize=256)
def _entrance(kind: type, precision: Any) -> type:
    """Returns a subclass of a module's class whose public methods lower their arguments."""
    own = {name: inspect.getattr_static(kind, name) for name in dir(kind)}
    methods = {
        name: _lowered(method, precision)
        for name, method in own.items()
        if inspect.isfunction(method)
        and (name == "__call__" or not name.startswith("_"))
        and method is not inspect.getattr_static(nnx.Module, name, None)
    }
    return type(kind)(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})


def _lowered(method: Callable, precision: Any) -> Callable:
    there, back = _to(precision, jnp.floating), _to(jnp.float32, precision)

    def mapped(to: Callable, tree: Any) -> Any:
        # A module, such as nnx.Rngs, is passed on itself: a copy would count by itself.
        return jax.tree.map(to, tree, is_leaf=lambda x: isinstance(x, nnx.Pytree | nnx.Variable))

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        if _entered.get():
            return method(self, *args, **kwargs)
        token = _entered.set(True)
        try:
            outputs = method(self, *mapped(there, args), **mapped(there, kwargs))
        finally:
            _entered.reset(token)
        return mapped(back, outputs)

    return call
