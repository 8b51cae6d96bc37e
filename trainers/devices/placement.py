"""The placement of a run's variables: the model's by a rule, the optimizer's beside them."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarax.errors import listed
from trainers.devices.arrays import as_words, is_key
from trainers.devices.variables import with_leaves

logger = logging.getLogger(__name__)

Rule = str | Callable[[str, tuple[int, ...]], PartitionSpec | None]
"""`"replicate"`, `"fsdp"`, or a function `(path, shape) -> PartitionSpec`."""

FSDP = "fsdp"

Put = Callable[[Any, NamedSharding], Any]
"""What is done with an array and its sharding: `placed`, or `described`."""


def placed(array: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array, of which every process has the same, where `sharding` says, as a copy.

    One that is spread over processes already is moved by them together.
    """
    if isinstance(array, jax.Array) and is_key(array):
        return as_words(placed, array, sharding)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding, may_alias=False)
    host = np.asarray(array, jnp.result_type(array))
    # A device may share the host's buffer, and what is placed here is donated: hence the copy.
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def described(array: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of what `placed` returns."""
    return jax.ShapeDtypeStruct(jnp.shape(array), jnp.result_type(array), sharding=sharding)


class Placement:
    """Where a run's variables lie; where there is no mesh, they stay where they are.

    Args:
        mesh: The devices, or None.
        axis: The axis over which `"fsdp"` spreads a parameter.
        rule: How parameters are spread, as in `Layout`.
    """

    def __init__(self, mesh: Mesh | None, axis: str, rule: Rule):
        self._mesh, self._axis, self.rule = mesh, axis, rule
        self._said: set[str] = set()

    def model(
        self, params: nnx.State, rest: nnx.State, put: Put = placed
    ) -> tuple[nnx.State, nnx.State]:
        """Returns a model's trained and other variables where the rule puts them."""
        if self._mesh is None:
            return params, rest
        frozen, other = nnx.split_state(rest, nnx.Param, ...)
        frozen, other = self._put(frozen, self.rule, put), self._put(other, None, put)
        return self._put(params, self.rule, put), nnx.merge_state(frozen, other)

    def beside(self, params: nnx.State, tree: Any) -> Any:
        """Returns `described` arrays: those that stand for a parameter where it is, the others
        everywhere.

        An optimizer's moments have the path of their parameter at the end of their own, and its
        shape.

        Args:
            params: The parameters, placed or described.
            tree: Arrays, or their shapes and dtypes.
        """
        if (mesh := self._mesh) is None:
            return tree
        known = dict(jax.tree_util.tree_leaves_with_path(params))

        def one(path, x):
            ends = (path[i:] for i in range(len(path)))
            like = next((known[end] for end in ends if end in known), None)
            if like is not None and like.shape == jnp.shape(x):
                return described(x, like.sharding)
            return described(x, NamedSharding(mesh, PartitionSpec()))

        return jax.tree_util.tree_map_with_path(one, tree)

    def made_beside(self, params: nnx.State, init: Callable[[nnx.State], Any]) -> Any:
        """Returns `init(params)`, each array on the devices that keep it, made by one program."""
        if self._mesh is None:
            return jax.jit(init)(params)
        described = self.beside(params, jax.eval_shape(init, params))
        shardings = jax.tree.map(lambda x: x.sharding, described)
        return jax.jit(init, out_shardings=shardings)(params)

    @property
    def _known_mesh(self) -> Mesh:
        assert self._mesh is not None  # without a mesh nothing is placed
        return self._mesh

    def _put(self, state: nnx.State, rule: Rule | None, put: Put) -> nnx.State:
        annotated = {
            ".".join(map(str, path)): nnx.get_partition_spec(variable).get_raw_value()
            for path, variable in nnx.to_flat_state(state)
            if isinstance(variable, nnx.Variable)
        }

        def one(name: str, leaf: Any) -> Any:
            sharding = self._of(name, jnp.shape(leaf), rule, annotated.get(name))
            return put(leaf, sharding)

        return with_leaves(state, one)

    def _of(
        self, name: str, shape: tuple[int, ...], rule: Rule | None, annotated: PartitionSpec | None
    ) -> NamedSharding:
        spec = rule(name, shape) if callable(rule) else annotated
        if spec is not None and not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"sharding returns {spec!r} for {name}: expected a jax.sharding.PartitionSpec, or "
                "None for a parameter that every device holds whole."
            )
        if callable(rule):
            self._expect_axes(name, shape, spec or ())
        elif not any(spec or ()):
            spec = self._longest(name, shape) if rule == FSDP else None
        return NamedSharding(self._known_mesh, self._fitting(name, shape, spec or PartitionSpec()))

    def _longest(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        count = self._known_mesh.shape[self._axis]
        fitting = [i for i, length in enumerate(shape) if length and length % count == 0]
        if not fitting:
            self._say_whole(name, shape, f"{count} devices")
            return PartitionSpec()
        longest = max(fitting, key=lambda i: shape[i])
        return PartitionSpec(*[self._axis if i == longest else None for i in range(len(shape))])

    def _fitting(self, name: str, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
        """Returns `spec` without what the mesh does not have or does not divide."""
        parts = []
        for length, part in zip(shape, spec, strict=False):
            axes = [axis for axis in _axes(part) if axis in self._known_mesh.axis_names]
            count = int(np.prod([self._known_mesh.shape[axis] for axis in axes]))
            if missing := [axis for axis in _axes(part) if axis not in axes]:
                there = f"the mesh has {listed(self._known_mesh.axis_names)}"
                self._say(
                    name, f"{name} names the axis {listed(missing)}, {there}: it says nothing."
                )
            if length % count:
                self._say_whole(name, shape, f"{count} devices along {listed(axes)}")
                axes = []
            parts.append(tuple(axes) or None)
        return PartitionSpec(*parts)

    def _expect_axes(self, name: str, shape: tuple[int, ...], spec: Any) -> None:
        axes = [axis for part in spec for axis in _axes(part)]
        for axis in axes:
            if axis not in self._known_mesh.axis_names:
                raise ValueError(
                    f"sharding returns the axis {axis!r} for {name}: the mesh has "
                    f"{listed(self._known_mesh.axis_names)}."
                )
            if axes.count(axis) > 1:
                raise ValueError(
                    f"sharding returns {spec!r} for {name}: expected each axis of the mesh once, "
                    f"as in PartitionSpec({axis!r})."
                )
        if any(_axes(part) for part in spec[len(shape) :]):
            raise ValueError(
                f"sharding returns {spec!r} for {name}, which has the shape {shape}: expected no "
                "more entries than that has."
            )

    def _say_whole(self, name: str, shape: tuple[int, ...], over: str) -> None:
        self._say(name, f"{name} {shape} cannot be spread evenly over {over}: each holds it whole.")

    def _say(self, name: str, text: str) -> None:
        if name not in self._said and jax.process_index() == 0:
            logger.warning("%s", text)
        self._said.add(name)


def _axes(part: Any) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
