"""The variables of a model as raw leaves, each under one name such as `linear.kernel`.

Placing, saving, loading, exporting and reporting all go through them. A leaf is raw: what a
Variable holds, not what its `on_get_value` makes of it. Where a Variable holds a pytree, each of
its leaves has a name.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_VALUE = jax.tree_util.GetAttrKey("value")  # the key of a Variable's content in a path of JAX


def named(state: Any) -> dict[str, Any]:
    """Returns the leaves of a model's variables by name.

    Args:
        state: An `nnx.State`, or a nested dict of leaves.

    Raises:
        ValueError: If two leaves have the same name.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = name_of(path)
        if name in found:
            raise ValueError(
                f"Two variables of the model are both called {name!r} once the parts of their "
                "paths are joined by dots: give one of them a name without a dot."
            )
        found[name] = leaf
    return found


def nested(state: Any) -> dict[Any, Any]:
    """Returns the leaves of a model's variables as nested dicts, as a checkpoint holds them.

    Those without elements are left out.
    """
    whole: dict[Any, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not np.size(leaf):
            continue
        *parents, last = map(_key, _without_value(path))
        inner = whole
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = leaf
    return whole


def with_leaves(state: Any, leaf: Callable[[str, Any], Any]) -> Any:
    """Returns a model's variables with `leaf(name, old)` in place of each leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, old: leaf(name_of(path), old), state)


def name_of(path: tuple) -> str:
    """Returns the name of a leaf, given its path in an `nnx.State`."""
    return jax.tree_util.keystr(_without_value(path), simple=True, separator=".")


def without_value(state: Any) -> list[str]:
    """Returns the names of a model's variables that have none, as those of `nnx.eval_shape`."""
    return [n for n, leaf in named(state).items() if isinstance(leaf, jax.ShapeDtypeStruct)]


def concrete(state: Any) -> Any:
    """Returns a model's variables with zeros for those that have no value."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        value = jax.random.key(0, impl=leaf.dtype) if is_key else jnp.zeros((), leaf.dtype)
        return jnp.broadcast_to(value, leaf.shape)

    return jax.tree.map(one, state)


def _without_value(path: tuple) -> tuple:
    at = path.index(_VALUE) if _VALUE in path else len(path)
    return path[:at] + path[at + 1 :]


def _key(entry: Any) -> Any:
    match entry:
        case jax.tree_util.DictKey(key=key) | jax.tree_util.FlattenedIndexKey(key=key):
            return key
        case jax.tree_util.SequenceKey(idx=index):
            return index
        case _:
            return entry.name
