"""The interface above every source: records with a spec, in an order, from a position."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np

from datarax.columns.host import HostColumn
from datarax.sources.module import DataraxModule, DataraxModuleConfig
from datarax.stream.block import Block


@dataclasses.dataclass(frozen=True)
class SourceConfigBase(DataraxModuleConfig):
    """Base of the sources' configurations."""


class Source(DataraxModule):
    """The interface that `Pipeline`, `prefetch_to_device`, `MixedSource` and the trainer use.

    Four kinds stand below it: `EagerSourceBase` holds columns, which compiled programs index;
    `IndexedSourceBase` reads rows by their number; `StreamingSourceBase` reads records in order;
    `MixedSource` draws them of other sources. Users subclass the first three.

    A position is cheap to take before every batch; `state_at` makes a JSON-able state of it, at
    once or later. `read_batches` gives batches stacked in host memory, up to the end of an epoch;
    `next_epoch` begins the next one.

    Attributes:
        length: Number of records in an epoch, None where it is unknown or there is no end.
        fingerprint: Fingerprint of the data's content.
        is_traceable: Whether compiled programs form the batches, by arithmetic on `columns`;
            otherwise they are read in host memory.
        is_indexable: Whether records can be read by number: `source[i]`, `host_rows`.
    """

    is_traceable: ClassVar[bool] = False
    is_indexable: ClassVar[bool] = False

    length: int | None
    fingerprint: str

    # --- records ---------------------------------------------------------------------------------

    @property
    def is_endless(self) -> bool:
        """Whether it has no epochs and never ends."""
        return False

    @property
    def label(self) -> str:
        """The name of the source in messages: its own, else its class's."""
        return self.name or type(self).__name__

    @property
    def dataset_name(self) -> str:
        """The name of the data in reports."""
        return self.label

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(
                f"{self.label} is a stream of unknown length: ask source.length, which is None, or "
                "count its records by iterating over it."
            )
        return self.length

    def __bool__(self) -> bool:
        return True  # also where __len__ raises

    @property
    def parts(self) -> tuple[Any, ...]:
        """The sources whose records these are: this one alone, or those of a mixture."""
        return (self,)

    def drawn(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns of which part some records are, and their ranks there, `int64` arrays.

        Args:
            ranks: How many records come before each, from epoch 0 on, `int64` of shape `(size,)`.
        """
        return np.zeros_like(ranks), ranks

    def position_at(self, count: int) -> Any:
        """Returns the position after the first `count` records, of a source in random access."""
        raise NotImplementedError

    def element_spec(self) -> dict[str, Any]:
        """Returns the shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`.

        A host column's is `ShapeDtypeStruct((), numpy.dtype(object))`.
        """
        raise NotImplementedError

    @property
    def features(self) -> Mapping[str, Any]:
        """The features of the columns, by name; empty where none are known."""
        return {}

    def host_columns(self) -> tuple[HostColumn, ...]:
        """Returns the columns that are no arrays, nested ones too; a stream's have no rows."""
        raise NotImplementedError

    def host_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some rows of all columns: NumPy arrays of shape `(k, ...)`, and host columns.

        Args:
            rows: Row numbers, integers of shape `(k,)`, from 0 to `length - 1`.

        Raises:
            NotImplementedError: If the source is not indexable.
        """
        raise NotImplementedError

    # --- order -----------------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """Seed of the order; epoch `e` follows `(seed + e) % 2**32`."""
        raise NotImplementedError

    @property
    def is_random_order(self) -> bool:
        """Whether each epoch has its own random order."""
        raise NotImplementedError

    def set_random_order(self, enabled: bool) -> None:
        """Sets whether each epoch has its own random order, from the next batch on."""
        raise NotImplementedError

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the start of epoch 0.

        Args:
            seed: A new seed of the order, from 0 to 2**32 - 1; None keeps the present one.

        Raises:
            ValueError: If `seed` is out of range.
        """
        raise NotImplementedError

    def sharded(self, shards: int) -> Self:
        """Returns the source to read for an order with canonical shards.

        Args:
            shards: Number of canonical shards, 2 at least.

        Raises:
            ValueError: If the source cannot be dealt to so many.
        """
        raise ValueError(
            f"shards={shards}, but a {type(self).__name__} has no files to deal out: write "
            "shards=1."
        )

    def share(self, shards: int, reader: int, readers: int) -> tuple[Self, int]:
        """Returns the source of one process's part of every batch, and how many processes share it.

        Args:
            shards: Number of canonical shards.
            reader: Which process this is.
            readers: How many there are; each computes an equal part of a batch's rows, in order.

        Returns:
            A source of this process's part and `readers`; or this source and 1, where each process
            has to read all.
        """
        return self, 1

    # --- batches ---------------------------------------------------------------------------------

    def get_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns the next records, as JAX arrays of shape `(batch_size, ...)`."""
        raise NotImplementedError

    def get_batch_at(
        self, start: int | jax.Array, size: int, key: jax.Array | None = None
    ) -> dict[str, Any]:
        """Raises: the source is read in order; those that can be indexed say otherwise.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{self.label} is a stream and cannot be indexed: use get_batch(n) or iterate over it, "
            "or load it with HFEagerSource where it fits."
        )

    def take(self, count: int, step: int) -> Iterator[dict[str, Any]]:
        """Yields the next `count` records in parts, on into the next epochs.

        Args:
            count: How many records.
            step: Lengths of parts may be rounded up to multiples of it, so that few of them are
                compiled. The records above `count` stay the source's next.
        """
        raise NotImplementedError

    def skip(self, count: int) -> None:
        """Goes `count` records on, into the next epochs; a stream reads them."""
        while count:
            size = min(count, 1024)
            for _ in self.take(size, step=1):
                pass
            count -= size

    def epoch_batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yields batches to the end of one epoch, the last one short; it begins as a `for` does.

        Their arrays may be NumPy's, and share the data's memory.
        """
        raise NotImplementedError

    def epoch_blocks(self, batch_size: int) -> Iterator[Block]:
        """Yields batches, each as a `Block` of one, to the end of an epoch, as `epoch_batches`."""
        resumes = self.begin_epoch()
        while (block := self.read_batches(1, batch_size)).filled or resumes:
            if not block.filled:  # a state of an epoch's very end: here is the next one
                self.next_epoch()
            else:
                yield block
            resumes = False
        self.next_epoch()

    def read_batches(self, batches: int, batch_size: int) -> Block:
        """Returns the next batches of this epoch, stacked in host memory.

        It stops at the epoch's end: batches past it have no valid record, and `block.filled` says
        how many have one. The source stands after the last of them.

        Args:
            batches: How many batches.
            batch_size: Records in a batch of this process.

        Returns:
            A `Block`: `columns` with arrays of shape `(batches, batch_size, ...)`, `valid` of shape
            `(batches, batch_size)`, and the `positions` of which `state_at` makes states.
        """
        raise NotImplementedError

    @property
    def decoding_seconds(self) -> float:
        """Seconds that decoding and transforming took so far; 0 where nothing tells."""
        return 0.0

    def records_at(self, epoch: int, ranks: np.ndarray) -> np.ndarray:
        """Returns the number of each record of an epoch, or its rank where records have none.

        Args:
            epoch: The epoch.
            ranks: Ranks of the records in the epoch, integers of shape `(size,)`. For those of a
                mixture, pairs of a place among `parts` and a number there are returned.
        """
        return ranks

    def begin_epoch(self) -> bool:
        """Goes to where a `for` begins (see `__iter__`); returns whether a state put it there."""
        raise NotImplementedError

    def next_epoch(self) -> None:
        """Goes to the start of the next epoch."""
        raise NotImplementedError

    # --- state -----------------------------------------------------------------------------------

    def position(self) -> Any:
        """Returns the position, of which `state_at` makes a state, also later."""
        raise NotImplementedError

    def state_at(self, position: Any) -> dict[str, Any]:
        """Returns the state of the source when it stands at `position`."""
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        """Returns the position, the order and the data's fingerprint: JSON-able, never the data."""
        return self.state_at(self.position())

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that `get_state` returned, of this source or of one with the same data.

        The order is the state's from then on: its seed, and whether it is random.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure or values are not those of a state, or of other data.
        """
        raise NotImplementedError

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this source; a `for` begins the next epoch, as after a `break`."""
        raise NotImplementedError

    def joined_state(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns one state of those that all processes have after the same batch."""
        return states[0]

    def close(self) -> None:
        """Closes the files that are open; the next record opens them again."""
