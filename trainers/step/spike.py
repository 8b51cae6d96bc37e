"""Spikes: losses that stand out from those of the steps before, found inside the compiled loop."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

DEVIATIONS = 6.0  # above the mean, from which on a loss stands out
STEPS = 1000  # of which mean and deviation are
_LEAST = 32  # steps before which there is no telling
_SHARE = 1e-4  # of the mean, the least deviation: losses that rounding tells apart are the same


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trend:
    """Mean and variance of the losses so far, after `STEPS` steps with exponential weights.

    Args:
        mean: Their mean, float32.
        variance: Their variance, float32.
        steps: Their number, at most `STEPS`, float32.
    """

    mean: Any
    variance: Any
    steps: Any

    @classmethod
    def begun(cls) -> Self:
        """Returns the trend before the first step."""
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

    def deviations(self, loss: jax.Array) -> jax.Array:
        """Returns how many deviations a loss lies above the mean, float32."""
        deviation = jnp.sqrt(self.variance) + _SHARE * jnp.abs(self.mean)
        return jnp.where(self.steps < _LEAST, 0.0, (loss - self.mean) / deviation)

    def moved(self, loss: jax.Array) -> "Trend":
        """Returns the trend after one more step (T. Finch, "Incremental calculation of weighted
        mean and variance", 2009, section 9)."""
        steps = jnp.minimum(self.steps + 1, STEPS)
        off, share = loss - self.mean, 1 / steps
        variance = (1 - share) * (self.variance + share * off * off)
        return Trend(self.mean + share * off, variance, steps)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spike:
    """The highest loss of a window, by its deviations from the trend.

    Args:
        deviations: How many, float32; 0 where no loss lies above the mean.
        step: The number of finished steps before it, int32.
    """

    deviations: Any
    step: Any

    @classmethod
    def none(cls) -> Self:
        """Returns the spike before the first step."""
        return cls(jnp.zeros(()), jnp.int32(0))

    def or_later(self, deviations: jax.Array, t: jax.Array) -> "Spike":
        """Returns the higher one of this and the loss of the step after `t` finished ones."""
        higher = deviations > self.deviations
        return Spike(jnp.maximum(deviations, self.deviations), jnp.where(higher, t, self.step))
