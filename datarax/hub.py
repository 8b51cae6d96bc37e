"""From a name to a `datasets` split: the Hub, its caches, packaged builders, local folders."""

import difflib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

# What a configuration says in its own fields, and so not in `download_kwargs`.
_FIELDS = {"path": "name", "name": "config_name", "split": "split", "data_dir": "data_dir"}
_FIELDS |= {"streaming": "streaming", "local_files_only": "local_files_only"}
_FILES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".txt": "text"}
_FILES |= {".json": "json", ".jsonl": "json"}
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
        timeout: seconds to wait for the Hub's first answer; 10 when None. The reads after it
            wait as long as the environment variable `HF_HUB_DOWNLOAD_TIMEOUT` says.

    Returns:
        The split, the name it was found under and its commit.

    Raises:
        ConnectionError: the Hub cannot be reached.
        FileNotFoundError: there is no such repository, folder or cached copy, or no access to it.
        ValueError: the configuration, the split or a keyword argument does not exist.

    Example:
        >>> load_split("../some/folder", "train").dataset  # doctest: +SKIP
    """
    name, split, kwargs = str(name), str(split), _checked_kwargs(download_kwargs)
    asked = kwargs.pop("revision", None)
    revision = revision or (None if asked is None else str(asked))
    local_files_only = local_files_only or _offline()
    place = Path(name).expanduser()
    with _explained(name):
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            return Split(_from_disk(place, split, streaming, kwargs), name, None)

        options = {"name": config_name, "data_dir": data_dir, **_builder_kwargs(kwargs)}
        commit = None
        if _is_local(name):
            if local_files_only and (remote := _remote_files(kwargs.get("data_files"))):
                raise ValueError(f"local_files_only=True, but data_files names {remote!r}")
            if place.is_file():
                options["data_files"] = str(place)
                name = _FILES[place.suffix.lower()]
            builder = _configured(str(place) if place.exists() else name, options)
        elif local_files_only:
            name = resolve_name(name, local_files_only=True)
            builder, commit = _cached_builder(name, options, revision)
        else:
            name, commit = _resolve(name, revision, kwargs.get("token"), timeout)
            builder = _configured(name, options | {"revision": commit})
            if builder.hash != commit or builder.name == "cache":
                # `datasets` hides that the Hub went away by reading whatever commit is cached.
                raise ConnectionError(_unreachable(name))
        return Split(_read(builder, name, split, streaming, kwargs), name, commit)


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
        timeout: seconds to wait for the Hub's answer.

    Returns:
        `namespace/name`, or `name` itself where it is local.

    Raises:
        ConnectionError: the Hub cannot be reached.
        FileNotFoundError: there is no such repository, or no cached copy of it.

    Example:
        >>> resolve_name("parquet")
        'parquet'
    """
    if _is_local(name):
        return name
    name = name.removeprefix("hf://datasets/")
    if not (local_files_only or _offline()):
        with _explained(name):
            return _resolve(name, None, token, timeout)[0]
    if "/" in name:
        return name
    found = sorted(_cached_namespaces(name))
    if len(found) > 1:
        raise ValueError(f"{name!r} is cached as {', '.join(found)}: write name={found[0]!r}")
    if not found:
        raise FileNotFoundError(_not_cached(name))
    return found[0]


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise ImportError("reading data sets needs `pip install datasets`") from error
    return datasets


def _offline() -> bool:
    import huggingface_hub

    return huggingface_hub.constants.HF_HUB_OFFLINE or _datasets().config.HF_HUB_OFFLINE


def _is_local(name: str) -> bool:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as packaged

    if name in packaged or Path(name).expanduser().exists():
        return True
    repository = name.removeprefix("hf://datasets/")
    if name.startswith((".", "/", "~")) or repository.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(f"there is no file or folder {Path(name).expanduser().absolute()}")
    return False


# The keyword arguments of `load_dataset`.


def _checked_kwargs(download_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as packaged

    kwargs = dict(download_kwargs or {})
    # Scripts are gone from `datasets`, and with them what this switch allowed.
    kwargs.pop("trust_remote_code", None)
    for key in sorted(kwargs.keys() & _FIELDS.keys()):
        raise ValueError(f"download_kwargs[{key!r}]: write {_FIELDS[key]}=... in the configuration")
    known = inspect.signature(_datasets().load_dataset).parameters.keys() - _FIELDS.keys()
    known -= {"config_kwargs"}
    if unknown := sorted(kwargs.keys() - known - _config_keys(packaged)):
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"download_kwargs has no {unknown[0]!r}: {hint}there are {', '.join(sorted(known))}, "
            "and what the files' builder takes (of csv: sep, of parquet: columns)"
        )
    return kwargs


def _config_keys(packaged: Mapping[str, tuple]) -> set[str]:
    from datasets.load import import_main_class

    classes = (import_main_class(module) for module, _ in packaged.values())
    return {
        key for cls in classes for key in inspect.signature(cls.BUILDER_CONFIG_CLASS).parameters
    }


_PREPARE = {"download_mode", "verification_mode", "num_proc", "storage_options", "download_config"}
_LATER = {"verification_mode", "num_proc", "save_infos", "keep_in_memory"}


def _builder_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in _LATER}


def _remote_files(data_files: Any) -> str | None:
    if isinstance(data_files, Mapping):
        data_files = list(data_files.values())
    if isinstance(data_files, list | tuple):
        return next(filter(None, map(_remote_files, data_files)), None)
    return str(data_files) if data_files is not None and "://" in str(data_files) else None


# The Hub.


def _resolve(name: str, revision: str | None, token, timeout: float | None) -> tuple[str, str]:
    import huggingface_hub

    timeout = timeout or huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT
    name = name.removeprefix("hf://datasets/")
    api = huggingface_hub.HfApi(token=token)
    info = api.dataset_info(name, revision=revision, timeout=timeout)
    return info.id, info.sha


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Says what to do about what the Hugging Face libraries raise."""
    import huggingface_hub.errors as hub
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.utils import httpx

    access = (
        "if it is private or gated, ask for access on its page, then `hf auth login` or "
        'download_kwargs={"token": ...}'
    )
    try:
        yield
    except hub.RevisionNotFoundError as error:
        raise DatasetNotFoundError(
            f"{name!r} has no such revision (branch, tag, commit)"
        ) from error
    except hub.GatedRepoError as error:
        raise DatasetNotFoundError(f"{name!r} is gated: {access}") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise DatasetNotFoundError(
            f"{name!r} does not exist at {_endpoint()} or is private: check the name; {access}"
        ) from error
    except DatasetNotFoundError as error:
        raise DatasetNotFoundError(f"{error} {access}") from error
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            text = f"{_endpoint()} refused access to {name!r} ({status}): {access}"
            raise DatasetNotFoundError(text) from error
        raise ConnectionError(f"{_unreachable(name)}: it answered {status}") from error
    except (httpx.RequestError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise ConnectionError(f"{_unreachable(name)}: {type(error).__name__}") from error
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, httpx.RequestError | hub.HfHubHTTPError):
            raise ConnectionError(f"{_unreachable(name)}: {type(cause).__name__}") from error
        text = f"the data files of {name!r} do not make one table: {cause}"
        raise type(error)(text) from error


def _endpoint() -> str:
    import huggingface_hub

    return huggingface_hub.constants.ENDPOINT


def _unreachable(name: str) -> str:
    return (
        f"the Hub at {_endpoint()} could not be reached for {name!r}; a copy in the cache loads "
        "with local_files_only=True, a local folder with name='path/to/folder'"
    )


# The caches.


def _not_cached(name: str) -> str:
    return (
        f"{name!r} is not in the cache, and local_files_only=True (or HF_HUB_OFFLINE=1) asks "
        "nothing of the network: load it once without, or run "
        f"`hf download --repo-type dataset {name}`"
    )


def _hub_cache() -> Path:
    import huggingface_hub

    return Path(huggingface_hub.constants.HF_HUB_CACHE).expanduser()


def _snake(name: str) -> str:
    from datasets.naming import camelcase_to_snakecase

    return camelcase_to_snakecase(name)


def _cached_namespaces(name: str) -> set[str]:
    """The repositories `*/name` that a cache holds; a folder without namespace is local data."""
    raw = (path.name.split("--") for path in _hub_cache().glob("datasets--*--*"))
    found = {f"{parts[1]}/{parts[2]}" for parts in raw if parts[2:] == [name]}
    built = Path(_datasets().config.HF_DATASETS_CACHE).glob(f"*___{_snake(name)}")
    return found | {f"{path.name.split('___')[0]}/{name}" for path in built}


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision meant when it was last downloaded."""
    if revision is None or _COMMIT.fullmatch(revision):
        return revision
    ref = _hub_cache() / f"datasets--{name.replace('/', '--')}" / "refs" / revision
    if not ref.is_file():
        raise FileNotFoundError(f"revision {revision!r}: {_not_cached(name)}")
    return ref.read_text().strip()


def _cached_builder(name: str, options: dict[str, Any], revision: str | None):
    """The builder of the newest cached copy, and its commit."""
    commit = _cached_commit(name, revision)
    if not any(value for key, value in options.items() if key not in _SAME_ROWS):
        prepared = _prepared(name, options.get("cache_dir"), commit)
        if prepared:
            return _prepared_builder(name, prepared, options), next(iter(prepared.values())).name
    snapshot = _snapshot(name, commit)
    return _configured(str(snapshot), options), snapshot.name


# Options that do not change which rows a configuration has.
_SAME_ROWS = {"name", "cache_dir", "token", "download_config", "download_mode", "storage_options"}


def _prepared(name: str, cache_dir: str | None, commit: str | None) -> dict[str, Path]:
    """The Arrow folders that `datasets` has made of the newest commit, by configuration."""
    namespace, _, short = name.partition("/")
    root = Path(cache_dir or _datasets().config.HF_DATASETS_CACHE).expanduser()
    found = []
    for info in (root / f"{namespace}___{_snake(short)}").glob("*/*/*/dataset_info.json"):
        config, _, made_of = info.parent.parts[-3:]
        # A folder with another name than its configuration is of chosen data files or features.
        plain = json.loads(info.read_text())["config_name"] == config
        if plain and made_of == (commit or made_of) and _COMMIT.fullmatch(made_of):
            found.append(info)
    found.sort(key=lambda info: info.stat().st_mtime)
    return {info.parts[-4]: info.parent for info in found if info.parts[-2] == found[-1].parts[-2]}


def _prepared_builder(name: str, prepared: dict[str, Path], options: Mapping[str, Any]):
    from datasets.packaged_modules.cache.cache import Cache

    config = options["name"]
    if config is None and (len(prepared) == 1 or "default" in prepared):
        config = "default" if "default" in prepared else next(iter(prepared))
    if config not in prepared:
        raise ValueError(_which_config(name, config, sorted(prepared), " in the cache"))
    return Cache(
        cache_dir=options.get("cache_dir"),
        dataset_name=name.partition("/")[2],
        repo_id=name,
        config_name=config,
        version=prepared[config].parent.name,
        hash=prepared[config].name,
    )


def _snapshot(name: str, commit: str | None) -> Path:
    """The newest folder of downloaded files that is known to be whole."""
    import huggingface_hub

    snapshots = _hub_cache() / f"datasets--{name.replace('/', '--')}" / "snapshots"
    newest = sorted(snapshots.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest:
        if path.name != (commit or path.name):
            continue
        try:
            # Only a listing tells a whole copy from the files that some load has left.
            listed = huggingface_hub.get_cached_repo_tree(
                name, repo_type="dataset", revision=path.name
            )
        except huggingface_hub.errors.CachedRepoTreeNotFoundError:
            continue
        if all((path / file.path).exists() for file in listed):
            return path
    raise FileNotFoundError(_not_cached(name))


# Builders.


def _configured(path: str, options: dict[str, Any]):
    """Makes the builder; an unknown configuration is an error that lists those there are."""
    datasets = _datasets()
    try:
        return datasets.load_dataset_builder(path, **options)
    except ValueError as error:
        shared = ("data_dir", "data_files", "revision", "download_config")
        given = {key: options[key] for key in shared if options.get(key) is not None}
        if options.get("token") is not None:
            given.setdefault("download_config", datasets.DownloadConfig(token=options["token"]))
        known = datasets.get_dataset_config_names(path, **given)
        config = options["name"]
        if (config is None and len(known) > 1) or (config is not None and config not in known):
            raise ValueError(_which_config(path, config, known)) from error
        raise


def _which_config(name: str, given: str | None, known: list[str], where: str = "") -> str:
    near = difflib.get_close_matches(given or "", known, 1) or known
    said = f"has no configuration {given!r}" if given else "has several configurations"
    return f"{name!r} {said}; there are{where} {', '.join(known)}: write config_name={near[0]!r}"


def _check_split(name: str, split: str, known: list[str]) -> None:
    for part in split.split("+"):
        wanted = part.partition("[")[0].strip()
        if known and wanted not in (*known, "all"):
            near = (difflib.get_close_matches(wanted, known, 1) or known)[0]
            raise ValueError(
                f"{name!r} has no split {wanted!r}; there are {', '.join(known)}: "
                f"write split={near!r}"
            )


def _read(builder, name: str, split: str, streaming: bool, kwargs: Mapping[str, Any]):
    known = getattr(builder.config, "data_files", None) or builder.info.splits or ()
    _check_split(name, split, [str(key) for key in known])
    if streaming:
        if "[" in split:
            raise ValueError(
                f"a stream has no slice {split!r}: write split={split.partition('[')[0]!r}, or "
                "streaming=False"
            )
        return builder.as_streaming_dataset(split=split)
    prepare = {key: value for key, value in kwargs.items() if key in _PREPARE}
    builder.download_and_prepare(**prepare)
    return builder.as_dataset(split=split, in_memory=bool(kwargs.get("keep_in_memory")))


def _from_disk(place: Path, split: str, streaming: bool, kwargs: Mapping[str, Any]):
    datasets = _datasets()
    saved = datasets.load_from_disk(
        str(place),
        keep_in_memory=kwargs.get("keep_in_memory"),
        storage_options=kwargs.get("storage_options"),
    )
    if isinstance(saved, datasets.Dataset):
        own = str(saved.split) if saved.split else split.partition("[")[0]
        saved = {own: saved}
    _check_split(str(place), split, list(saved))
    lengths = {key: len(rows) for key, rows in saved.items()}
    if split == "all":
        split = "+".join(saved)
    slices = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    parts = [saved[at.splitname].select(range(at.from_, at.to)) for at in slices]
    rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return rows.to_iterable_dataset() if streaming else rows
