"""JAX's private and experimental names, which may move: the only place that imports them here.

`tests/trainers/devices/test_private.py` says of each that it is there and means what it did.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.extend import core


def has_backends() -> bool:
    """Returns whether JAX has looked for devices, after which no process can join others."""
    return xla_bridge.backends_are_initialized()


def is_in_cluster() -> bool:
    """Returns whether the platform (Slurm, Cloud TPU, ...) tells JAX of its processes."""
    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    return any(kind.is_env_present() for kind in kinds)


def all_gather(array: Any, *, tiled: bool = False) -> np.ndarray:
    """Returns an array of each process, stacked, or with `tiled` the whole of one that is spread.

    All processes call it together.
    """
    return np.asarray(multihost_utils.process_allgather(array, tiled=tiled))


def preempts_at(step: int) -> bool:
    """Returns whether the platform's preemption has all processes stop at `step`.

    It is true at the agreed step only, so it must be asked of every one.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def is_committed(array: Any) -> bool:
    """Returns whether an array stays on its devices, and a program follows it there."""
    return isinstance(array, jax.Array) and array.committed


def inner_jaxprs(equation: core.JaxprEqn) -> Iterable[core.Jaxpr]:
    """Returns the programs within an equation: the body of a loop, the branches of a condition."""
    return core.jaxprs_in_params(equation.params)


def reset_compilation_cache() -> None:
    """Has JAX open its compilation cache again, where `jax.config` now says."""
    compilation_cache.reset_cache()


def flops(program: jax.stages.Compiled) -> float | None:
    """Returns the floating-point operations of a program; None where the backend does not say."""
    costs = program.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    number = costs.get("flops", -1)
    return number if 0 < number < float("inf") else None


def memory(program: jax.stages.Compiled) -> int | None:
    """Returns the bytes that a program takes at most, with what it is given and returns.

    None where the backend does not say.
    """
    parts = program.memory_analysis()
    if parts is None:
        return None
    given = parts.argument_size_in_bytes + parts.output_size_in_bytes - parts.alias_size_in_bytes
    return given + parts.temp_size_in_bytes
