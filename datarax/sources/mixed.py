"""A mixture: records of several sources, in fixed proportions."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.host import HostColumn
from datarax.columns.rows import on_device
from datarax.errors import expect_between
from datarax.module import expect_dict, register_host_state
from datarax.order.draws import MixtureDraws
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.alike import expect_alike
from datarax.sources.source import Source, SourceConfigBase
from datarax.stream.block import Block

STATE_VERSION = 2

register_host_state(MixtureDraws)


@dataclasses.dataclass(frozen=True)
class MixedSourceConfig(SourceConfigBase):
    """Configuration of `MixedSource`: the fields of every source's, and no others."""


class MixedPosition(NamedTuple):
    """Where a mixture stands: its draws, and the positions of its sources."""

    draws: int
    ups: tuple[int, ...]
    sources: tuple[Any, ...]


class MixedSource(Source):
    """Records of several sources in fixed proportions: an unbounded stream.

    Each round of 1,000 draws holds `1000 * weight` records of each source, to within one, evenly
    spread; over many rounds the proportions are exact. A source that ends begins its next epoch.

    Args:
        sources: Eager sources or streams whose records have the same columns.
        weights: One positive number a source; only their proportions count.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If the columns or the names of their classes differ, or the weights do not fit
            the sources.
        TypeError: If something is no source.

    Example:
        >>> low = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
        >>> high = MemorySource(MemorySourceConfig(), {"x": np.arange(100, 110)})
        >>> MixedSource([low, high], weights=[3, 1]).get_batch(8)["x"].tolist()
        [0, 1, 100, 2, 3, 4, 101, 5]
    """

    is_endless: ClassVar[bool] = True

    def __init__(
        self,
        sources: Sequence[Any],
        weights: Sequence[float],
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        super().__init__(MixedSourceConfig(), rngs=rngs, name=name)
        sources, weights = list(sources), list(weights)
        if not sources or len(sources) != len(weights) or not all(w > 0 for w in weights):
            raise ValueError(
                f"{len(sources)} sources and weights={weights}: expected one positive weight a "
                "source, as in MixedSource([a, b], weights=[0.7, 0.3])."
            )
        expect_alike(sources)
        self.sources = nnx.List(sources)
        self._draws = MixtureDraws(weights)

    @property
    def weights(self) -> tuple[float, ...]:
        """The proportions, which sum to 1."""
        return self._draws.weights

    @property
    def length(self) -> None:
        """None: it never ends."""
        return None

    def __len__(self) -> int:
        raise TypeError(f"{self.label} has no length: a mixture never ends.")

    def element_spec(self) -> dict[str, Any]:
        """Returns the shape and dtype of one record; see `Source.element_spec`."""
        return self.sources[0].element_spec()

    @property
    def features(self) -> Mapping[str, Any]:
        """The features of the first source's columns, by name; empty where none are known."""
        return self.sources[0].features

    @property
    def fingerprint(self) -> str:
        """The fingerprints of the sources."""
        return "+".join(source.fingerprint for source in self.sources)

    @property
    def seed(self) -> int:
        """The first source's seed."""
        return self.sources[0].seed

    @property
    def is_random_order(self) -> bool:
        """Whether any of the sources is read in random order."""
        return any(source.is_random_order for source in self.sources)

    def host_columns(self) -> tuple[HostColumn, ...]:
        """Returns the columns that are no arrays; see `Source.host_columns`."""
        return self.sources[0].host_columns()

    def get_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the next `batch_size` records, never fewer.

        Args:
            batch_size: Number of records.

        Returns:
            Dict of JAX arrays of shape `(batch_size, ...)`, and object arrays for host columns.
        """
        return on_device(self.get_host_batch(batch_size))

    def get_host_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the batch of `get_batch`; NumPy arrays where all sources are streams."""
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        before = self.position()
        try:
            chosen = self._draws.take(batch_size)
            parts, row, read = [], np.empty(batch_size, np.int64), 0
            for number, source in enumerate(self.sources):
                mine = np.flatnonzero(chosen == number)
                row[mine] = read + np.arange(len(mine))
                for part in source.take(len(mine), step=-(-batch_size // 8)):
                    read += len(jax.tree.leaves(part)[0])
                    parts.append(part)
        except BaseException:
            self.rewind(self.state_at(before))
            raise
        self._counts.applied += batch_size
        return jax.tree.map(lambda *columns: _joined(columns)[row], *parts)

    def take(self, count: int, step: int) -> Iterator[dict[str, Any]]:
        """Yields the next `count` records in one part; see `Source.take`."""
        if count:
            yield self.get_host_batch(count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields records without end."""
        while True:
            yield jax.tree.map(lambda column: column[0], self.get_batch(1))

    def epoch_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields batches without end."""
        while True:
            yield self.get_host_batch(batch_size)

    def begin_epoch(self) -> bool:
        """Does nothing: a `for` goes on where the mixture stands, since it has no epochs."""
        return False

    def read_batches(self, batches: int, batch_size: int) -> Block:
        """Returns the next batches stacked; see `Source.read_batches`."""
        positions, read = [self.position()], []
        for _ in range(batches):
            read.append(self.get_host_batch(batch_size))
            positions.append(self.position())
        columns = jax.tree.map(lambda *columns: np.stack(columns), *read)
        shape = batches, batch_size
        draws = np.uint32(positions[0].draws % 2**32) + np.arange(
            batches * batch_size, dtype=np.uint32
        )
        return Block(columns, np.ones(shape, bool), draws.reshape(shape), 0, batches, positions, 0)

    # --- state -----------------------------------------------------------------------------------

    def position(self) -> MixedPosition:
        """Returns the position, of which `state_at` makes a state, also later."""
        sources = tuple(source.position() for source in self.sources)
        return MixedPosition(self._draws.done, self._draws.ups, sources)

    def state_at(self, position: MixedPosition) -> dict[str, Any]:
        """Returns the state of the mixture when it stands at `position`."""
        pairs = zip(self.sources, position.sources, strict=True)
        return {
            "version": STATE_VERSION,
            "epoch": 0,  # it never ends
            "index": position.draws,
            "ups": list(position.ups),
            "weights": list(self.weights),
            "sources": [source.state_at(its) for source, its in pairs],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that `get_state` returned, of a mixture of the same data.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure, its weights or the data of a source differ.
        """
        expect_dict(state)
        own = self.get_state()
        if state.keys() != own.keys() or state["version"] != STATE_VERSION:
            raise ValueError(
                f"The state is not that of a mixture: it has {sorted(state)} of version "
                f"{state.get('version')}, {self.label} reads {sorted(own)} of {STATE_VERSION}."
            )
        for name in ("sources", "weights", "ups"):
            if not isinstance(state[name], (list, tuple)):
                raise ValueError(f"The state's {name} are {state[name]!r:.60}: expected a list.")
        if len(state["sources"]) != len(self.sources):
            raise ValueError(
                f"The state is that of a mixture of {len(state['sources'])} sources, "
                f"{self.label} has {len(self.sources)}."
            )
        if list(state["weights"]) != own["weights"]:
            raise ValueError(
                f"The state is of a mixture with weights={state['weights']}, {self.label} has "
                f"{own['weights']}. Restore it with those, or begin anew."
            )
        self._draws.expect_reached(state["index"], state["ups"])
        try:
            for source, its in zip(self.sources, state["sources"], strict=True):
                source.set_state(its)
        except BaseException:
            for source, its in zip(self.sources, own["sources"], strict=True):
                source.set_state(its)
            raise
        self._draws.go_to(int(state["index"]), state["ups"])

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this mixture."""
        self.set_state(state)

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the first draw and to the start of each source's epoch 0.

        Args:
            seed: A new seed for every source; None keeps theirs.
        """
        for source in self.sources:
            source.reset(seed)
        self._draws.restart()

    def set_random_order(self, enabled: bool) -> None:
        """Sets whether the sources are read in random order."""
        for source in self.sources:
            source.set_random_order(enabled)

    def close(self) -> None:
        """Closes the files that the sources have open."""
        for source in self.sources:
            source.close()

    def clone(self) -> Self:
        """Returns a mixture at the same position that moves on its own."""
        clone = type(self)([s.clone() for s in self.sources], self.weights, name=self.name)
        clone._draws.go_to(self._draws.done, self._draws.ups)
        return clone


def _joined(columns: Sequence[Any]) -> Any:
    if all(isinstance(column, np.ndarray) for column in columns):
        return np.concatenate(columns)
    return jnp.concatenate(columns)
