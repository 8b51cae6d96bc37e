"""Hugging Face datasets as sources: rows by their number, read from disk batch by batch."""

import dataclasses
from typing import Any, ClassVar

import datasets
import jax
import numpy as np
from flax import nnx

from datarax.columns.fingerprint import fingerprint_dataset
from datarax.columns.load import chosen_features
from datarax.columns.row_reader import RowReader
from datarax.columns.rows import ReadRows, parted
from datarax.columns.transformed import TransformedRows
from datarax.sources.hf_source import split as splits
from datarax.sources.hf_source.config import HFIndexedConfig
from datarax.sources.hf_source.split import HFByNumber, LoadedSplit, fields_of
from datarax.sources.indexed import IndexedSourceBase
from datarax.sources.module import expect_config


@dataclasses.dataclass(frozen=True, eq=False)
class _Loaded:
    """A split, and what reads its rows."""

    split: LoadedSplit
    rows: RowReader | TransformedRows
    length: int
    features: datasets.Features
    fingerprint: str


class HFIndexedSource(HFByNumber, IndexedSourceBase):
    """A Hugging Face split whose rows are read by number, for data of any size.

    It gives the batches of a `HFEagerSource` of the same data, bit for bit, has its order, its
    fingerprint and its views, and restores its states. Arrow files are mapped; images of one size
    are decoded once into the cache of decoded images and mapped from there, others are decoded when
    they are asked for. In memory are the rows of a few batches, whatever the length.

    Args:
        config: A `HFIndexedConfig`.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages; `HFIndexedSource(dataset:split)` where None.

    Raises:
        FileNotFoundError: If the dataset does not exist, or is private.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the split, the configuration or a column does not exist, the split is empty,
            or an image is known to be damaged.

    Example:
        >>> dataset = datasets.Dataset.from_dict({"x": [1.0, 2.0, 3.0], "text": ["a", "b", "c"]})
        >>> source = HFIndexedSource.from_dataset(dataset, shuffle=True, seed=0)
        >>> eager = HFEagerSource.from_dataset(dataset, shuffle=True, seed=0)
        >>> source.get_state() == eager.get_state()
        True
        >>> (source.get_batch(2)["x"] == eager.get_batch(2)["x"]).all().item()
        True
    """

    config: HFIndexedConfig
    config_kind: ClassVar[type] = HFIndexedConfig

    def __init__(
        self,
        config: HFIndexedConfig,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        _loaded: _Loaded | None = None,
    ):
        expect_config(config, HFIndexedConfig, self)
        loaded = _load(splits.load(config, streaming=False), config) if _loaded is None else _loaded
        self._loaded, self._split = nnx.static(loaded), nnx.static(loaded.split)
        super().__init__(
            config,
            shuffle=config.shuffle,
            seed=config.seed,
            fingerprint=loaded.fingerprint,
            revision=loaded.split.revision,
            rngs=rngs,
            name=name or f"{type(self).__name__}({config.name}:{config.split})",
        )

    @classmethod
    def from_dataset(
        cls,
        ds: datasets.Dataset,
        *,
        shuffle: bool = False,
        seed: int = 42,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        **fields: Any,
    ) -> "HFIndexedSource":
        """Makes a source of a dataset that is already loaded, mapped or filtered.

        Args:
            ds: A `datasets.Dataset`.
            shuffle: Whether each epoch has its own random order.
            seed: Seed of the order, from 0 to 2**32 - 1.
            rngs: Random streams that the source keeps.
            name: A name for messages.
            **fields: Other fields of `HFIndexedConfig`, such as `include_keys`.

        Raises:
            TypeError: If `ds` is no `datasets.Dataset`.
            ValueError: As the constructor.

        Example:
            >>> dataset = datasets.Dataset.from_dict({"x": [1, 2]})
            >>> len(HFIndexedSource.from_dataset(dataset))
            2
        """
        fields |= {"shuffle": shuffle, "seed": seed}
        config = HFIndexedConfig(**fields_of(ds, (datasets.Dataset,), fields))
        return cls(config, rngs=rngs, name=name, _loaded=_load(LoadedSplit(ds, given=True), config))

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._loaded.length

    def read_rows(self, indices: np.ndarray) -> dict[str, Any]:
        """Returns some rows: arrays of shape `(k, ...)`, and object arrays of host columns."""
        return self._read(indices, self.seed).columns

    def collect_to_array(self, sharding: jax.sharding.Sharding | None = None) -> dict[str, Any]:
        """Returns all array columns in stored order, placed as `sharding` says.

        They must fit into memory: what an indexed source is for is not to do this.

        Args:
            sharding: Where to place them; None: the default device.
        """
        columns, _ = parted(self.host_rows(self.stored_records(np.arange(self.length))))
        return jax.device_put(columns, sharding)

    # --- parts -----------------------------------------------------------------------------------

    def _first_row(self) -> dict[str, Any]:
        return self._loaded.rows.empty

    def _read(self, records: np.ndarray, seed: int) -> ReadRows:
        return self._loaded.rows.read(records, seed=seed)

    def _part(self, name: str, records: np.ndarray) -> np.ndarray:
        return self._loaded.rows.read(records, {name}).columns[name]


def _load(split: LoadedSplit, config: HFIndexedConfig) -> _Loaded:
    dataset = split.dataset
    assert isinstance(dataset, datasets.Dataset)  # it was loaded with streaming=False
    stored = features = chosen_features(dataset, config.include_keys, config.exclude_keys)
    options: dict[str, Any] = {
        "on_bad_rows": config.on_bad_rows,
        "num_threads": config.num_threads,
    }
    if config.transform is None:
        rows = RowReader(dataset, stored, **options)
    else:
        options |= {"include": stored, "timeout": config.timeout}
        rows = TransformedRows(dataset, config.transform, **options)
        features = rows.features
    fingerprint = fingerprint_dataset(dataset, stored, rows.trim)
    return _Loaded(split, rows, len(dataset), features, fingerprint)
