"""The shards of a Hugging Face split, loaded or at hand."""

from dataclasses import dataclass
from typing import Any

import datasets

from datarax.errors import closest, listed
from datarax.hub.load import load_split
from datarax.hub.network import patiently
from datarax.stream.shards import IterableShards, Shards, TableShards


@dataclass(frozen=True, eq=False)
class SplitShards:
    """The shards of a split, and what is known of where it came from.

    `given` is the dataset of `from_dataset`, None of one that has a name.
    """

    shards: Shards
    info: datasets.DatasetInfo
    revision: str | None = None
    given: Any = None


def load(config: Any) -> SplitShards:
    """Returns the shards of the split that a `HFStreamingConfig` names."""
    split = patiently(
        lambda: load_split(
            config.name,
            config.split,
            config_name=config.config_name,
            data_dir=config.data_dir,
            streaming=config.streaming,
            download_kwargs=config.download_kwargs,
            local_files_only=config.local_files_only,
            timeout=config.timeout,
        )
    )
    length = _known_length(split.dataset.info, config.split)
    shards = shards_of(split.dataset, config, length)
    return SplitShards(shards, split.dataset.info, split.revision)


def _known_length(info: datasets.DatasetInfo, split: str) -> int | None:
    counts = [(info.splits or {}).get(part.strip()) for part in split.split("+")]
    if not all(counts) or not all(count.num_examples for count in counts):
        return None
    return sum(count.num_examples for count in counts)


def shards_of(dataset: Any, config: Any, length: int | None = None) -> Shards:
    """Returns the shards of a dataset's columns that are to be read.

    Args:
        dataset: A `datasets.Dataset` or `datasets.IterableDataset`.
        config: A `HFStreamingConfig`.
        length: The number of rows, None if unknown.

    Raises:
        ValueError: If there are no rows, or no such column.
    """
    dataset = _selected(dataset, config)
    if isinstance(dataset, datasets.Dataset):
        if not len(dataset):
            raise ValueError(f"the split {config.split!r} is empty: there are no rows to read.")
        return TableShards(dataset)
    return IterableShards(dataset, split_files=config.shuffle, length=length)


def _selected(dataset: Any, config: Any) -> Any:
    include, exclude = config.include_keys, config.exclude_keys
    if include is None and not exclude:
        return dataset
    if dataset.features is None:  # a stream of unknown features knows its columns by its first row
        dataset = dataset._resolve_features()
    names = list(dataset.features)
    for name in include or ():
        if name not in names:
            raise ValueError(
                f"there is no column {name!r}.{closest(name, names)} The columns are "
                f"{listed(names)}."
            )
    chosen = [n for n in names if n in (names if include is None else include)]
    chosen = [name for name in chosen if name not in (exclude or ())]
    if not chosen:
        raise ValueError(f"no column is left to read of {listed(names)}.")
    return dataset.select_columns(chosen)
