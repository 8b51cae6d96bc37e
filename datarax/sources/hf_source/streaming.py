"""Hugging Face datasets as streams: read on demand, resumed exactly."""

import dataclasses
from typing import Any

import datasets
from flax import nnx

from datarax.errors import expect_between
from datarax.module import expect_config
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.eager import SourceConfigBase
from datarax.sources.hf_source import splitshards
from datarax.sources.hf_source.splitshards import SplitShards, shards_of
from datarax.sources.streaming import StreamingSourceBase

_HUB_TIMEOUT = 120.0


@dataclasses.dataclass(frozen=True)
class HFStreamingConfig(SourceConfigBase):
    """Configuration of `HFStreamingSource`.

    Args:
        name: A dataset of the Hub (`"allenai/c4"`, or short `"c4"`), a local folder or a packaged
            builder such as `"parquet"`.
        split: A split, as `"train"`; a slice of it (`"train[:10%]"`) only with `streaming=False`.
        data_dir: Folder of the dataset's files.
        include_keys: The columns to read; None for all.
        exclude_keys: Columns to leave out; one that does not exist is no error.
        streaming: Whether to read the files where they are, without loading them first. Otherwise
            the split is loaded to this machine's disk and read from there.
        shuffle: Whether each epoch has its own random order.
        shuffle_buffer_size: How many rows are shuffled together, of several files.
        download_kwargs: Further arguments of `datasets.load_dataset`, such as `revision`, `token`.
        local_files_only: Whether to read only what is on this machine.
        config_name: The dataset's configuration, the Hub's "subset" (`"en"` of `"c4"`).
        seed: Seed of the order, from 0 to 2**32 - 1.
        on_bad_rows: `"raise"` for an image that cannot be decoded or a file that cannot be read to
            its end, or `"skip"` the row, or the rest of the file.
        timeout: Seconds without a row after which reading is an error; None: 120 for a dataset of
            the Hub, no limit for local files.

    Raises:
        ValueError: If an argument is missing, out of range, or contradicts another.

    Example:
        >>> HFStreamingConfig(name="c4", config_name="en", split="train", streaming=True).seed
        42
    """

    name: str | None = None
    split: str | None = None
    data_dir: str | None = None
    include_keys: set[str] | None = dataclasses.field(default=None, hash=False)
    exclude_keys: set[str] | None = dataclasses.field(default=None, hash=False)
    streaming: bool = False
    shuffle: bool = False
    shuffle_buffer_size: int = 1000
    download_kwargs: dict[str, Any] | None = dataclasses.field(default=None, hash=False)
    local_files_only: bool = False
    config_name: str | None = None
    seed: int = 42
    on_bad_rows: str = "raise"
    timeout: float | None = None

    def __post_init__(self):
        super().__post_init__()
        expect_dataset_fields(self)
        expect_between("shuffle_buffer_size", self.shuffle_buffer_size, 1, MAX_RECORDS)
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout}: expected seconds, more than 0, or None.")


class HFStreamingSource(StreamingSourceBase):
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

    def __init__(
        self,
        config: HFStreamingConfig,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        _read: SplitShards | None = None,
    ):
        expect_config(config, HFStreamingConfig, self)
        read = splitshards.load(config) if _read is None else _read
        timeout = config.timeout
        if timeout is None and config.streaming and read.revision is not None:
            timeout = _HUB_TIMEOUT
        super().__init__(
            config,
            read.shards,
            shuffle=config.shuffle,
            seed=config.seed,
            shuffle_buffer_size=config.shuffle_buffer_size,
            on_bad_rows=config.on_bad_rows,
            timeout=timeout,
            revision=read.revision,
            rngs=rngs,
            name=name or f"{type(self).__name__}({config.name}:{config.split})",
        )
        self._read = nnx.static(read)

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
            shuffle: Whether each epoch has its own random order.
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
        if not isinstance(ds, (datasets.Dataset, datasets.IterableDataset)):
            hint = "; pick a split, as in from_dataset(ds['train'])" * isinstance(ds, dict)
            raise TypeError(
                f"ds is a {type(ds).__name__}: expected a datasets.IterableDataset or a "
                f"datasets.Dataset{hint}."
            )
        fields |= {"shuffle": shuffle, "seed": seed}
        fields.setdefault("name", ds.info.dataset_name or "dataset")
        fields.setdefault("split", str(ds.split or "all"))
        fields.setdefault("streaming", isinstance(ds, datasets.IterableDataset))
        config = HFStreamingConfig(**fields)
        read = SplitShards(shards_of(ds, config), ds.info, given=ds)
        return cls(config, rngs=rngs, name=name, _read=read)

    # --- what the configuration says -------------------------------------------------------------

    @property
    def dataset_name(self) -> str:
        """The dataset's name, as configured."""
        return self.config.name

    @property
    def split_name(self) -> str:
        """The split's name, as configured."""
        return self.config.split

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

    def get_dataset_info(self) -> datasets.DatasetInfo:
        """Returns the dataset's `datasets.DatasetInfo`: description, features, licence."""
        return self._read.info

    def copy(self, *, config=None, rngs=None, name=None) -> "HFStreamingSource":
        """Returns a source with other arguments, at the start of epoch 0.

        The data is opened again only if `config` differs. Without a `config` the order and the
        statistics are this source's as they are set now.

        Raises:
            TypeError: If `config` is no `HFStreamingConfig`.
        """
        own, config = config is None, self.config if config is None else config
        expect_config(config, HFStreamingConfig, self)
        read = self._read
        if config != self.config and read.given is None:
            read = None
        elif config != self.config:
            read = dataclasses.replace(read, shards=shards_of(read.given, config))
        copy = type(self)(
            config,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None and config == self.config else name,
            _read=read,
        )
        return self._settings_to(copy) if own else copy


def expect_dataset_fields(config: Any) -> None:
    """Raises `ValueError` unless the fields that both configurations of a dataset share can be.

    Args:
        config: A `HFEagerConfig` or a `HFStreamingConfig`.
    """
    if not config.name or not config.split:
        raise ValueError(
            f"name={config.name!r}, split={config.split!r}: both are needed, as in "
            f'{type(config).__name__}(name="mnist", split="train").'
        )
    if config.include_keys is not None and config.exclude_keys is not None:
        raise ValueError(
            "include_keys and exclude_keys exclude each other: give the columns to keep, or "
            "those to leave out."
        )
    for name in ("include_keys", "exclude_keys"):
        if isinstance(getattr(config, name), str):  # a set of its letters otherwise
            given = getattr(config, name)
            raise ValueError(f"{name}={given!r}: expected a set of columns, {name}={{{given!r}}}.")
    expect_between("seed", config.seed, 0, 2**32 - 1)
    if config.on_bad_rows not in ("raise", "skip"):
        raise ValueError(f'on_bad_rows={config.on_bad_rows!r}: expected "raise" or "skip".')
