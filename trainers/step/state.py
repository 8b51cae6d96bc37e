"""The state of a run: everything a step changes, as one pytree of arrays."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu
from flax import nnx

from trainers.devices.arrays import as_carry, keep_dtypes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """Sums over the steps since the last log.

    Args:
        loss: Sum of the weighted losses, float32.
        weight: Sum of the weights, float32.
        metrics: The metrics' state.
    """

    loss: jax.Array
    weight: jax.Array
    metrics: clu.Collection

    @classmethod
    def empty(cls, metrics: type[clu.Collection]) -> "Window":
        """Returns the window before the first step."""
        return _empty(metrics)

    def add(self, loss, weight, metrics: clu.Collection) -> "Window":
        """Returns the window with one more batch's sums; dtypes stay as they are."""
        return keep_dtypes(
            Window(self.loss + loss, self.weight + weight, self.metrics.merge(metrics)), self
        )

    def compute(self) -> dict[str, Any]:
        """Returns the loss and the metrics by name, as NumPy values."""
        window = jax.device_get(self)
        with np.errstate(invalid="ignore"):  # where every weight was 0, the mean is NaN
            values = {"loss": window.loss / window.weight, **window.metrics.compute()}
        for name, value in values.items():
            if np.ndim(value):
                raise ValueError(
                    f"Metric {name!r} has shape {np.shape(value)}: expected one number, such as "
                    "its mean."
                )
        return values


@functools.partial(jax.jit, static_argnums=0)  # one call: each log begins a new window
def _empty(metrics):
    return Window(jnp.zeros(()), jnp.zeros(()), as_carry(metrics.empty()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a step takes and gives back.

    Args:
        params: Parameters that are trained.
        rest: The model's other variables: frozen parameters, statistics, random counters.
        optimizer: The optimizer's state.
        ema: Moving average of `params`, or None.
        stages: Variables of the pipeline's stages.
        window: Sums since the last log.
        loss: The last step's loss, float32.
    """

    params: nnx.State
    rest: nnx.State
    optimizer: Any
    ema: nnx.State | None
    stages: nnx.State
    window: Window
    loss: jax.Array
