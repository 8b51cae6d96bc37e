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
from trainers.step.spike import Spike, Trend


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """Sums over the steps since the last log.

    Args:
        loss: Sum of the weighted losses, float32.
        weight: Sum of the weights, float32.
        metrics: The metrics' state.
        gradient_norm: Sum and number of the gradients' norms, or None.
        learning_rate: The last step's, float32, or None.
        spike: The loss that stands out most, or None.
    """

    loss: jax.Array
    weight: jax.Array
    metrics: clu.Collection
    gradient_norm: clu.Average | None = None
    learning_rate: jax.Array | None = None
    spike: Spike | None = None

    @classmethod
    def empty(
        cls,
        metrics: type[clu.Collection],
        *,
        gradient_norm: bool = False,
        learning_rate: bool = False,
        spike: bool = False,
    ) -> "Window":
        """Returns the window before the first step."""
        return _empty(metrics, gradient_norm, learning_rate, spike)

    def begun_anew(self) -> "Window":
        """Returns a window of the same sums before the first step."""
        shown = self.gradient_norm, self.learning_rate, self.spike
        return _empty(type(self.metrics), *(one is not None for one in shown))

    def add(self, loss: jax.Array, weight: jax.Array, metrics: clu.Collection) -> "Window":
        """Returns the window with one more batch's sums; dtypes stay as they are."""
        loss, weight, metrics = self.loss + loss, self.weight + weight, self.metrics.merge(metrics)
        window = dataclasses.replace(self, loss=loss, weight=weight, metrics=metrics)
        return keep_dtypes(window, self)

    def add_update(
        self, gradients: nnx.State, rate: jax.Array | None, deviations: jax.Array, t: jax.Array
    ) -> "Window":
        """Returns the window with what it keeps of one more step's update.

        Args:
            gradients: The step's gradients.
            rate: Its learning rate, or None.
            deviations: How many deviations its loss lies above the trend.
            t: The number of finished steps before it.
        """
        norm = self.gradient_norm
        if norm is not None:
            own = optax.tree.norm(gradients).astype(jnp.float32)
            norm = norm.merge(clu.Average.from_model_output(own))
        rate = None if self.learning_rate is None else rate
        spike = None if self.spike is None else self.spike.or_later(deviations, t)
        return dataclasses.replace(self, gradient_norm=norm, learning_rate=rate, spike=spike)

    def compute(self) -> dict[str, Any]:
        """Returns the loss, the metrics and the gradient's norm by name, as NumPy values."""
        window = jax.device_get(self)
        with np.errstate(invalid="ignore"):  # where every weight was 0, the mean is NaN
            values = {"loss": None, **window.metrics.compute()}  # the loss comes first
            values["loss"] = window.loss / window.weight
            if window.gradient_norm is not None:
                values["gradient_norm"] = window.gradient_norm.compute()
            if window.learning_rate is not None:
                values["learning_rate"] = window.learning_rate
        for name, value in values.items():
            if np.ndim(value):
                raise ValueError(
                    f"Metric {name!r} has shape {np.shape(value)}: expected one number, such as "
                    "its mean."
                )
        return values


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))  # one call: each log begins a new window
def _empty(
    metrics: type[clu.Collection], gradient_norm: bool, learning_rate: bool, spike: bool
) -> Window:
    highest = Spike.none() if spike else None
    norms = clu.Average.empty() if gradient_norm else None
    rate = jnp.zeros(()) if learning_rate else None
    return Window(jnp.zeros(()), jnp.zeros(()), *as_carry((metrics.empty(), norms, rate, highest)))


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
        trend: Mean and variance of the last losses.
    """

    params: nnx.State
    rest: nnx.State
    optimizer: Any
    ema: nnx.State | None
    stages: nnx.State
    window: Window
    loss: jax.Array
    trend: Trend
