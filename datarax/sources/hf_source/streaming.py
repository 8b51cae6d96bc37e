"""Hugging Face datasets as streams: read on demand, resumed exactly."""

import dataclasses
import functools
from logging import getLogger
from typing import Any

import datasets
from flax import nnx

from datarax.errors import chosen
from datarax.hub.explained import explained
from datarax.sources.hf_source import split as splits
from datarax.sources.hf_source.config import HFStreamingConfig
from datarax.sources.hf_source.split import HFSource, LoadedSplit, fields_of
from datarax.sources.module import expect_config
from datarax.sources.streaming import StreamingSourceBase
from datarax.stream.copies import column_names
from datarax.stream.iterable import IterableShards
from datarax.stream.shards import Shards, TableShards

_HUB_TIMEOUT = 120.0

logger = getLogger("datarax.sources.hf_source")


@dataclasses.dataclass(frozen=True, eq=False)
class _Loaded:
    """A split, and the shards of its columns that are read."""

    split: LoadedSplit
    shards: Shards


class HFStreamingSource(HFSource, StreamingSourceBase):
    """A Hugging Face split, or an `IterableDataset`, that is read on demand and resumed exactly.

    Rows come in Arrow batches. What a column is, an array or a host column of Python objects, its
    first rows decide, as `HFEagerSource` decides by all; a later row that does not fit is an error
    that names it. Interrupted reading is taken up again where it was.

    Args:
        config: A `HFStreamingConfig`.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages; `HFStreamingSource(dataset:split)` where None.

    Raises:
        FileNotFoundError: If the dataset does not exist, or is private.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the split, the configuration or a column does not exist, or the split is
            empty.

    Example:
        >>> dataset = datasets.Dataset.from_dict({"x": [1.0, 2.0, 3.0]})
        >>> source = HFStreamingSource.from_dataset(dataset, shuffle=True, seed=0)
        >>> source.get_batch(2)["x"].shape
        (2,)
    """

    config: HFStreamingConfig

    def __init__(
        self,
        config: HFStreamingConfig,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        _loaded: _Loaded | None = None,
    ):
        expect_config(config, HFStreamingConfig, self)
        loaded = _load(config) if _loaded is None else _loaded
        split, timeout = loaded.split, config.timeout
        if timeout is None and config.streaming and split.revision is not None:
            timeout = _HUB_TIMEOUT
        super().__init__(
            config,
            loaded.shards,
            shuffle=config.shuffle,
            seed=config.seed,
            shuffle_buffer_size=config.shuffle_buffer_size,
            on_bad_rows=config.on_bad_rows,
            timeout=timeout,
            transform=config.transform,
            num_threads=config.num_threads,
            revision=split.revision,
            rngs=rngs,
            name=name or f"{type(self).__name__}({config.name}:{config.split})",
        )
        self._loaded, self._split = nnx.static(loaded), nnx.static(split)

    @classmethod
    def from_dataset(
        cls,
        ds: "datasets.Dataset | datasets.IterableDataset",
        *,
        shuffle: bool = False,
        seed: int = 42,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        **fields: Any,
    ) -> "HFStreamingSource":
        """Makes a source of a dataset at hand, mapped or filtered in any way.

        Args:
            ds: An `IterableDataset`, or a `Dataset`, which is read from where it is.
            shuffle: Whether each epoch has its own random order, within `shuffle_buffer_size` rows.
            seed: Seed of the order, from 0 to 2**32 - 1.
            rngs: Random streams that the source keeps.
            name: A name for messages.
            **fields: Other fields of `HFStreamingConfig`, such as `shuffle_buffer_size`.

        Raises:
            TypeError: If `ds` is neither.

        Example:
            >>> stream = datasets.Dataset.from_dict({"x": range(4)}).to_iterable_dataset()
            >>> source = HFStreamingSource.from_dataset(stream.map(lambda row: {"y": 2 * row["x"]}))
            >>> source.get_batch(4)["y"].tolist()
            [0, 2, 4, 6]
        """
        kinds = (datasets.IterableDataset, datasets.Dataset)
        fields = fields_of(ds, kinds, fields | {"shuffle": shuffle, "seed": seed})
        fields.setdefault("streaming", isinstance(ds, datasets.IterableDataset))
        config = HFStreamingConfig(**fields)
        loaded = _Loaded(LoadedSplit(ds, given=True), shards_of(ds, config))
        return cls(config, rngs=rngs, name=name, _loaded=loaded)

    # --- what the configuration says -------------------------------------------------------------

    @property
    def is_iterable_mode(self) -> bool:
        """Whether the files are read where they are, as configured."""
        return self.config.streaming

    @property
    def random_order_buffer_depth(self) -> int:
        """How many rows are shuffled together, as configured."""
        return self.config.shuffle_buffer_size

    @property
    def selected_keys(self) -> set[str] | None:
        """The columns to read, as configured."""
        return self.config.include_keys

    @property
    def rejected_keys(self) -> set[str] | None:
        """The columns to leave out, as configured."""
        return self.config.exclude_keys

    def copy(
        self,
        *,
        config: HFStreamingConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> "HFStreamingSource":
        """Returns a source with other arguments, at the start of epoch 0.

        The data is opened again only if `config` differs. Without a `config` the order and the
        statistics are this source's as they are set now.

        Raises:
            TypeError: If `config` is no `HFStreamingConfig`.
        """
        own, config = config is None, self.config if config is None else config
        expect_config(config, HFStreamingConfig, self)
        loaded, split = self._loaded, self._split
        if config != self.config:
            loaded = _Loaded(split, shards_of(split.dataset, config)) if split.given else None
        copy = type(self)(
            config,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None and config == self.config else name,
            _loaded=loaded,
        )
        return self._settings_to(copy) if own else copy


def _load(config: HFStreamingConfig) -> _Loaded:
    split = splits.load(config, streaming=config.streaming, timeout=config.timeout)
    length = _known_length(split.dataset.info, config.split or "")
    return _Loaded(split, shards_of(split.dataset, config, length))


def _known_length(info: datasets.DatasetInfo, split: str) -> int | None:
    counts = [(info.splits or {}).get(part.strip()) for part in split.split("+")]
    known = [count.num_examples for count in counts if count is not None and count.num_examples]
    return sum(known) if len(known) == len(counts) else None


def shards_of(dataset: Any, config: Any, length: int | None = None) -> Shards:
    """Returns the shards of a dataset's columns that are to be read.

    Args:
        dataset: A `datasets.Dataset` or `datasets.IterableDataset`.
        config: A `HFStreamingConfig`.
        length: The number of rows, None if unknown.

    Raises:
        ValueError: If there are no rows, or no such column.
    """
    columns = None
    if config.include_keys is not None or config.exclude_keys:
        with explained(config.name):
            names = column_names(dataset)
        columns = chosen(names, config.include_keys, config.exclude_keys)
    if isinstance(dataset, datasets.IterableDataset):
        return IterableShards(dataset, columns=columns, split_files=config.shuffle, length=length)
    if not len(dataset):
        raise ValueError(f"The split {config.split!r} is empty: there are no rows to read.")
    table = dataset if columns is None else dataset.select_columns(columns)
    if config.shuffle:
        _note_indexed()
        _note_sorted(table, config.shuffle_buffer_size)
    return TableShards(table)


@functools.cache
def _note_indexed() -> None:
    """Logs a warning, once."""
    logger.warning(
        "The rows are on this machine, and a stream shuffles only shuffle_buffer_size of them "
        "together: HFIndexedSource shuffles globally, and reads the same files."
    )


def _note_sorted(table: datasets.Dataset, window: int) -> None:
    """Logs a warning where the first rows of a table all have one label: a window mixes no more."""
    for name, feature in table.features.items():
        if isinstance(feature, datasets.ClassLabel) and len(table) > window:
            first = table.select_columns(name).with_format("arrow")[:window][name]
            if len(first.unique()) == 1:
                logger.warning(
                    "The first %d rows all have one label (%r), and shuffle_buffer_size=%d mixes "
                    "no more: batches will hold few classes. Shuffle the dataset first, "
                    "ds = ds.shuffle(seed=0), set shuffle_buffer_size=%d, or use HFEagerSource.",
                    *(window, name, window, len(table)),
                )
