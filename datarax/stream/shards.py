"""Shards: the parts that a stream is read in, each from any position that it gave before."""

from collections.abc import Iterator
from typing import Any, Protocol, Self, runtime_checkable

import datasets
import pyarrow as pa

from datarax.columns.arrow import expect_no_transform, gathered, without_views
from datarax.hub import network
from datarax.hub.private import positions_of, rows_between, table_of

READ_ROWS = 8192  # rows per read of an Arrow reader: enough to hide what a read costs
READ_BYTES = 32 << 20  # of a table: 8,192 rows of 300 kB would be 2.5 GB a shard
_TABLE_SHARDS = 64


class Shards(Protocol):
    """What a stream reads: a fixed number of shards that give Arrow tables.

    Attributes:
        features: The features of the rows; None to take them from the first table.
        num_shards: The number of shards, the same wherever the data is.
        length: The number of rows of all shards, None if unknown.
    """

    @property
    def features(self) -> datasets.Features | None: ...

    @property
    def num_shards(self) -> int: ...

    @property
    def length(self) -> int | None: ...

    def open(self, shard: int, state: Any) -> Iterator[tuple[pa.Table, Any]]:
        """Yields tables, each with the state from which the rest of the shard can be read.

        Args:
            shard: Which shard, from 0.
            state: A state yielded before, also after a round trip through JSON; None: the start.
        """
        ...

    def label(self, shard: int) -> str:
        """Returns what an error calls the shard: its file."""
        ...


@runtime_checkable
class DatasetShards(Shards, Protocol):
    """Shards of a `datasets.IterableDataset`, which may make its rows in Python.

    Attributes:
        inferred: The features of the rows, those that were not declared too.
        hint: Why the dataset is one shard and what to write instead; empty if it has several.
        changed: Why states of version 0.1.0 are of other data; empty if they are not.
    """

    inferred: datasets.Features | None
    hint: str

    @property
    def changed(self) -> str: ...

    def at_epoch(self, epoch: int) -> Self:
        """Returns the shards of an epoch; they differ where the dataset was shuffled before."""
        ...


def more_shards(shards: Shards) -> str:
    """Returns what an error says to somebody who needs more shards."""
    hint = shards.hint if isinstance(shards, DatasetShards) else ""
    return hint or "use at most as many streams, or store the data in more files"


class Unfit(ValueError):
    """A row that does not fit a column: never a bad row, since its data can be read.

    Args:
        column: The column's name.
        found: What the row holds, and what to do.
    """

    def __init__(self, column: str, found: str):
        super().__init__(column, found)
        self.column, self.found = column, found


def row_label(row: int, shard: str) -> str:
    """Returns what an error calls a row of a shard, without secrets."""
    return f"row {row} of {network.redacted(shard)}"


def unfit(error: Unfit, row: int, shard: str) -> ValueError:
    """Returns the error to raise for a row that does not fit a column."""
    return ValueError(f"column {error.column!r}, {row_label(row, shard)}: {error.found}.")


class UsersError(Exception):
    """An error in a function that the user gave to `map` or `filter`.

    Args:
        error: What the function raised.
    """

    def __init__(self, error: Exception):
        super().__init__(error)
        self.error = error


class TableShards:
    """Ranges of rows of a `datasets.Dataset`, read from where it is (mapped from the disk).

    Args:
        dataset: Any dataset, selected, shuffled, mapped or filtered.
    """

    def __init__(self, dataset: datasets.Dataset):
        expect_no_transform(dataset)
        self._dataset, self._positions = dataset, positions_of(dataset)
        table = table_of(dataset)
        self._table = table if self._positions is None else without_views(table)
        self._at_once = max(1, min(READ_ROWS, READ_BYTES * len(table) // max(table.nbytes, 1)))
        self._rows = len(dataset)
        self.features: datasets.Features | None = dataset.features
        self.length: int | None = self._rows
        self.num_shards = max(1, min(_TABLE_SHARDS, self._rows // 256))

    def open(self, shard: int, state: int | None) -> Iterator[tuple[pa.Table, int]]:
        start, stop = self._bounds(shard)
        start = start if state is None else state
        while start < stop:
            end = min(start + self._at_once, stop)
            if self._positions is None:
                yield rows_between(self._dataset, start, end), end
            else:
                yield gathered(self._table, self._positions[start:end]), end
            start = end

    def _bounds(self, shard: int) -> tuple[int, int]:
        return self._rows * shard // self.num_shards, self._rows * (shard + 1) // self.num_shards

    def label(self, shard: int) -> str:
        return "rows {} to {} of the dataset".format(*self._bounds(shard))
