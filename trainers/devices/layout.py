"""The layout of a run: its devices, and how the rows of its batches are spread over them."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarax.errors import listed
from trainers.devices.arrays import as_words
from trainers.devices.placement import FSDP, Placement, Rule, placed

P = ParamSpec("P")
R = TypeVar("R")


def outside_mesh(method: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that runs outside of any `jax.set_mesh`, which the run's layout replaces.

    In the context of a mesh with explicit axes, as `jax.make_mesh` has them, JAX refuses programs
    on another mesh, and plain indexing.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.set_mesh(None), jax.transfer_guard("allow"):
            return method(*args, **kwargs)

    return call


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
        axes: tuple[str, ...] = (data_axis,) if isinstance(data_axis, str) else tuple(data_axis)
        if not (rule in ("replicate", FSDP) or callable(rule)):
            raise ValueError(
                f'sharding={rule!r}: expected "replicate", "fsdp" or a function (path, shape) -> '
                "jax.sharding.PartitionSpec."
            )
        if mesh is None and jax.device_count() > 1:
            if axes[1:]:
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
            if rule == FSDP and FSDP in mesh.axis_names and FSDP not in axes:
                axes = (*axes, FSDP)  # the parameters' axis computes rows of its own, too
        self.mesh, self.axes = mesh, axes
        spread = FSDP if mesh is not None and FSDP in mesh.axis_names else axes[-1]
        self.placement = Placement(mesh, spread, rule)

    @property
    def parts(self) -> int:
        """The number of parts that the rows of a batch are spread over."""
        return 1 if self.mesh is None else int(np.prod([self.mesh.shape[a] for a in self.axes]))

    @property
    def replicated(self) -> NamedSharding | None:
        """The sharding of what every device holds whole; None on one device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def batch_sharding(self, axis: int = 0) -> NamedSharding | None:
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
        spread = NamedSharding(self.mesh, PartitionSpec(self.axes))
        for device, (part,) in spread.devices_indices_map((size,)).items():
            rows.setdefault(device.process_index, set()).update(range(size)[part])
        shares = sorted({tuple(sorted(own)) for own in rows.values()})
        equal = len({len(share) for share in shares}) == 1
        if not equal or [row for share in shares for row in share] != list(range(size)):
            return 0, 1
        return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)

    def expect_batch(self, batch_size: int, accumulate: int, shards: int) -> None:
        """Raises `ValueError` where a batch cannot be sliced and spread evenly."""
        if batch_size % accumulate:
            raise ValueError(
                f"accumulate={accumulate} does not divide batch_size={batch_size}: each slice has "
                "the same number of records."
            )
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

    def traced(self) -> contextlib.AbstractContextManager[Any, None]:
        """Returns the context to trace programs in: a bare `PartitionSpec` is of this mesh."""
        return jax.set_mesh(self.mesh)

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
                x
                if self.mesh is None
                else jax.lax.with_sharding_constraint(x, self.batch_sharding(axis=1))
            )

        return jax.tree.map(one, batch)

    # --- placing ---------------------------------------------------------------------------------

    def replicate(self, tree: Any) -> Any:
        """Returns arrays, the same on every process, whole on every device."""
        sharding = self.replicated
        return tree if sharding is None else jax.tree.map(lambda x: placed(x, sharding), tree)

    def shardings(self, tree: Any) -> Any:
        """Returns where arrays are, for a program that returns them there; None on one device."""
        return None if self.mesh is None else jax.tree.map(lambda x: x.sharding, tree)

    def unplaced(self, tree: Any) -> Any:
        """Returns arrays as a user expects them: on one device, where each device has all of them.

        What is spread over devices stays there, and the rest beside it: to compute with both, they
        must be on the same devices.
        """
        leaves = jax.tree.leaves(tree)
        if self.mesh is None or not all(x.is_fully_replicated for x in leaves):
            return tree
        first = lambda array: array.addressable_data(0)  # noqa: E731
        return jax.tree.map(lambda array: as_words(first, array), tree)


def _some(numbers: list[int]) -> str:
    shown = numbers if len(numbers) <= 12 else [*numbers[:11], "...", numbers[-1]]
    return ", ".join(map(str, shown))
