"""Hugging Face datasets as sources: the whole split as arrays on the device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import jax
import numpy as np
from flax import nnx

from datarax.columns.fingerprint import fingerprint_dataset
from datarax.columns.load import Columns, chosen_features, load_columns
from datarax.columns.transformed import TransformedRows
from datarax.sources.eager import EagerSourceBase
from datarax.sources.hf_source import split as splits
from datarax.sources.hf_source.config import HFEagerConfig, HFStreamingConfig
from datarax.sources.hf_source.split import HFByNumber, LoadedSplit, fields_of
from datarax.sources.hf_source.streaming import HFStreamingSource
from datarax.sources.module import expect_config


@dataclasses.dataclass(frozen=True, eq=False)
class _Loaded:
    """The columns of a split.

    Where several processes run, each may need other rows: then `read(rows=...)` loads some or all
    when they are asked for, and `columns` is None.
    """

    split: LoadedSplit
    columns: Columns | None
    read: Callable[..., Columns]
    length: int
    features: datasets.Features
    fingerprint: str

    def all_columns(self) -> dict[str, Any]:
        return self.read().data


class _ChoosesStream(type(nnx.Module)):
    """Makes a stream of a configuration that asks for one.

    It is chosen here and not in `__new__`, after which `__init__` would run a second time.
    """

    def __call__(cls, *args, **kwargs):
        config = args[0] if args else kwargs.get("config")
        if isinstance(config, HFEagerConfig) and config.streaming:
            kwargs.pop("config", None)
            return HFStreamingSource(_streaming(config), *args[1:], **kwargs)
        return super().__call__(*args, **kwargs)


def _streaming(config: HFEagerConfig) -> HFStreamingConfig:
    return HFStreamingConfig(
        **{
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(HFStreamingConfig)
        }
    )


class HFEagerSource(HFByNumber, EagerSourceBase, metaclass=_ChoosesStream):
    """A Hugging Face split as arrays, with any batch of it by arithmetic.

    Numbers, labels, lists of one length and images of one size become JAX arrays in the dtype of
    their features (images `uint8`, labels `int32`); text, lists or images of different sizes,
    nulls, bytes and dates become host columns, which ride along as Python objects.

    Args:
        config: A `HFEagerConfig`.
        rngs: Random streams that the source keeps; they never decide the order.
        name: A name for messages; `HFEagerSource(dataset:split)` where None.

    Raises:
        FileNotFoundError: If the dataset does not exist, or is private.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If the split, the configuration or a column does not exist, the split is
            empty, or an integer does not fit into 32 bits while x64 is off.

    Example:
        >>> dataset = datasets.Dataset.from_dict({"x": [1.0, 2.0, 3.0]})
        >>> source = HFEagerSource.from_dataset(dataset, shuffle=True, seed=0)
        >>> source.get_batch_at(0, 3, jax.random.key(0))["x"].shape
        (3,)
    """

    config: HFEagerConfig
    config_kind: ClassVar[type] = HFEagerConfig

    def __init__(
        self,
        config: HFEagerConfig,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
        _loaded: _Loaded | None = None,
    ):
        expect_config(config, HFEagerConfig, self)
        loaded = _load(splits.load(config, streaming=False), config) if _loaded is None else _loaded
        columns = loaded.columns
        super().__init__(
            config,
            loaded.all_columns if columns is None else columns.data,
            length=loaded.length,
            shuffle=config.shuffle,
            seed=config.seed,
            fingerprint=loaded.fingerprint,
            revision=loaded.split.revision,
            rngs=rngs,
            name=name or f"{type(self).__name__}({config.name}:{config.split})",
        )
        self._loaded, self._split = nnx.static(loaded), nnx.static(loaded.split)
        self._counts.skipped = 0 if columns is None else columns.skipped

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
    ) -> "HFEagerSource":
        """Makes a source of a dataset that is already loaded, mapped or filtered.

        Args:
            ds: A `datasets.Dataset`.
            shuffle: Whether each epoch has its own random order.
            seed: Seed of the order, from 0 to 2**32 - 1.
            rngs: Random streams that the source keeps.
            name: A name for messages.
            **fields: Other fields of `HFEagerConfig`, such as `include_keys`.

        Raises:
            TypeError: If `ds` is no `datasets.Dataset`.
            ValueError: As the constructor.

        Example:
            >>> dataset = datasets.Dataset.from_dict({"x": [1, 2]})
            >>> len(HFEagerSource.from_dataset(dataset))
            2
        """
        fields |= {"shuffle": shuffle, "seed": seed}
        named = fields_of(ds, (datasets.Dataset,), fields)
        if fields.get("streaming"):
            stream: Any = HFStreamingSource.from_dataset(ds, rngs=rngs, name=name, **fields)
            return stream  # as HFEagerSource(config) is one with streaming=True
        config = HFEagerConfig(**named)
        return cls(config, rngs=rngs, name=name, _loaded=_load(LoadedSplit(ds, given=True), config))

    def host_rows(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns some rows as NumPy arrays, read from Arrow where not all are loaded yet."""
        if self._loaded.columns is not None or self._columns:
            return super().host_rows(rows)
        return self._loaded.read(rows=rows).data


def _load(split: LoadedSplit, config: HFEagerConfig) -> _Loaded:
    dataset = split.dataset
    assert isinstance(dataset, datasets.Dataset)  # it was loaded with streaming=False
    features = chosen_features(dataset, config.include_keys, config.exclude_keys)
    fingerprint = fingerprint_dataset(dataset, features)
    options = {
        "include": config.include_keys,
        "exclude": config.exclude_keys,
        "on_bad_rows": config.on_bad_rows,
    }
    if config.transform is None:
        read = functools.partial(load_columns, dataset, **options)
    else:
        limits = {"num_threads": config.num_threads, "timeout": config.timeout}
        rows = TransformedRows(dataset, config.transform, **options, **limits)
        read, features = rows.load, rows.features
    # Which rows are skipped, and so the length, is known only when all are read.
    waits = jax.distributed.is_initialized() and config.on_bad_rows == "raise"
    columns = None if waits else read()
    return _Loaded(
        split=split,
        columns=columns,
        read=read,
        length=len(dataset) if columns is None else columns.length,
        features=features,
        fingerprint=fingerprint,
    )
