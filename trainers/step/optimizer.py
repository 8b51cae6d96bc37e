"""The optimizer of a run: an optax transformation that needs no more than a gradient."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax


def plain(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer whose update takes the loss as `value=`, and passes it on to those
    that take it.

    Its `init` and `update` raise `ValueError` for an optimizer that needs more than a gradient:
    other parameters (`optax.lookahead`), or the loss as a function (`optax.lbfgs`).

    Args:
        optimizer: The transformation.
    """

    def begin(params: Any) -> Any:
        try:
            return optimizer.init(params)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"The optimizer {_name(optimizer)} cannot begin with the model's parameters: "
                f"{error}. {_INSTEAD}"
            ) from error

    def step(updates: Any, state: Any, params: Any, *, value: jax.Array) -> tuple[Any, Any]:
        update = optax.with_extra_args_support(optimizer).update
        try:
            return update(updates, state, params, value=value)
        except (AttributeError, TypeError, ValueError):
            pass  # optax.contrib.sam refuses value=; what is wrong without it, too, is raised below
        try:
            return update(updates, state, params)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"The optimizer {_name(optimizer, state)} needs more than a gradient: {error}. "
                f"{_INSTEAD}"
            ) from error

    # Its protocol has step take any keyword, of which the trainer gives one.
    return optax.GradientTransformationExtraArgs(begin, step)  # pyright: ignore[reportArgumentType]


def rate_of(optimizer: optax.GradientTransformation, state: Any, t: jax.Array) -> Any:
    """Returns the learning rate of step `t + 1`, float32, None where nothing shows one.

    `optax.inject_hyperparams` keeps it in its state; a schedule is found in the transformation.

    Args:
        optimizer: The transformation.
        state: Its state after the step.
        t: The number of the batch, int32.
    """
    injected = optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState
    states = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, injected))
    rates = [s.hyperparams.get("learning_rate") for s in states if isinstance(s, injected)]
    rates = [rate for rate in rates if rate is not None]
    rates = rates or [schedule(t) for schedule in _enclosed(optimizer, "step_size_fn")]
    return jnp.abs(jnp.asarray(rates[0], jnp.float32)) if len(rates) == 1 else None


def described(optimizer: optax.GradientTransformation) -> str:
    """Returns the parts of an optimizer with its rate, such as `scale_by_adam, scale (0.001)`."""
    rates = [f"{abs(rate):.6g}" for rate in _enclosed(optimizer, "step_size")]
    rates += ["a schedule" for _ in _enclosed(optimizer, "step_size_fn")]
    return ", ".join(_parts(optimizer)) + (f" ({', '.join(rates)})" if rates else "")


def _parts(fn: Any) -> list[str]:
    """Returns the names of the transformations that a chain, or a wrapper of ours, is made of."""
    inner = [one for one in _closure(fn) if isinstance(one[1], (*_TRANSFORMATIONS, tuple, list))]
    parts = [part for _, value in inner for one in _several(value) for part in _parts(one)]
    return parts or [_update(fn).__qualname__.partition(".")[0]]


def _enclosed(fn: Any, name: str) -> list[Any]:
    """Returns what optax's functions enclose under a name, which no other place shows.

    `optax.scale_by_schedule` calls a schedule `step_size_fn`, `optax.scale` a rate `step_size`.
    """
    found = []
    for key, value in _closure(fn):
        if key == name:
            found.append(value)
        else:
            found += [inner for one in _several(value) for inner in _enclosed(one, name)]
    return found


def _several(value: Any) -> list[Any]:
    parts = list(value) if type(value) in (tuple, list) else [value]
    return [one for one in parts if isinstance(one, _TRANSFORMATIONS) or inspect.isfunction(one)]


def _closure(fn: Any) -> list[tuple[str, Any]]:
    update = _update(fn)
    cells = update.__closure__ or ()
    return [
        (name, cell.cell_contents)
        for name, cell in zip(update.__code__.co_freevars, cells, strict=True)
        if name not in ("begin", "init")
    ]


def _update(fn: Any) -> Any:
    return fn.update if isinstance(fn, _TRANSFORMATIONS) else fn


_TRANSFORMATIONS = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)

_INSTEAD = (
    "The trainer gives an optimizer the gradient, the parameters and the loss's value: write one "
    "that takes no more, such as optimizer=optax.adamw(1e-3)."
)


def _name(optimizer: optax.GradientTransformation, state: Any = ()) -> str:
    """Returns what an optimizer is called: by its function, or of a chain by its parts' states."""
    update: Any = optimizer.update  # a function, of which optax's protocol knows no name
    name = update.__qualname__.partition(".")[0]
    parts = state if type(state) is tuple else ()
    return name + (f" of {', '.join(type(part).__name__ for part in parts)}" if parts else "")
