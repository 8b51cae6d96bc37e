"""Shards of a `datasets.IterableDataset`: all private names of its iterables are in this file."""

import copy
from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa

from datarax.hub.private import require_decoding
from datarax.stream.shards import READ_ROWS

READ_FILES = 1024  # rows per read with images or audio: about 100 MB a shard (8,192 would be 1 GB)
READ_EXAMPLES = 64  # rows per read where Python makes them: each takes long, and none should wait
_LONGEST = 1024  # shards that files are split into at most, since each is opened anew


class IterableShards:
    """The data sources (files, mostly) of a `datasets.IterableDataset`.

    Steps that look across the borders of files (`take`, `interleave_datasets`, ...) leave one
    shard. A state is `datasets`' own where that is exact, and otherwise the number of rows read,
    which are read again and dropped.

    Args:
        dataset: The dataset.
        split_files: Whether the order of rows may differ from that of the dataset: then a few
            Parquet files are read by row groups, and a batched `map` gets its batches file by file.
        length: The number of rows, None if unknown.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        *,
        split_files: bool = False,
        length: int | None = None,
    ):
        steps = _steps(dataset._ex_iterable)
        whole = all(_is_by_file(step, split_files) for step in steps)
        if whole and split_files and dataset.num_shards < 8:
            finer = dataset.reshard()
            dataset = finer if finer.num_shards <= _LONGEST else dataset
        self._files = _files(_steps(dataset._ex_iterable)[-1]) if whole else None
        self._dataset, self._by_file = dataset.with_format("arrow"), whole
        self._counted = any(map(_inexact, steps))
        self._rows = READ_EXAMPLES
        if dataset._ex_iterable.iter_arrow:
            files = any(map(require_decoding, (dataset.features or {}).values()))
            self._rows = READ_FILES if files else READ_ROWS
        self.features = dataset.features
        self.num_shards = dataset.num_shards if whole else 1
        self.length = length

    def open(self, shard: int, state: Any) -> Iterator[tuple[pa.Table, Any]]:
        part = self._part(shard)
        if self._counted:
            yield from _counted(part.iter(self._rows), state or 0)
            return
        if state is not None:
            part.load_state_dict(state)
        for table in part.iter(self._rows):
            yield table, part.state_dict()

    def _part(self, shard: int) -> datasets.IterableDataset:
        if self._by_file:
            return self._dataset.shard(self.num_shards, shard)
        # Not shard(1, 0), which moves the borders of `skip` and `take`; but a copy in any case: the
        # iterables within keep their position in themselves.
        part = copy.copy(self._dataset)
        part._ex_iterable = _copied(part._ex_iterable)
        return part

    def label(self, shard: int) -> str:
        if self._files is None or shard >= len(self._files):
            return f"shard {shard}"
        return self._files[shard]


# Steps of `datasets` that give the same rows file by file, in the order of the files.
_BY_FILE = {
    "ExamplesIterable",
    "ArrowExamplesIterable",
    "SelectColumnsIterable",
    "RebatchedArrowExamplesIterable",
    "FormattedExamplesIterable",
    "MappedExamplesIterable",
    "FilteredExamplesIterable",
}


def _is_by_file(step: Any, reorders: bool) -> bool:
    batched = getattr(step, "batched", False) and type(step).__name__ == "MappedExamplesIterable"
    return type(step).__name__ in _BY_FILE and (reorders or not batched)


def _copied(iterable: Any) -> Any:
    iterable = copy.copy(iterable)
    if hasattr(iterable, "ex_iterable"):
        iterable.ex_iterable = _copied(iterable.ex_iterable)
    if hasattr(iterable, "ex_iterables"):
        iterable.ex_iterables = [_copied(inner) for inner in iterable.ex_iterables]
    return iterable


def _steps(iterable: Any) -> list[Any]:
    """Returns an iterable of `datasets` and all those within it, the sources last."""
    inner = getattr(iterable, "ex_iterables", None) or [getattr(iterable, "ex_iterable", None)]
    return [iterable, *(step for other in inner if other is not None for step in _steps(other))]


def _inexact(step: Any) -> bool:
    """Returns whether `datasets` says of a step that it resumes elsewhere than it stopped."""
    formatting = getattr(step, "formatting", None)
    mapped = type(step).__name__ in ("MappedExamplesIterable", "FilteredExamplesIterable")
    return type(step).__name__ == "BufferShuffledExamplesIterable" or bool(
        mapped and formatting and formatting.is_table
    )


def _files(source: Any) -> list[str] | None:
    """Returns the file of each shard, with its row group, where the shards are files."""
    kwargs = getattr(source, "kwargs", {})
    files = next((kwargs[key] for key in ("files", "filepaths", "base_files") if key in kwargs), ())
    groups = kwargs.get("row_groups_list") or [None] * len(files)
    if not files or not all(isinstance(file, str) for file in files):
        return None
    return [
        file if group is None else f"{file} (row group {', '.join(map(str, group))})"
        for file, group in zip(files, groups, strict=False)
    ]


def _counted(tables: Iterator[pa.Table], state: int) -> Iterator[tuple[pa.Table, int]]:
    seen = 0
    for table in tables:
        seen += len(table)
        if seen > state:
            new = min(len(table), seen - state)
            yield table.slice(len(table) - new), seen
