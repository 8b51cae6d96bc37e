"""Shards of a `datasets.IterableDataset`, read as Arrow tables or as rows that Python makes.

The private names of `datasets.iterable_dataset` are in `datarax.stream.steps` and `.copies`.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from logging import INFO, WARNING, getLogger
from typing import Any, Self

import datasets
import pyarrow as pa

from datarax.hub.private import require_decoding
from datarax.stream import copies, steps
from datarax.stream.encoder import Encoder
from datarax.stream.shards import READ_ROWS

logger = getLogger(__name__)

READ_FILES = 1024  # rows per read with images or audio: about 100 MB a shard (8,192 would be 1 GB)
READ_EXAMPLES = 64  # rows per read where Python makes them: each takes long, and none should wait
_LONGEST = 1024  # shards that files are split into at most, since each is opened anew


class IterableShards:
    """The data sources (files, mostly) of a `datasets.IterableDataset`.

    Steps that look across the borders of files (`take`, `interleave_datasets`, ...) leave one
    shard, which is said once. A state says how to go on:

    - from Arrow tables: `datasets`' own state;
    - from rows of Python: `[state, rows]`, `datasets`' own and how many rows to drop after it;
    - where `datasets` resumes elsewhere than it stopped: the number of rows read, which are read
      again and dropped; in a later epoch of a dataset that was shuffled, `{"epoch": ..., "rows":
      ...}`.

    Args:
        dataset: The dataset.
        columns: The columns to read; None for all.
        split_files: Whether the order of rows may differ from that of the dataset: then a few
            Parquet files are read by row groups, and a batched `map` gets its batches file by file.
        length: The number of rows, None if unknown.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        *,
        columns: Sequence[str] | None = None,
        split_files: bool = False,
        length: int | None = None,
    ):
        chain = steps.chain(dataset)
        self._is_arrow = steps.gives_tables(dataset)
        if columns is not None and self._is_arrow:
            dataset = dataset.select_columns(list(columns))
        self.hint = steps.why_whole(chain, split_files)
        self._by_file = not self.hint
        if self.hint and dataset.num_shards > 1:
            level = WARNING if split_files or "not known" in self.hint else INFO
            logger.log(level, "%d files are one shard: %s.", dataset.num_shards, self.hint)
        if self._by_file and split_files and dataset.num_shards < 8:
            finer = dataset.reshard()
            dataset = finer if finer.num_shards <= _LONGEST else dataset
        self._files = steps.files(steps.chain(dataset)[-1]) if self._by_file else None
        self._counted = any(map(steps.is_inexact, chain))
        self._shuffled = any(map(steps.is_shuffle, chain))
        self._epoch, self._first_epoch = 0, dataset.epoch
        self.features = dataset.features
        if columns is not None and self.features is not None:
            self.features = datasets.Features({name: self.features[name] for name in columns})
        self._encoder = Encoder(self.features, steps.known_features(chain), columns)
        self._rows = READ_EXAMPLES
        if self._is_arrow:
            files = any(map(require_decoding, (self.features or {}).values()))
            self._rows = READ_FILES if files else READ_ROWS
        self._dataset = dataset.with_format("arrow") if self._is_arrow else dataset
        self.num_shards = dataset.num_shards if self._by_file else 1
        self.length = length

    @property
    def inferred(self) -> datasets.Features | None:
        """The features of the rows; None where a first table is yet to tell."""
        return self.features if self._is_arrow else self._encoder.features

    @property
    def changed(self) -> str:
        """Why states of version 0.1.0 are of other data; empty if they are not."""
        if self._is_arrow or not any(map(require_decoding, (self.inferred or {}).values())):
            return ""
        return (
            " A state of version 0.1.0 is of other pixels: that version encoded the pictures of "
            "mapped and filtered rows anew, with a loss, and now each pixel comes as it is."
        )

    def at_epoch(self, epoch: int) -> Self:
        """Returns the shards of an epoch, in another order where the dataset was shuffled."""
        if not self._shuffled or epoch == self._epoch:
            return self
        shards = copy.copy(self)
        shards._epoch = epoch
        return shards

    def open(self, shard: int, state: Any) -> Iterator[tuple[pa.Table, Any]]:
        if not self._counted:
            return self._tables(self._part(shard), state)
        # A state that is a number of rows is of epoch 0, or of a version that knew no other order.
        given = state if isinstance(state, dict) else {"rows": state, "epoch": 0}
        epoch = self._epoch if state is None else given["epoch"]
        tables = self._tables(self._part(shard, epoch), None)
        return _counted(tables, given["rows"] or 0, epoch)

    def _part(self, shard: int, epoch: int = 0) -> datasets.IterableDataset:
        # Not shard(1, 0), which would move the borders of `skip` and `take`.
        part = self._dataset.shard(self.num_shards, shard) if self._by_file else self._dataset
        return copies.copied(
            part, self._first_epoch + epoch, as_tables=self._is_arrow, features=self.features
        )

    def _tables(self, part: datasets.IterableDataset, state: Any) -> Iterator[tuple[pa.Table, Any]]:
        if not self._is_arrow:
            yield from self._encoded(part, state)
            return
        if state is not None:
            part.load_state_dict(state)
        for table in part.iter(self._rows):
            yield table, part.state_dict()

    def _encoded(
        self, part: datasets.IterableDataset, state: Any
    ) -> Iterator[tuple[pa.Table, Any]]:
        before, taken = _resumed(state)
        examples = copies.Examples(part, before)
        for _ in islice(examples, taken):
            pass
        ended = False
        while not ended:
            rows, error = [], None
            try:
                for row in islice(examples, self._rows):
                    rows.append(row)
                ended = len(rows) < self._rows
            except Exception as raised:
                error = raised
            # A step that failed has taken its row already: only the state before them is exact.
            after = None if error else [examples.state(), 0]
            for table in self._encoder.tables(rows):
                taken += len(table)
                rest = len(rows) - len(table)
                yield table, after if after and not rest else [before, taken]
                rows = rows[len(table) :]
            if error is not None:
                raise error
            before, taken = after or (before, taken)

    def label(self, shard: int) -> str:
        if self._files is None or shard >= len(self._files):
            return f"shard {shard}"
        return self._files[shard]


def _resumed(state: Any) -> tuple[dict[str, Any] | None, int]:
    """Returns a state of `datasets` and how many rows to drop after it."""
    if isinstance(state, dict):  # of version 0.1, which had every row converted by `datasets`
        rows = state["examples_iterable"]
        return rows["previous_state"], rows["num_chunks_since_previous_state"]
    return (None, 0) if state is None else tuple(state)


def _counted(
    tables: Iterator[tuple[pa.Table, Any]], rows: int, epoch: int
) -> Iterator[tuple[pa.Table, Any]]:
    """Yields the tables after some rows; the states count rows."""
    seen = 0
    for table, _ in tables:
        seen += len(table)
        if seen > rows:
            new = min(len(table), seen - rows)
            yield table.slice(len(table) - new), {"epoch": epoch, "rows": seen} if epoch else seen
