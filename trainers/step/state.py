"""The state of a run: everything a step changes, as one pytree of arrays."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
        gradient_norm: Sum and number of the gradients' norms, or None.
    """

    loss: jax.Array
    weight: jax.Array
    metrics: clu.Collection
    gradient_norm: clu.Average | None = None

    @classmethod
    def empty(cls, metrics: type[clu.Collection], *, gradient_norm: bool = False) -> "Window":
        """Returns the window before the first step."""
        return _empty(metrics, gradient_norm)

    def begun_anew(self) -> "Window":
        """Returns a window of the same sums before the first step."""
        return _empty(type(self.metrics), self.gradient_norm is not None)

    def add(self, loss: jax.Array, weight: jax.Array, metrics: clu.Collection) -> "Window":
        """Returns the window with one more batch's sums; dtypes stay as they are."""
        sums = self.loss + loss, self.weight + weight, self.metrics.merge(metrics)
        return keep_dtypes(Window(*sums, self.gradient_norm), self)

    def add_gradient(self, gradients: nnx.State) -> "Window":
        """Returns the window with the norm of one more step's gradient, where it sums them up."""
        if self.gradient_norm is None:
            return self
        norm = clu.Average.from_model_output(optax.global_norm(gradients).astype(jnp.float32))
        return dataclasses.replace(self, gradient_norm=self.gradient_norm.merge(norm))

    def compute(self) -> dict[str, Any]:
        """Returns the loss, the metrics and the gradient's norm by name, as NumPy values."""
        window = jax.device_get(self)
        with np.errstate(invalid="ignore"):  # where every weight was 0, the mean is NaN
            values = {"loss": None, **window.metrics.compute()}  # the loss comes first
            values["loss"] = window.loss / window.weight
            if window.gradient_norm is not None:
                values["gradient_norm"] = window.gradient_norm.compute()
        for name, value in values.items():
            if np.ndim(value):
                raise ValueError(
                    f"Metric {name!r} has shape {np.shape(value)}: expected one number, such as "
                    "its mean."
                )
        return values


@functools.partial(jax.jit, static_argnums=(0, 1))  # one call: each log begins a new window
def _empty(metrics: type[clu.Collection], gradient_norm: bool) -> Window:
    norms = clu.Average.empty() if gradient_norm else None
    return Window(jnp.zeros(()), jnp.zeros(()), *as_carry((metrics.empty(), norms)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a step takes and gives back.

    Args:
        params: Parameters that are trained.
        rest: The model's other variables: frozen parameters, statistics, random counters.
        optimizer: The optimizer's state.
        ema: Moving average of `params` and of BatchNorm's statistics, float32, or None.
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
