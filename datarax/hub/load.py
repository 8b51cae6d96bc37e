"""From a name to a `datasets` split: the Hub, its caches, packaged builders, local folders."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datarax.errors import closest, listed
from datarax.hub import builders, cache, client

if TYPE_CHECKING:
    import datasets

# `datasets` takes more than a second to import, so every function imports it when it needs it.

# Arguments of `load_dataset` that a configuration names itself, and as what.
_FIELDS = {"path": "name", "name": "config_name", "split": "split", "data_dir": "data_dir"}
_FIELDS |= {"streaming": "streaming", "local_files_only": "local_files_only"}
# Arguments of `load_dataset` that its builder does not take.
_PREPARE = {"verification_mode", "num_proc"}
_AFTER = _PREPARE | {"save_infos", "keep_in_memory"}
_BOTH = {"download_config", "download_mode", "storage_options"}


@dataclass(frozen=True)
class Split:
    """One split and where it came from.

    Attributes:
        dataset: the rows, as `datasets` gives them.
        name: the resolved repository (`"ylecun/mnist"`), or the folder, file or builder as given.
        revision: the commit of a Hub repository that the rows are of, None for local data.
    """

    dataset: "datasets.Dataset | datasets.IterableDataset"
    name: str
    revision: str | None


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

    Returns:
        The split, the name it was found under and its commit.

    Raises:
        ConnectionError: the Hub cannot be reached.
        FileNotFoundError: there is no such repository, folder or cached copy, or no access to it.
        ValueError: the configuration, the split or a keyword argument does not exist.

    Example:
        >>> load_split("../some/folder", "train").dataset  # doctest: +SKIP
    """
    _need_datasets()
    name, split, kwargs = str(name), str(split), _checked(download_kwargs)
    asked = kwargs.pop("revision", None)
    revision = revision or (None if asked is None else str(asked))
    if (config := kwargs.get("download_config")) is not None:
        kwargs.setdefault("token", config.token)
    options = {"name": config_name, "data_dir": data_dir}
    options |= {key: value for key, value in kwargs.items() if key not in _AFTER}
    place = Path(name).expanduser()

    if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
        return Split(_from_disk(place, split, streaming, kwargs), name, None)
    commit = None
    with client.explained(name), client.bounded(timeout):
        if _is_local(name):
            builder = builders.of_local(name, options, local_files_only or _offline())
        elif local_files_only or _offline():
            name = resolve_name(name, local_files_only=True)
            builder, commit = builders.of_cache(name, options, revision)
        else:
            name, commit = client.resolve(name, revision, kwargs.get("token"))
            builder = builders.of_path(name, name, options | {"revision": commit})
            if builder.hash != commit or builder.name == "cache":
                # `datasets` hides that the Hub went away by reading whatever commit is cached.
                raise ConnectionError(client.unreachable(name))
        rows = _read(builder, name, split, streaming, kwargs)
        if commit and not streaming and builder.name != "cache":
            cache.note(builder.cache_dir, options)
    return Split(rows, name, commit)


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
    _need_datasets()
    if _is_local(name):
        return name
    if not (local_files_only or _offline()):
        with client.explained(name), client.bounded(timeout):
            return client.resolve(name, None, token)[0]
    name = name.removeprefix("hf://datasets/")
    found = [name] if "/" in name else cache.repositories(name)
    if not found:
        raise FileNotFoundError(client.not_cached(name))
    if len(found) > 1:
        raise ValueError(f"The cache has {listed(found)} for {name!r}: write name={found[0]!r}.")
    return found[0]


# Names and keyword arguments.


def _need_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError("Loading data sets needs the package: pip install datasets") from error


def _offline() -> bool:
    import datasets
    import huggingface_hub

    return huggingface_hub.constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE


def _is_local(name: str) -> bool:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as packaged

    if name in packaged or Path(name).expanduser().exists():
        return True
    if name.startswith((".", "/", "~")) or name.removeprefix("hf://datasets/").count("/") > 1:
        raise FileNotFoundError(f"There is no file or folder {Path(name).expanduser().absolute()}.")
    return False


def _checked(download_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    import datasets
    from datasets.load import import_main_class
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as packaged

    kwargs = dict(download_kwargs or {})
    # Scripts are gone from `datasets`, and with them what this switch allowed.
    kwargs.pop("trust_remote_code", None)
    for key in kwargs.keys() & _FIELDS.keys():
        raise ValueError(f"download_kwargs[{key!r}]: write {_FIELDS[key]}=... beside it instead.")
    known = inspect.signature(datasets.load_dataset).parameters.keys()
    known = sorted(known - _FIELDS.keys() - {"config_kwargs"})
    for key in kwargs.keys() - known:
        configs = (import_main_class(path).BUILDER_CONFIG_CLASS for path, _ in packaged.values())
        if not any(key in inspect.signature(config).parameters for config in configs):
            raise ValueError(
                f"download_kwargs has no {key!r}.{closest(key, known)} There are {listed(known)}, "
                "and what the builder of the files takes (sep of csv, columns of parquet)."
            )
    return kwargs


# Rows.


def _read(builder, name: str, split: str, streaming: bool, kwargs: Mapping[str, Any]):
    known = getattr(builder.config, "data_files", None) or builder.info.splits or ()
    _check_split(name, split, [str(key) for key in known])
    if streaming:
        if "[" in split:
            raise ValueError(
                f"A stream has no slice {split!r}: write split={split.partition('[')[0]!r}, or "
                "streaming=False."
            )
        return builder.as_streaming_dataset(split=split)
    prepare = {key: value for key, value in kwargs.items() if key in _PREPARE | _BOTH}
    if kwargs.get("save_infos"):
        prepare["verification_mode"] = "all_checks"
    builder.download_and_prepare(**prepare)
    lengths = {key: known.num_examples for key, known in (builder.info.splits or {}).items()}
    _check_slice(name, split, lengths)
    return builder.as_dataset(split=split, in_memory=bool(kwargs.get("keep_in_memory")))


def _from_disk(place: Path, split: str, streaming: bool, kwargs: Mapping[str, Any]):
    import datasets

    options = {key: kwargs.get(key) for key in ("keep_in_memory", "storage_options")}
    saved = datasets.load_from_disk(str(place), **options)
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or split.partition("[")[0]): saved}
    _check_split(str(place), split, list(saved))
    lengths = {key: len(rows) for key, rows in saved.items()}
    _check_slice(str(place), split, lengths)
    spec = "+".join(saved) if split == "all" else split
    slices = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    parts = [saved[at.splitname].select(range(at.from_, at.to)) for at in slices]
    rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return rows.to_iterable_dataset() if streaming else rows


def _check_slice(name: str, split: str, lengths: Mapping[str, int]) -> None:
    """Raises where a slice is none or has no rows; of a whole split the columns' loading tells."""
    import datasets

    if "[" not in split:
        return
    there = ", ".join(f"{key!r} has {length} rows" for key, length in lengths.items())
    line = 'Write such as split="train[:10%]" or split="train[100:200]".'
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{name!r} has no slice {split!r} ({error}): {there}. {line}") from error
    if not any(part.to > part.from_ for part in parts):
        raise ValueError(f"The slice {split!r} of {name!r} is empty: {there}. {line}")


def _check_split(name: str, split: str, known: list[str]) -> None:
    for part in split.split("+"):
        wanted = part.partition("[")[0].strip()
        if known and wanted not in (*known, "all"):
            near = closest(wanted, known) or f" Write split={known[0]!r}."
            raise ValueError(f"{name!r} has no split {wanted!r}. There are {listed(known)}.{near}")
