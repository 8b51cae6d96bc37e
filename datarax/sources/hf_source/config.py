"""Configurations of a Hugging Face split: as arrays, by number, or as a stream."""

import dataclasses
from typing import Any, Literal

from datarax.columns.transform import Transform, TransformFunction, takes_rng
from datarax.errors import expect_between
from datarax.hub.secrets import hidden
from datarax.order.permutation import MAX_RECORDS
from datarax.sources.source import SourceConfigBase


class _WithoutSecrets(SourceConfigBase):
    def __repr__(self) -> str:
        fields = (f.name for f in dataclasses.fields(self))
        told = (f"{name}={hidden(getattr(self, name))!r}" for name in fields)
        return f"{type(self).__name__}({', '.join(told)})"


@dataclasses.dataclass(frozen=True, repr=False)
class _ByNumber(_WithoutSecrets):
    """The fields of the sources that give records by number."""

    # Required: `__post_init__` refuses None.
    name: str = None  # pyright: ignore[reportAssignmentType]
    split: str = None  # pyright: ignore[reportAssignmentType]
    data_dir: str | None = None
    include_keys: set[str] | None = dataclasses.field(default=None, hash=False)
    exclude_keys: set[str] | None = dataclasses.field(default=None, hash=False)
    shuffle: bool = False
    seed: int = 42
    download_kwargs: dict[str, Any] | None = dataclasses.field(default=None, hash=False)
    local_files_only: bool = False
    config_name: str | None = None
    on_bad_rows: Literal["raise", "skip"] = "raise"
    transform: TransformFunction | None = dataclasses.field(default=None, hash=False)
    num_threads: int | None = None
    timeout: float | None = None

    def __post_init__(self):
        super().__post_init__()
        expect_dataset_fields(self)


@dataclasses.dataclass(frozen=True, repr=False)
class HFEagerConfig(_ByNumber):
    """Configuration of `HFEagerSource`.

    Args:
        name: A dataset of the Hub (`"ylecun/mnist"`, or short `"mnist"`), a local folder or a
            packaged builder such as `"parquet"`.
        split: A split, as `"train"` or `"train[:10%]"`.
        data_dir: Folder of the dataset's files.
        include_keys: The columns to load; None for all.
        exclude_keys: Columns to leave out; one that does not exist is no error.
        shuffle: Whether each epoch has its own random order: a full permutation.
        seed: Seed of that order, from 0 to 2**32 - 1.
        download_kwargs: Further arguments of `datasets.load_dataset`, such as `revision`, `token`.
        local_files_only: Whether to read only what is on this machine.
        config_name: The dataset's configuration, the Hub's "subset" (`"sst2"` of `"glue"`).
        on_bad_rows: `"raise"` for an image that cannot be decoded, or `"skip"` its row.
        transform: A function `record -> record` that is applied once to each row, while loading;
            see `datarax.transforms`. Several threads call it at once, so it must be thread-safe.
            With `streaming=True` it may be `(record, rng) -> record`, and is applied to each record
            when it is read.
        num_threads: Threads that decode and transform; None for one a core. They change no batch.
        timeout: Seconds that the transform of a record may take; None for no limit.
        streaming: Whether to read on demand: `HFEagerSource(config)` is a `HFStreamingSource` then.
        shuffle_buffer_size: How many rows of a stream are shuffled together, see
            `HFStreamingConfig`; an eager shuffle is a full permutation and needs none.

    Raises:
        ValueError: If an argument is missing, out of range, or contradicts another.

    Example:
        >>> HFEagerConfig(name="mnist", split="train", shuffle=True).seed
        42
    """

    streaming: bool = False
    shuffle_buffer_size: int = 1000

    def __post_init__(self):
        super().__post_init__()
        if not self.streaming and self.transform is not None and takes_rng(self.transform):
            raise ValueError(
                f"The transform {Transform(self.transform).name} draws at random, and an eager "
                "source applies it once: each epoch would see the same draws. Write "
                "HFIndexedSource(HFIndexedConfig(..., transform=...)), which applies it whenever "
                "a record is read, or a transform without rng."
            )


@dataclasses.dataclass(frozen=True, repr=False)
class HFIndexedConfig(_ByNumber):
    """Configuration of `HFIndexedSource`.

    Args:
        name: A dataset of the Hub (`"ylecun/mnist"`, or short `"mnist"`), a local folder or a
            packaged builder such as `"parquet"`.
        split: A split, as `"train"` or `"train[:10%]"`.
        data_dir: Folder of the dataset's files.
        include_keys: The columns to read; None for all.
        exclude_keys: Columns to leave out; one that does not exist is no error.
        shuffle: Whether each epoch has its own random order: a full permutation.
        seed: Seed of that order, from 0 to 2**32 - 1.
        download_kwargs: Further arguments of `datasets.load_dataset`, such as `revision`, `token`.
        local_files_only: Whether to read only what is on this machine.
        config_name: The dataset's configuration, the Hub's "subset" (`"sst2"` of `"glue"`).
        on_bad_rows: `"raise"` for an image that cannot be decoded, or `"skip"`: its record has
            weight 0 in the trainer, is left out of a `for` and of a `Pipeline`'s batches, and
            counts as skipped.
        transform: A function `record -> record` or `(record, rng) -> record` that is applied to
            each record when it is read; see `datarax.transforms`. Several threads call it at once,
            so it must be thread-safe: it changes nothing but its record.
        num_threads: Threads that read, decode and transform; None for one a core. They change no
            batch.
        timeout: Seconds that the transform of a record may take; None for no limit.

    Raises:
        ValueError: If an argument is missing, out of range, or contradicts another.

    Example:
        >>> HFIndexedConfig(name="mnist", split="train", shuffle=True).seed
        42
    """


@dataclasses.dataclass(frozen=True, repr=False)
class HFStreamingConfig(_WithoutSecrets):
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
        shuffle: Whether each epoch has its own random order, within `shuffle_buffer_size` rows.
        shuffle_buffer_size: How many rows are shuffled together, of several files. Rows that are
            sorted stay clustered: IMDB is sorted by label, and with 1,000 its batches of 250 hold 0
            to 77 % positives. Set it to the number of rows, or use a source that shuffles fully.
        download_kwargs: Further arguments of `datasets.load_dataset`, such as `revision`, `token`.
        local_files_only: Whether to read only what is on this machine.
        config_name: The dataset's configuration, the Hub's "subset" (`"en"` of `"c4"`).
        seed: Seed of the order, from 0 to 2**32 - 1.
        on_bad_rows: `"raise"` for an image that cannot be decoded or a file that cannot be read to
            its end, or `"skip"` the row, or the rest of the file.
        timeout: Seconds without a row after which reading is an error, and that the transform of a
            record may take; None: 120 for a dataset of the Hub, no limit for local files.
        transform: A function `record -> record` or `(record, rng) -> record` that is applied to
            each record when it is read; see `datarax.transforms`. Several threads call it at once,
            so it must be thread-safe. The first rows decide the shapes.
        num_threads: Threads that decode and transform; None for one a core. They change no batch.

    Raises:
        ValueError: If an argument is missing, out of range, or contradicts another.

    Example:
        >>> HFStreamingConfig(name="c4", config_name="en", split="train", streaming=True).seed
        42
    """

    # Required: `__post_init__` refuses None.
    name: str = None  # pyright: ignore[reportAssignmentType]
    split: str = None  # pyright: ignore[reportAssignmentType]
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
    on_bad_rows: Literal["raise", "skip"] = "raise"
    timeout: float | None = None
    transform: TransformFunction | None = dataclasses.field(default=None, hash=False)
    num_threads: int | None = None

    def __post_init__(self):
        super().__post_init__()
        expect_dataset_fields(self)
        expect_between("shuffle_buffer_size", self.shuffle_buffer_size, 1, MAX_RECORDS)


def expect_dataset_fields(config: Any) -> None:
    """Raises `ValueError` unless the fields that all configurations of a dataset share can be.

    Args:
        config: A `HFEagerConfig`, `HFIndexedConfig` or `HFStreamingConfig`.
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
    if config.timeout is not None and not config.timeout > 0:
        raise ValueError(f"timeout={config.timeout}: expected seconds, more than 0, or None.")
    if config.transform is not None:
        Transform(config.transform)  # raises TypeError where it cannot be called
    if config.num_threads is not None:
        expect_between("num_threads", config.num_threads, 1, 1024)
