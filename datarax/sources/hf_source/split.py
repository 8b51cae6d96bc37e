"""The half that both Hugging Face sources share: a split, and where it came from."""

import dataclasses
from typing import Any

import datasets

from datarax.hub.load import load_split
from datarax.hub.network import patiently
from datarax.sources.hf_source.config import HFEagerConfig, HFStreamingConfig


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
    config: HFEagerConfig | HFStreamingConfig, *, streaming: bool, timeout: float | None = None
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
    """What both sources say of the split that they read."""

    config: HFEagerConfig | HFStreamingConfig
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
