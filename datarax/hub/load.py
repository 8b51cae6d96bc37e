"""From a name to a `datasets` split: the Hub, its caches, packaged builders, local folders."""

import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub
from datasets import config

from datarax.errors import closest, listed
from datarax.hub import builders, cache, client, parquet, splits
from datarax.hub.explained import explained
from datarax.hub.private import builder_configs, keep_apart
from datarax.hub.secrets import redact_logs
from datarax.hub.size import Size, files_are_here, size_of

# Arguments of `load_dataset` that a configuration names itself, and as what.
_FIELDS = {"path": "name", "name": "config_name", "split": "split", "data_dir": "data_dir"}
_FIELDS |= {"streaming": "streaming", "local_files_only": "local_files_only"}


@dataclass(frozen=True)
class Split:
    """One split and where it came from.

    Attributes:
        dataset: the rows, as `datasets` gives them.
        name: the resolved repository (`"ylecun/mnist"`), or the folder, file or builder as given.
        revision: the commit of a Hub repository that the rows are of, None for local data.
        size: measures a stream by its files, when it is asked.
        here: says, when it is asked, whether the rows of a stream are on this machine: as local
            files, prepared, or in the Hub's cache.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    name: str
    revision: str | None
    size: Callable[[], Size] = Size
    here: Callable[[], bool] = lambda: True


def load_split(
    name: str,
    split: str,
    *,
    config_name: str | None = None,
    data_dir: str | None = None,
    streaming: bool = False,
    download_kwargs: Mapping[str, Any] | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
    timeout: float | None = None,
    include: Collection[str] | None = None,
    exclude: Collection[str] | None = None,
) -> Split:
    """Loads one split of a Hub repository, a local folder or file, or a packaged builder.

    A repository's revision is resolved to its commit once, and only that commit is read.

    Args:
        name: a repository (`"ylecun/mnist"`, or the short `"mnist"`), a folder of data files, a
            folder that `save_to_disk` wrote, a data file, or a builder (`"parquet"`) whose files
            `download_kwargs={"data_files": ...}` names.
        split: `"train"`, a slice of it (`"train[:10%]"`), or a sum (`"train+test"`).
        config_name: which configuration of the repository (`"sst2"` of `"glue"`).
        data_dir: the folder within the repository or the local folder to read.
        streaming: read rows on demand, as a `datasets.IterableDataset`.
        download_kwargs: further keyword arguments of `datasets.load_dataset`.
        local_files_only: read the caches and local files only; nothing is asked of the network.
        revision: a branch, a tag or a commit; goes before the one in `download_kwargs`.
        timeout: seconds that a silent Hub is waited for, in each request made here; as
            `HF_HUB_DOWNLOAD_TIMEOUT` says (10 s) when None. So do a stream's later reads.
        include: the columns to read of Parquet and of local CSV files: the others are not looked
            at. Rows of other files come whole.
        exclude: columns not to read of such files.

    Returns:
        The split, the name it was found under and its commit.

    Raises:
        ConnectionError: the Hub cannot be reached.
        FileNotFoundError: there is no such repository, folder or cached copy, or no access to it.
        ValueError: the configuration, the split or a keyword argument does not exist.

    Example:
        >>> load_split("../some/folder", "train").dataset  # doctest: +SKIP
    """
    name, split = builders.without_address(str(name)), str(split)
    kwargs = _plain(_checked(download_kwargs))
    data_dir = None if data_dir is None else str(data_dir)
    asked = kwargs.pop("revision", None)
    revision = revision or (None if asked is None else str(asked))
    if (download := kwargs.get("download_config")) is not None:
        kwargs.setdefault("token", download.token)
    options = {"name": config_name, "data_dir": data_dir}
    options |= {key: value for key, value in kwargs.items() if key not in splits.AFTER}
    place = Path(name).expanduser()
    redact_logs()

    if splits.is_saved(place):
        saved = splits.of_saved(place, split, kwargs)
        size = functools.partial(Size, len(saved))
        return Split(saved.to_iterable_dataset() if streaming else saved, name, None, size)
    offline = local_files_only or _offline()
    narrower = {"columns": {"include": sorted(include or ()), "exclude": sorted(exclude or ())}}
    with explained(name), client.bounded(timeout), cache.writable(options) as prepared:
        if builders.is_local(name):
            builder, commit = builders.of_local(name, options, offline), None
        elif offline:
            asked = (options, options | narrower)
            builder, name, commit = builders.of_cache(name, asked, revision)
        else:
            builder, name, commit = builders.of_hub(name, options, revision)
        if "features" not in kwargs:
            parquet.note_other_names(builder, name)
        if streaming:
            parquet.narrow(builder, include, exclude)
            size = functools.partial(size_of, builder, split)
            here = functools.partial(
                _lies_here, builder, name, (options, options | narrower), commit
            )
            return Split(splits.of_stream(builder, name, split), name, commit, size, here)
        prepared(builder)
        if not splits.is_prepared(builder) and parquet.narrow(builder, include, exclude):
            options |= narrower
            keep_apart(builder, json.dumps(narrower))
        rows = splits.of_builder(builder, name, split, kwargs)
        if commit and builder.name != "cache":
            cache.note(builder.cache_dir, options)
    return Split(rows, name, commit)


def _lies_here(
    builder: Any, name: str, asked: tuple[dict[str, Any], ...], commit: str | None
) -> bool:
    if splits.is_prepared(builder) or files_are_here(builder):
        return True
    try:
        return commit is not None and bool(builders.of_cache(name, asked, commit))
    except (FileNotFoundError, ValueError):  # no copy, or one of another configuration
        return False


def resolve_name(
    name: str,
    *,
    token: str | bool | None = None,
    local_files_only: bool = False,
    timeout: float | None = None,
) -> str:
    """Gives the repository that a name stands for (`"mnist"` is `"ylecun/mnist"`).

    Args:
        name: as for `load_split`; a local path or a packaged builder stands for itself.
        token: the Hub token to ask with; the stored one when None.
        local_files_only: look in the caches instead of asking the Hub.
        timeout: seconds that a silent Hub is waited for.

    Returns:
        `namespace/name`, or `name` itself where it is local.

    Raises:
        ConnectionError: the Hub cannot be reached.
        FileNotFoundError: there is no such repository, or no cached copy of it.
        ValueError: the caches hold several repositories of this name.

    Example:
        >>> resolve_name("parquet")
        'parquet'
    """
    name = builders.without_address(str(name))
    if builders.is_local(name):
        return name
    if local_files_only or _offline():
        return cache.full_name(name)
    with explained(name), client.bounded(timeout):
        return client.ask(name, None, token).id


def _plain(value: Any) -> Any:
    """Returns keyword arguments with strings for paths, which `datasets` takes apart."""
    if type(value) is dict:  # not `datasets.Features`, which is one too
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


def _offline() -> bool:
    return huggingface_hub.constants.HF_HUB_OFFLINE or config.HF_HUB_OFFLINE


def _checked(download_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    kwargs = dict(download_kwargs or {})
    # Scripts are gone from `datasets`, and with them what this switch allowed.
    kwargs.pop("trust_remote_code", None)
    for key in kwargs.keys() & _FIELDS.keys():
        raise ValueError(f"download_kwargs[{key!r}]: write {_FIELDS[key]}=... beside it instead.")
    known = inspect.signature(datasets.load_dataset).parameters.keys()
    known = sorted(known - _FIELDS.keys() - {"config_kwargs"})
    for key in kwargs.keys() - known:
        if not any(key in inspect.signature(config).parameters for config in builder_configs()):
            raise ValueError(
                f"download_kwargs has no {key!r}.{closest(key, known)} There are {listed(known)}, "
                "and what the builder of the files takes (sep of csv, columns of parquet)."
            )
    return kwargs
