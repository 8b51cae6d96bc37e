"""The layout of a run: how its data, its batches and its state are spread over the devices."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarax.errors import listed

logger = logging.getLogger(__name__)

Rule = str | Callable[[str, tuple[int, ...]], PartitionSpec | None]
"""`"replicate"`, `"fsdp"`, or a function `(path, shape) -> PartitionSpec`."""

_FSDP = "fsdp"


class Layout:
    """How a run is spread over devices: batches by row over the data axes, the state by a rule.

    On one device, where no mesh is given, everything stays where it is.

    Args:
        mesh: The devices; None: all of them, on one axis `data_axis`.
        data_axis: The mesh's axis, or axes, over which the rows of a batch are spread.
        rule: How parameters and the optimizer's state are spread: `"replicate"`; `"fsdp"`, each
            along its longest axis that can be, over the mesh's axis `fsdp` or else the last data
            axis; or a function of a parameter's path, as `"linear.kernel"`, and its shape. A
            parameter's own sharding annotation goes before the first two.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the mesh does not have the data axis, or the rule is unknown.
    """

    def __init__(
        self, mesh: Mesh | None = None, data_axis: str | tuple = "data", rule: Rule = "replicate"
    ):
        axes = (data_axis,) if isinstance(data_axis, str) else tuple(data_axis)
        if not (rule in ("replicate", _FSDP) or callable(rule)):
            raise ValueError(
                f'sharding={rule!r}: expected "replicate", "fsdp" or a function (path, shape) -> '
                "jax.sharding.PartitionSpec."
            )
        if mesh is None and jax.device_count() > 1:
            if len(axes) > 1:
                raise ValueError(
                    f"data_axis={axes} names several axes: give the mesh that has them."
                )
            mesh = Mesh(np.array(jax.devices()), axes)
        if mesh is not None:
            if not isinstance(mesh, Mesh):
                raise TypeError(
                    f"mesh is a {type(mesh).__name__}: expected a jax.sharding.Mesh, such as "
                    'jax.make_mesh((8,), ("data",)).'
                )
            missing = [axis for axis in axes if axis not in mesh.axis_names]
            if missing:
                raise ValueError(
                    f"The mesh has the axes {listed(mesh.axis_names)}, not data_axis={missing[0]!r}"
                    f": write data_axis={mesh.axis_names[0]!r}, or name an axis so."
                )
            # With explicit axes an array's type holds its sharding, and plain indexing raises.
            mesh = Mesh(mesh.devices, mesh.axis_names)
            if rule == _FSDP and _FSDP in mesh.axis_names and _FSDP not in axes:
                axes = (*axes, _FSDP)  # the parameters' axis computes rows of its own, too
        self.mesh, self.axes, self.rule = mesh, axes, rule
        self._said: set[str] = set()

    @property
    def parts(self) -> int:
        """The number of parts that the rows of a batch are spread over."""
        return 1 if self.mesh is None else int(np.prod([self.mesh.shape[a] for a in self.axes]))

    @property
    def replicated(self) -> NamedSharding | None:
        """The sharding of what every device holds whole; None on one device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def rows(self, axis: int = 0) -> NamedSharding | None:
        """Returns the sharding of arrays with a batch's rows along `axis`; None on one device."""
        if self.mesh is None:
            return None
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.axes))

    def reader(self, size: int) -> tuple[int, int]:
        """Returns which share of a batch's rows this process's devices hold, and of how many.

        It is `(0, 1)`, all of them, where the processes hold no equal shares, each in one piece.
        """
        if self.mesh is None or jax.process_count() == 1:
            return 0, 1
        rows: dict[int, set[int]] = {}
        for device, (part,) in self.rows().devices_indices_map((size,)).items():
            rows.setdefault(device.process_index, set()).update(range(size)[part])
        shares = sorted({tuple(sorted(own)) for own in rows.values()})
        equal = len({len(share) for share in shares}) == 1
        if not equal or [row for share in shares for row in share] != list(range(size)):
            return 0, 1
        return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)

    def expect_batch(self, batch_size: int, accumulate: int, shards: int) -> None:
        """Raises `ValueError` where a batch cannot be spread evenly."""
        count = self.parts
        for name, number in {"shards": shards, "batch_size": batch_size}.items():
            if (name == "batch_size" or shards > 1) and number % count:
                fitting = [n for n in range(1, number + 1) if number % n == 0]
                raise ValueError(
                    f"{name}={number} cannot be spread evenly over {count} devices: use one of "
                    f"{_some(fitting)} devices (mesh=), or another {name}."
                )
        if accumulate > 1 and batch_size % (count * accumulate):
            raise ValueError(
                f"accumulate={accumulate} slices of batch_size={batch_size} cannot be spread "
                f"evenly over {count} devices: use a multiple of {count * accumulate}."
            )

    # --- in the compiled program -----------------------------------------------------------------

    def each(self, fn: Callable[..., Any], data: Any, *scalars: Any, spread: bool = False) -> Any:
        """Returns `fn(part, data, *scalars)` of each device, rows one part after the other.

        What `fn` computes stays on its device: there is no collective. Traceable.

        Args:
            fn: Returns arrays of this part's rows; `part` is the device's number on the data axes.
            data: Arrays.
            scalars: Arrays that every device has.
            spread: Whether the first axis of `data` is spread over the data axes, so that `fn` gets
                a piece of it; otherwise it gets all.
        """
        if self.mesh is None:
            return fn(0, data, *scalars)
        rows, whole = PartitionSpec(self.axes), PartitionSpec()
        return jax.shard_map(
            lambda data, *scalars: fn(jax.lax.axis_index(self.axes), data, *scalars),
            mesh=self.mesh,
            in_specs=(rows if spread else whole, *[whole] * len(scalars)),
            out_specs=rows,
            check_vma=False,
        )(data, *scalars)

    def slices(self, batch: Any, count: int) -> Any:
        """Returns a batch as `count` slices along a new first axis; traceable.

        Slice `i` has the rows `i, count + i, 2 * count + i, ...`: the same rows on any number of
        devices, of each device as many.
        """

        def one(x):
            x = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
            return (
                x if self.mesh is None else jax.lax.with_sharding_constraint(x, self.rows(axis=1))
            )

        return jax.tree.map(one, batch)

    # --- placing ---------------------------------------------------------------------------------

    def replicate(self, tree: Any) -> Any:
        """Returns arrays, the same on every process, whole on every device."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda x: placed(x, self.replicated), tree)

    def shardings(self, tree: Any) -> Any:
        """Returns where arrays are, for a program that returns them there; None on one device."""
        return None if self.mesh is None else jax.tree.map(lambda x: x.sharding, tree)

    def place_model(self, params: nnx.State, rest: nnx.State) -> tuple[nnx.State, nnx.State]:
        """Returns a model's trained and other variables where the rule puts them."""
        if self.mesh is None:
            return params, rest
        frozen, other = nnx.split_state(rest, nnx.Param, ...)
        frozen = self._place(frozen, self.rule)
        return self._place(params, self.rule), nnx.merge_state(frozen, self._place(other, None))

    def unplaced(self, tree: Any) -> Any:
        """Returns arrays as a user expects them: on one device, where each device has all of them.

        What is spread over devices stays there, and the rest beside it: to compute with both, they
        must be on the same devices.
        """
        leaves = jax.tree.leaves(tree)
        if self.mesh is None or not all(x.is_fully_replicated for x in leaves):
            return tree
        return jax.tree.map(_first_copy, tree)

    def place_like(self, tree: Any, params: Any) -> Any:
        """Returns arrays, those that stand for a parameter where it is, the others everywhere.

        An optimizer's moments have the path of their parameter at the end of their own, and its
        shape.
        """
        if self.mesh is None:
            return tree
        known = dict(jax.tree_util.tree_leaves_with_path(params))

        def one(path, x):
            ends = (path[i:] for i in range(len(path)))
            like = next((known[end] for end in ends if end in known), None)
            same = like is not None and like.shape == jnp.shape(x)
            return placed(x, like.sharding if same else self.replicated)

        return jax.tree_util.tree_map_with_path(one, tree)

    def _place(self, state: nnx.State, rule: Rule | None) -> nnx.State:
        flat = [
            (
                path,
                variable.replace(
                    placed(variable.get_value(), self._sharding(path, variable, rule))
                ),
            )
            for path, variable in nnx.to_flat_state(state)
        ]
        return nnx.from_flat_state(flat)

    def _sharding(self, path: tuple, variable: nnx.Variable, rule: Rule | None) -> NamedSharding:
        name, shape = ".".join(map(str, path)), jnp.shape(variable.get_value())
        spec = rule(name, shape) if callable(rule) else nnx.get_partition_spec(variable).get_value()
        if spec is not None and not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"sharding returns {spec!r} for {name}: expected a jax.sharding.PartitionSpec, or "
                "None for a parameter that every device holds whole."
            )
        if callable(rule):
            self._expect_axes(name, shape, spec or ())
        elif not any(spec or ()):
            spec = self._longest(name, shape) if rule == _FSDP else None
        return NamedSharding(self.mesh, self._fitting(name, shape, spec or PartitionSpec()))

    def _longest(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        axis = _FSDP if _FSDP in self.mesh.axis_names else self.axes[-1]
        count = self.mesh.shape[axis]
        fitting = [i for i, length in enumerate(shape) if length and length % count == 0]
        if not fitting:
            self._say(name, shape, f"{count} devices")
            return PartitionSpec()
        longest = max(fitting, key=lambda i: shape[i])
        return PartitionSpec(*[axis if i == longest else None for i in range(len(shape))])

    def _fitting(self, name: str, shape: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
        """Returns `spec` without what the mesh does not have or does not divide."""
        parts = []
        for length, part in zip(shape, spec, strict=False):
            axes = [a for a in _axes(part) if a in self.mesh.axis_names]
            count = int(np.prod([self.mesh.shape[a] for a in axes]))
            if length % count:
                self._say(name, shape, f"{count} devices along {listed(axes)}")
                axes = []
            parts.append(tuple(axes) or None)
        return PartitionSpec(*parts)

    def _expect_axes(self, name: str, shape: tuple[int, ...], spec: Any) -> None:
        unknown = [a for part in spec for a in _axes(part) if a not in self.mesh.axis_names]
        if unknown:
            raise ValueError(
                f"sharding returns the axis {unknown[0]!r} for {name}: the mesh has "
                f"{listed(self.mesh.axis_names)}."
            )
        if any(_axes(part) for part in spec[len(shape) :]):
            raise ValueError(
                f"sharding returns {spec!r} for {name}, which has the shape {shape}: expected no "
                "more entries than that has."
            )

    def _say(self, name: str, shape: tuple[int, ...], over: str) -> None:
        if name not in self._said and jax.process_index() == 0:
            logger.warning(
                "%s %s cannot be spread evenly over %s: each holds it whole.", name, shape, over
            )
        self._said.add(name)


def placed(array: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array, of which every process has the same, where `sharding` says, as a copy.

    One that is spread over processes already is moved by them together.
    """
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        words = placed(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(array))
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding, may_alias=False)
    host = np.asarray(array)
    # A device may share the host's buffer, and what is placed here is donated: hence the copy.
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def _first_copy(array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        words = _first_copy(jax.random.key_data(array))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(array))
    return array.addressable_data(0)


def _axes(part: Any) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _some(numbers: list[int]) -> str:
    shown = numbers if len(numbers) <= 12 else [*numbers[:11], "...", numbers[-1]]
    return ", ".join(map(str, shown))
