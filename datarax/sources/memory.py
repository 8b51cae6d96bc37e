"""A source of arrays that are already in memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.host import HostColumn, object_array
from datarax.sources.eager import EagerSourceBase
from datarax.sources.module import expect_config
from datarax.sources.source import SourceConfigBase


@dataclasses.dataclass(frozen=True)
class MemorySourceConfig(SourceConfigBase):
    """Configuration of `MemorySource`.

    Args:
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order, from 0 to 2**32 - 1.
    """

    shuffle: bool = False
    seed: int = 42


class MemorySource(EagerSourceBase):
    """A source of a dict of arrays, through the same base as every eager source.

    Args:
        config: A `MemorySourceConfig`.
        data: Nested dict of arrays of shape `(n, ...)`, or lists of numbers. 64-bit numbers become
            32-bit ones as everywhere in JAX; text and other objects become host columns.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If there are no records, columns differ in length, or an integer does not fit
            into 32 bits while x64 is off.

    Example:
        >>> source = MemorySource(MemorySourceConfig(shuffle=True), {"x": np.arange(4.0)})
        >>> source.get_batch(4)["x"].dtype
        dtype('float32')
    """

    config: MemorySourceConfig

    def __init__(
        self,
        config: MemorySourceConfig,
        data: dict[str, Any],
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        expect_config(config, MemorySourceConfig, self)
        if not isinstance(data, dict):
            raise TypeError(
                f"data is a {type(data).__name__}: expected a dict of arrays, as in "
                'MemorySource(MemorySourceConfig(), {"image": images, "label": labels}).'
            )
        super().__init__(
            config,
            columns_of(data),
            shuffle=config.shuffle,
            seed=config.seed,
            rngs=rngs,
            name=name,
        )

    def copy(
        self,
        *,
        config: MemorySourceConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> "MemorySource":
        """Returns a source of the same arrays with other arguments, at the start of epoch 0.

        Without a `config` the order and the statistics are this source's as they are set now.
        """
        copy = type(self)(
            self.config if config is None else config,
            self._columns,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )
        copy._columns = self._columns  # one dict, so that they are placed once for both
        return self._settings_to(copy) if config is None else copy


def columns_of(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a dict of values as the columns of a source: arrays in JAX's dtypes, host columns."""
    for name in data:
        if not isinstance(name, str):
            raise TypeError(f"{name!r} names a column: expected a string, {str(name)!r}.")
    return {
        name: columns_of(values, f"{prefix}{name}.")
        if isinstance(values, dict)
        else _column(prefix + name, values)
        for name, values in data.items()
    }


def _column(name: str, values: Any):
    if isinstance(values, HostColumn):
        return values
    if isinstance(values, jax.Array):
        if jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
            raise TypeError(f"Column {name!r} holds PRNG keys: write jax.random.key_data(keys).")
        return values
    parts = values if isinstance(values, (list, tuple)) else [values]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(
            f"Column {name!r} is a masked array, and JAX has none: what the mask hides would be "
            "data. Write a value there, array.filled(0), and give the mask as a column of its own, "
            "~np.ma.getmaskarray(array)."
        )
    try:
        array = np.asarray(values)
    except ValueError:  # ragged lists
        array = object_array([np.asarray(row) for row in values])
    if array.ndim == 0:
        raise ValueError(
            f"Column {name!r} is {values!r}: expected a value a record, an array of shape (n, ...)"
        )
    # NumPy counts spans of time among the integers, JAX bfloat16 among the numbers.
    is_number = jnp.issubdtype(array.dtype, np.number) and array.dtype.kind != "m"
    if not is_number and array.dtype != bool:
        return HostColumn.of_objects(name, array if array.dtype == object else list(values))
    stored = array.dtype.newbyteorder("=")
    if stored in (np.longdouble, np.clongdouble):  # 80 or 128 bits
        stored = np.dtype(float if stored.kind == "f" else complex)
    dtype = jax.dtypes.canonicalize_dtype(stored)
    if array.dtype.kind in "iu" and array.size:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if array.min() < low or array.max() > high:
            raise ValueError(
                f"Column {name!r} holds {array.min()} to {array.max()}, which does not fit into "
                f"{dtype}: subtract an offset, or jax.config.update('jax_enable_x64', True)."
            )
    return array.astype(dtype, copy=False)
