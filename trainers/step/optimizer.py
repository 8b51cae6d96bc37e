"""The optimizer of a run: an optax transformation that needs no more than a gradient."""

from typing import Any

import jax
import optax


def plain(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer whose update takes the loss as `value=`, and passes it on to those
    that take it.

    Its `init` and `update` raise `ValueError` for an optimizer that needs more than a gradient:
    other parameters (`optax.lookahead`), or the loss as a function (`optax.lbfgs`).

    Args:
        optimizer: The transformation.
    """
    update = optax.with_extra_args_support(optimizer).update

    def begin(params: Any) -> Any:
        try:
            return optimizer.init(params)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"The optimizer {_name(optimizer)} cannot begin with the model's parameters: "
                f"{error}. {_INSTEAD}"
            ) from error

    def step(updates: Any, state: Any, params: Any, *, value: jax.Array) -> tuple[Any, Any]:
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

    return optax.GradientTransformationExtraArgs(begin, step)


_INSTEAD = (
    "The trainer gives an optimizer the gradient, the parameters and the loss's value: write one "
    "that takes no more, such as optimizer=optax.adamw(1e-3)."
)


def _name(optimizer: optax.GradientTransformation, state: Any = ()) -> str:
    """Returns what an optimizer is called: by its function, or of a chain by its parts' states."""
    name = optimizer.update.__qualname__.partition(".")[0]
    parts = state if type(state) is tuple else ()
    return name + (f" of {', '.join(type(part).__name__ for part in parts)}" if parts else "")
