"""A mixture: records of several sources, in proportions that may change."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.host import HostColumn
from datarax.columns.rows import on_device
from datarax.errors import expect_between
from datarax.order.draws import Stop, draws_of, stages_of
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.alike import expect_alike
from datarax.sources.mixed_state import Place, PositionedMixture
from datarax.sources.source import SourceConfigBase
from datarax.stream.block import Block


@dataclasses.dataclass(frozen=True)
class MixedSourceConfig(SourceConfigBase):
    """Configuration of `MixedSource`: the fields of every source's, and no others."""


class MixedSource(PositionedMixture):
    """Records of several sources in proportions that hold in every thousand draws.

    Each round of 1,000 draws holds `1000 * weight` records of each source, to within one, evenly
    spread; over many rounds the proportions are exact. A source that ends begins its next epoch.

    Weights in stages change with the draws: a round holds what the weights sum up to over it, to
    within one, and the records before a stage's first draw do not depend on it. So a stage that
    begins within a round may find a source drawn too often: a few in a thousand of such rounds are
    off by more than one, the worst of 100,000 by 1.63.

    With `stop="never"` a mixture is an unbounded stream. With `"first"` or `"all"` it has epochs,
    which are alike: the draws and the stages begin again, and each source goes on where it is.

    Args:
        sources: Sources whose records have the same columns: eager, indexed, streams, mixtures.
        weights: One positive number a source; only their proportions count. Or stages, pairs of
            the first draw and the weights from it on, as `[(0, [0.7, 0.3]), (10_000, [1, 1])]`.
        stop: Where an epoch ends: `"never"`; with the last record of the source that ends
            `"first"`; or when `"all"` sources have ended, of which others have begun again.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages.

    Raises:
        ValueError: If the columns or the names of their classes differ, the weights do not fit
            the sources, or an epoch would have no end.
        TypeError: If something is no source.

    Example:
        >>> low = MemorySource(MemorySourceConfig(), {"x": np.arange(10)})
        >>> high = MemorySource(MemorySourceConfig(), {"x": np.arange(100, 110)})
        >>> MixedSource([low, high], weights=[3, 1]).get_batch(8)["x"].tolist()
        [0, 1, 100, 2, 3, 4, 101, 5]
        >>> low.reset()
        >>> high.reset()
        >>> stages = [(0, [1, 0]), (4, [0, 1])]
        >>> mixture = MixedSource([low, high], stages, stop="first")
        >>> len(mixture), mixture.get_batch(6)["x"].tolist()
        (14, [0, 1, 2, 3, 100, 101])
    """

    def __init__(
        self,
        sources: Sequence[Any],
        weights: Sequence[Any],
        *,
        stop: Stop = "never",
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        super().__init__(MixedSourceConfig(), rngs=rngs, name=name)
        sources = list(sources)
        stages = stages_of(weights, len(sources))
        expect_alike(sources)
        if stop not in get_args(Stop):
            raise ValueError(f'stop={stop!r}: expected "never", "first" or "all".')
        self.sources = nnx.List(sources)
        self.stop = stop
        lengths = tuple(source.length for source in sources)
        self._draws = nnx.static(draws_of(stages, lengths, stop))
        self._stages = nnx.static(stages)
        self._place = Place()

    @property
    def length(self) -> int | None:
        """Draws in an epoch; None where it never ends."""
        return self._draws.length

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(
                f'{self.label} has no length: a mixture never ends, unless you write stop="first" '
                'or stop="all".'
            )
        return self.length

    @property
    def parts(self) -> tuple[Any, ...]:
        """The sources whose records these are; see `Source.parts`."""
        return tuple(part for source in self.sources for part in source.parts)

    def drawn(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns of which part some records are, and their ranks there; see `Source.drawn`."""
        epoch, index = (0 * ranks, ranks) if self.length is None else divmod(ranks, self.length)
        chosen, ranks = self._draws.at(epoch, index)
        part, first = np.empty_like(chosen), 0
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(chosen == number)
            if len(mine):
                inner, ranks[mine] = source.drawn(ranks[mine])
                part[mine] = first + inner
            first += len(source.parts)
        return part, ranks

    def records_at(self, epoch: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the part of each record of an epoch, and its number there; see `Source`."""
        part, records = self.drawn(np.asarray(ranks, np.int64) + epoch * (self.length or 0))
        for number, source in enumerate(self.parts):
            if source.is_indexable:
                epochs, index = divmod(records, source.length)
                for its in np.unique(epochs[part == number]).tolist():
                    mine = (part == number) & (epochs == its)
                    records[mine] = source.records_at(its, index[mine])
        return np.stack([part, records], axis=1)

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
        """Returns the next `batch_size` records, never fewer, on into the next epoch.

        Args:
            batch_size: Number of records.

        Returns:
            Dict of JAX arrays of shape `(batch_size, ...)`, and object arrays for host columns.
        """
        return on_device(self.get_host_batch(batch_size))

    def get_host_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the batch of `get_batch`; NumPy arrays where all sources are streams."""
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        before, parts, left = self.position(), [], batch_size
        try:
            while left:
                self._roll()
                parts.append(self._read(self._next(left), batch_size))
                left -= len(jax.tree.leaves(parts[-1])[0])
        except BaseException:
            self.rewind(self.state_at(before))
            raise
        self._roll()
        self._counts.applied += batch_size
        return _joined(*parts)

    def take(self, count: int, step: int) -> Iterator[dict[str, Any]]:
        """Yields the next `count` records in one part; see `Source.take`."""
        if count:
            yield self.get_host_batch(count)

    def skip(self, count: int) -> None:
        """Goes `count` records on; see `Source.skip`."""
        before = self._given(self._place.epoch, self._place.index)
        self._place.index += count
        self._roll()
        drawn = self._given(self._place.epoch, self._place.index) - before
        for source, more in zip(self.sources, drawn.tolist(), strict=True):
            source.skip(more)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the records of one epoch, or without end."""
        for batch in self.epoch_batches(1):
            yield jax.tree.map(lambda column: column[0], on_device(batch))

    def epoch_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields batches to the end of an epoch, the last one short; or without end."""
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        self.begin_epoch()
        self._roll()
        epoch = self._place.epoch
        while epoch == self._place.epoch:
            yield self.get_host_batch(self._next(batch_size))

    @property
    def decoding_seconds(self) -> float:
        """Seconds that decoding took in all sources so far; see `Source`."""
        return sum(source.decoding_seconds for source in self.sources)

    def begin_epoch(self) -> bool:
        """Goes to where a `for` begins; see `Source`. Without end, a `for` goes on where it is."""
        resumes, self._place.resumes = self._place.resumes, False
        if not self.is_endless and self._place.index and not resumes:
            self.next_epoch()
        return resumes and not self.is_endless

    def next_epoch(self) -> None:
        """Goes to the start of the next epoch: what is left of this one is read over."""
        assert self.length is not None
        self.skip(self.length - self._place.index)

    def read_batches(self, batches: int, batch_size: int) -> Block:
        """Returns the next batches stacked; see `Source.read_batches`.

        An epoch's last batch is filled up with its own records, which do not count.
        """
        first, positions, parts = self._place.index, [self.position()], []
        for _ in range(batches):
            if size := self._next(batch_size):
                rows = np.arange(batch_size) % size
                parts.append(jax.tree.map(lambda x, r=rows: np.asarray(x)[r], self._read(size)))
            positions.append(self.position())
        index = first + np.arange(batches * batch_size).reshape(batches, batch_size)
        valid = np.ones_like(index, bool) if self.length is None else index < self.length
        ranks = (index % 2**32).astype(np.uint32)
        columns = jax.tree.map(
            lambda spec: np.empty((0, batch_size, *spec.shape), spec.dtype), self.element_spec()
        )
        if parts:
            missing = batches - len(parts)
            columns = jax.tree.map(lambda *x: np.stack([*x, *x[:1] * missing]), *parts)
        full = int(valid.all(axis=1).sum())
        return Block(columns, valid, ranks, self._place.epoch, len(parts), positions, 0, full)

    def _next(self, batch_size: int) -> int:
        """Returns how many of the next records are of this epoch."""
        return (
            batch_size if self.length is None else min(batch_size, self.length - self._place.index)
        )

    def _roll(self) -> None:
        self._place.roll(self.length)

    def _read(self, size: int, batch_size: int = 0) -> dict[str, Any]:
        """Returns the next records of this epoch."""
        index = self._place.index + np.arange(size)
        chosen, _ = self._draws.at(np.zeros(size, np.int64), index)
        parts, row, read = [], np.empty(size, np.int64), 0
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(chosen == number)
            row[mine] = read + np.arange(len(mine))
            for part in source.take(len(mine), step=-(-(batch_size or size) // 8)):
                read += len(jax.tree.leaves(part)[0])
                parts.append(part)
        self._place.index += size
        return jax.tree.map(lambda column: column[row], _joined(*parts))

    def clone(self) -> Self:
        """Returns a mixture at the same position that moves on its own."""
        sources = [source.clone() for source in self.sources]
        clone = type(self)(sources, self._stages, stop=self.stop, name=self.name)
        clone._place = dataclasses.replace(self._place)
        return clone


def _joined(*parts: Any) -> Any:
    """Returns batches one after the other, NumPy arrays where all are."""

    def one(*columns: Any) -> Any:
        if len(columns) == 1:
            return columns[0]
        host = all(isinstance(column, np.ndarray) for column in columns)
        return np.concatenate(columns) if host else jnp.concatenate(columns)

    return jax.tree.map(one, *parts)
