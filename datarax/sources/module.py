"""The base of data modules: a frozen configuration, statistics, copies and random streams."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from datarax.errors import expect_dict, listed


@dataclasses.dataclass(frozen=True)
class DataraxModuleConfig:
    """Configuration that every data module has.

    Args:
        cacheable: Whether `compute_statistics` keeps its result, and gives it back without calling
            `batch_stats_fn` again until `reset_cache` or `reset_statistics`.
        batch_stats_fn: Function or module from data to a dict of statistics.
        precomputed_stats: Statistics known beforehand.
        stochastic: Whether the module draws random numbers.
        stream_name: The stream of `rngs` that it draws them from.

    Raises:
        ValueError: If `stochastic` is set without a `stream_name`.
    """

    # hash=False: dicts, sets and arrays have no hash, and jit hashes what nnx.static holds.
    cacheable: bool = False
    batch_stats_fn: Callable | nnx.Module | None = dataclasses.field(default=None, hash=False)
    precomputed_stats: dict[str, Any] | None = dataclasses.field(default=None, hash=False)
    stochastic: bool = False
    stream_name: str | None = None

    def __post_init__(self):
        if self.stochastic and self.stream_name is None:
            raise ValueError(
                "stochastic=True needs the random stream to draw from: write "
                "stochastic=True, stream_name='default'."
            )


_FORMER = {"_applied", "_skipped"}
"""Variables that modules had up to version 0.1.0; their states are read without them."""


def register_host_state(kind: type) -> None:
    """Registers a class of Python state, so that `nnx.clone` copies it with its module.

    To JAX it is a node without leaves: no array, and no reason to trace a function again unless
    the class says so by `__eq__`. The copy is `copy.copy`'s.

    Args:
        kind: The class.
    """
    jax.tree_util.register_pytree_node(kind, lambda x: ((), x), lambda x, _: copy.copy(x))
    nnx.register_data_type(kind)


@dataclasses.dataclass(eq=False)
class Counts:
    """How many records a module handed out and left out, and the seconds of decoding them."""

    applied: int = 0
    skipped: int = 0
    decoding: float = 0.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts)  # nothing compiled depends on them

    def __hash__(self) -> int:
        return 0


register_host_state(Counts)


class DataraxModule(nnx.Module):
    """Base of data modules, and of those that users write.

    Args:
        config: A `DataraxModuleConfig` or a subclass's.
        rngs: Random streams that the module keeps.
        name: A name for messages.

    Raises:
        TypeError: If `config` is no `DataraxModuleConfig`.

    Example:
        >>> module = DataraxModule(DataraxModuleConfig(precomputed_stats={"mean": 0.5}))
        >>> module.get_statistics()
        {'mean': 0.5}
    """

    def __init__(
        self, config: DataraxModuleConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ):
        expect_config(config, DataraxModuleConfig, self)
        self.config = nnx.static(config)
        self.rngs = nnx.data(rngs)
        self.name = nnx.static(name)
        self.stochastic = config.stochastic
        self.stream_name = config.stream_name
        self._statistics = nnx.data(None)  # set by hand
        self._computed_stats = nnx.data(None)
        self._ignores_precomputed = False
        self._counts = Counts()

    def process(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Transforms the structure of `input`; subclasses that process define it.

        Raises:
            NotImplementedError: Always, in the base.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no process(input).")

    # --- counters --------------------------------------------------------------------------------

    def get_operation_stats(self) -> dict[str, int]:
        """Returns how many records the module handed out (`applied_count`) and left out
        (`skipped_count`), as Python ints."""
        return {"applied_count": self._counts.applied, "skipped_count": self._counts.skipped}

    def reset_operation_stats(self) -> None:
        """Sets both counters to zero."""
        self._counts = Counts()

    # --- statistics ------------------------------------------------------------------------------

    def compute_statistics(self, data: Any) -> dict[str, Any] | None:
        """Computes statistics of `data` with the configuration's `batch_stats_fn` and keeps them.

        Args:
            data: The argument of `batch_stats_fn`.

        Returns:
            The statistics, or None where no `batch_stats_fn` is configured.
        """
        compute = self.config.batch_stats_fn
        if compute is None:
            return None
        if not self.config.cacheable or self._computed_stats is None:
            self._computed_stats = nnx.data(compute(data))
        self._statistics = nnx.data(None)
        return self._computed_stats

    def get_statistics(self) -> dict[str, Any] | None:
        """Returns the statistics set by hand, else the configured ones, else those computed last.

        Computing replaces those set by hand. After `reset_statistics` it is None until new ones are
        set or computed.
        """
        if self._statistics is not None:
            return self._statistics
        configured = None if self._ignores_precomputed else self.config.precomputed_stats
        return self._computed_stats if configured is None else configured

    def set_statistics(self, stats: dict[str, Any]) -> None:
        """Sets the statistics, in place of computed or configured ones."""
        self._statistics, self._computed_stats = nnx.data(stats), nnx.data(None)

    def reset_statistics(self) -> None:
        """Forgets all statistics, the configuration's too."""
        self._statistics = self._computed_stats = nnx.data(None)
        self._ignores_precomputed = True

    def reset_cache(self) -> None:
        """Forgets the computed statistics that `cacheable=True` keeps.

        Without `cacheable=True` it does nothing.
        """
        if self.config.cacheable:
            self._computed_stats = nnx.data(None)

    # --- copies and state ------------------------------------------------------------------------

    def copy(
        self,
        *,
        config: DataraxModuleConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> Self:
        """Returns a new module, built with this one's arguments where none are given.

        Without a `config` the copy has this module's statistics, too.

        Args:
            config: Configuration of the copy.
            rngs: Random streams of the copy.
            name: Name of the copy.
        """
        copy = type(self)(
            self.config if config is None else config,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )
        return self._settings_to(copy) if config is None else copy

    def _settings_to(self, copy: Self) -> Self:
        """Gives a copy the settings made since this module was built, and returns it."""
        copy._statistics = nnx.data(self._statistics)
        copy._computed_stats = nnx.data(self._computed_stats)
        copy._ignores_precomputed = self._ignores_precomputed
        return copy

    def clone(self) -> Self:
        """Returns a module with the same state, sharing its arrays but none of its variables."""
        return nnx.clone(self)

    def get_state(self) -> dict[str, Any]:
        """Returns the module's variables as a dict of nested dicts and arrays."""
        return nnx.to_pure_dict(nnx.state(self))

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that `get_state` returned.

        Args:
            state: The dict.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure is not this module's, or an array has another shape or
                dtype.
        """
        expect_dict(state)
        nnx.update(self, _filled(nnx.state(self), state, type(self).__name__))

    # --- random streams --------------------------------------------------------------------------

    def requires_rng_streams(self) -> list[str] | None:
        """Returns the names of the random streams the module draws from, or None."""
        return [self.stream_name] if self.stochastic and self.stream_name else None

    def ensure_rng_streams(self, stream_names: list[str]) -> None:
        """Checks that `stream_names` hold the streams that the module draws from.

        Raises:
            ValueError: If a stream is missing.
        """
        missing = [name for name in self.requires_rng_streams() or [] if name not in stream_names]
        if missing:
            raise ValueError(
                f"{type(self).__name__} draws from the random streams {listed(missing)}, there are "
                f"{listed(stream_names) or 'none'}: write rngs=nnx.Rngs({missing[0]}=0)."
            )


def expect_config(config: Any, kind: type, module: DataraxModule) -> None:
    """Raises `TypeError` unless `config` is of the kind that a module is made with."""
    if not isinstance(config, kind):
        name = type(module).__name__
        raise TypeError(
            f"config={config!r}: expected a {kind.__name__}, as in {name}({kind.__name__}(...))."
        )


def _filled(own: Any, given: Any, label: str) -> Any:
    """Returns a nested state with the values of a dict of the same structure.

    Args:
        own: The state, or one variable of it.
        given: The values to put in place.
        label: The module's name, and the path to `own`.
    """
    if not isinstance(own, Mapping):
        value = own.get_value() if isinstance(own, nnx.Variable) else own
        if hasattr(value, "dtype"):  # a Python number takes the dtype of the array it stands for
            expected = value.shape, value.dtype
            found = np.shape(given), getattr(given, "dtype", value.dtype)
            if found != expected:
                raise ValueError(
                    f"The state's {label} has the shape and dtype {found}, the module's {expected}:"
                    " restore it into the module it is of."
                )
        return own.replace(given) if isinstance(own, nnx.Variable) else given
    names = set(given) if isinstance(given, Mapping) else {type(given).__name__}
    names -= _FORMER - set(own)
    if names != set(own):
        raise ValueError(
            f"The state has the structure {sorted(map(str, names))}, {label} "
            f"{sorted(map(str, own))}: restore it into the module it is of."
        )
    return {name: _filled(own[name], given[name], f"{label}[{name!r}]") for name in own}
