"""The half that all Hugging Face sources share: a split, and where it came from."""

import dataclasses
from typing import Any, ClassVar, Self, cast

import datasets
from flax import nnx

from datarax.errors import listed
from datarax.hub.load import load_split
from datarax.hub.network import patiently
from datarax.sources.hf_source.config import HFEagerConfig, HFIndexedConfig, HFStreamingConfig
from datarax.sources.module import expect_config
from datarax.sources.transform_state import note_other_transform, state_with_transform

# The fields that decide which data a configuration names, and who reads them.
_DATA_FIELDS = (
    "name",
    "split",
    "data_dir",
    "include_keys",
    "exclude_keys",
    "download_kwargs",
    "config_name",
    "on_bad_rows",
    "num_threads",
    "transform",
    "timeout",
)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedSplit:
    """A split of a dataset.

    Args:
        dataset: Its rows.
        revision: The commit of the Hub that they were read from, None of other data.
        given: Whether `from_dataset` got the dataset: no configuration loads it again by name.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    revision: str | None = None
    given: bool = False


def load(
    config: HFEagerConfig | HFIndexedConfig | HFStreamingConfig,
    *,
    streaming: bool,
    timeout: float | None = None,
) -> LoadedSplit:
    """Returns the split that a configuration names.

    Args:
        config: The configuration.
        streaming: Whether to read the files where they are.
        timeout: Seconds that a silent Hub is waited for.
    """
    found = patiently(
        lambda: load_split(
            config.name or "",
            config.split or "",
            config_name=config.config_name,
            data_dir=config.data_dir,
            streaming=streaming,
            download_kwargs=config.download_kwargs,
            local_files_only=config.local_files_only,
            timeout=timeout,
            include=config.include_keys,
            exclude=config.exclude_keys,
        )
    )
    return LoadedSplit(found.dataset, found.revision)


def fields_of(ds: Any, kinds: tuple[type, ...], fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration's fields for a dataset at hand, which names itself.

    Args:
        ds: What `from_dataset` was given.
        kinds: The classes of `datasets` that it may be of.
        fields: The fields that the caller set.

    Raises:
        TypeError: If `ds` is of none of the classes.
    """
    if not isinstance(ds, kinds):
        hint = "; pick a split, as in from_dataset(ds['train'])" * isinstance(ds, dict)
        wanted = " or a ".join(f"datasets.{kind.__name__}" for kind in kinds)
        raise TypeError(f"ds is a {type(ds).__name__}: expected a {wanted}{hint}.")
    named = {"name": ds.info.dataset_name or "dataset", "split": str(ds.split or "all")}
    return named | fields


class HFSource:
    """What all sources say of the split that they read."""

    config: HFEagerConfig | HFIndexedConfig | HFStreamingConfig
    _split: LoadedSplit

    @property
    def dataset_name(self) -> str:
        """The dataset's name, as configured."""
        return self.config.name or ""

    @property
    def split_name(self) -> str:
        """The split's name, as configured."""
        return self.config.split or ""

    def get_dataset_info(self) -> datasets.DatasetInfo:
        """Returns the dataset's `datasets.DatasetInfo`: description, features, licence."""
        return self._split.dataset.info


class HFByNumber(HFSource):
    """What the sources share that give a split's records by number: eager and indexed ones."""

    config: HFEagerConfig | HFIndexedConfig
    config_kind: ClassVar[type]
    rngs: nnx.Rngs | None
    name: str | None
    _loaded: Any

    @property
    def include_keys(self) -> set[str] | None:
        """The columns to load, as configured."""
        return self.config.include_keys

    @property
    def exclude_keys(self) -> set[str] | None:
        """The columns to leave out, as configured."""
        return self.config.exclude_keys

    @property
    def features(self) -> datasets.Features:
        """The features of the columns that there are."""
        return self._loaded.features

    def state_at(self, position: Any) -> dict[str, Any]:
        """Returns the state of the source when it stands at `position`; see `Source`."""
        return state_with_transform(cast(Any, super()).state_at(position), self.config.transform)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state; see `RandomAccessSource`. Of another transform, it warns once."""
        cast(Any, super()).set_state(state)
        note_other_transform(state, self.config.transform, cast(Any, self).label)

    def copy(
        self, *, config: Any = None, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> Self:
        """Returns a source with other arguments, at the start of epoch 0.

        The data is loaded again only if `config` names other data. Without a `config` the order and
        the statistics are this source's as they are set now.

        Args:
            config: A configuration of this source's kind; None: this source's.
            rngs: Random streams; None: this source's.
            name: A name for messages; None: this source's, if the configuration is.

        Raises:
            TypeError: If `config` is of another kind.
            ValueError: If it names other data and this source is one of `from_dataset`.
        """
        kind: Any = type(self)
        own, config = config is None, self.config if config is None else config
        expect_config(config, self.config_kind, cast(Any, self))
        other = [f for f in _DATA_FIELDS if _field(config, f) != _field(self.config, f)]
        if self._split.given and other:
            raise ValueError(
                f"{self.name} was made of a dataset at hand, which copy cannot load again with "
                f"another {listed(other)}: write {kind.__name__}.from_dataset(ds, "
                f"{other[0]}={_field(config, other[0])!r})."
            )
        copy = kind(
            config,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None and config == self.config else name,
            # What was loaded is shared, so that columns are placed once for both.
            _loaded=None if other else self._loaded,
        )
        return cast(Any, self)._settings_to(copy) if own else copy


def _field(config: Any, name: str) -> Any:
    return getattr(config, name, None)
