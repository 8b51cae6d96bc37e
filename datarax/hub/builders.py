"""Builders of `datasets`: of local files, of the caches' copies, of a Hub repository."""

import glob
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from datarax.errors import closest, listed
from datarax.hub import cache, client, left_out
from datarax.hub.private import (
    COMMON,
    EXTENSIONS,
    PACKAGED,
    Cache,
    DataFilesDict,
    get_data_patterns,
    module_of,
    sanitize_patterns,
)
from datarax.hub.secrets import redacted

_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"}
_ADDRESS = re.compile(
    r"(?P<host>https?://[^/]+|hf:/)/datasets/(?P<name>[^/?#]+(?:/(?!tree/|viewer)[^/?#]+)?)/?"
    r"(?:tree/main/?|viewer.*)?"
)
_HOSTS = {"hf:/", "https://huggingface.co", "https://hf.co"}


def without_address(name: str) -> str:
    """Returns the repository that an address of the Hub shows, any other name as it is.

    Example:
        >>> without_address("https://huggingface.co/datasets/ylecun/mnist")
        'ylecun/mnist'
    """
    found = _ADDRESS.fullmatch(name)
    is_hub = found is not None and found["host"] in _HOSTS | {client.endpoint()}
    return found["name"] if found and is_hub else name


def is_local(name: str) -> bool:
    """Returns whether a name is a packaged builder or a path; else it is a repository.

    Raises:
        FileNotFoundError: It can only be a path, and nothing is there.
    """
    if name in PACKAGED or Path(name).expanduser().exists():
        return True
    if "://" in name.removeprefix("hf://datasets/"):
        raise FileNotFoundError(
            f"name={redacted(name)!r} is no dataset's address. A file of the network is read by "
            'its builder: name="csv", download_kwargs={"data_files": ...}.'
        )
    if name.startswith((".", "/", "~")) or name.removeprefix("hf://datasets/").count("/") > 1:
        raise FileNotFoundError(f"There is no file or folder {Path(name).expanduser().absolute()}.")
    return False


def of_local(name: str, options: dict[str, Any], local_files_only: bool) -> datasets.DatasetBuilder:
    """Returns the builder of a local file or folder, or a packaged one with files to read."""
    place = Path(name).expanduser()
    if local_files_only and (remote := next(_urls(options.get("data_files")), None)):
        raise ValueError(f"local_files_only=True, but data_files has {redacted(remote)!r}.")
    if place.is_file():
        stem = place.with_suffix("") if place.suffix.lower() in _COMPRESSED else place
        if stem.suffix.lower() not in EXTENSIONS:
            raise ValueError(
                f"{name!r}: expected a folder or a file of {listed(COMMON)}, packed or not."
            )
        module, arguments = EXTENSIONS[stem.suffix.lower()]
        files = {"data_files": glob.escape(str(place))}
        return of_path(module, name, arguments | options | files)
    if place.is_dir() and glob.has_magic(str(place)):
        return of_path(*_of_odd_folder(place, options))
    if not place.exists() and not (options.get("data_files") or options["data_dir"]):
        raise ValueError(
            f"The builder {name!r} needs files: write download_kwargs={{'data_files': ...}}."
        )
    builder = of_path(str(place), name, options)
    if place.is_dir() and not (options.get("data_files") or options["data_dir"]):
        left_out.warn_of_folder(builder, place)
    return builder


def _of_odd_folder(place: Path, options: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Returns the arguments of `of_path` for a folder whose name `datasets` takes for a pattern."""
    base = glob.escape(str((place / (options.get("data_dir") or "")).absolute()))
    patterns = options.get("data_files") or get_data_patterns(base)
    found = DataFilesDict.from_patterns(sanitize_patterns(patterns), base_path=base)
    module, arguments = module_of(found)
    files = {split: [glob.escape(file) for file in found[split]] for split in found}
    return module, str(place), arguments | options | {"data_files": files, "data_dir": None}


def _urls(data_files: Any) -> Iterator[str]:
    if isinstance(data_files, str) and "://" in data_files:
        yield data_files
    elif isinstance(data_files, Mapping):
        yield from _urls(list(data_files.values()))
    elif isinstance(data_files, list | tuple):
        for part in data_files:
            yield from _urls(part)


def of_hub(
    name: str, options: dict[str, Any], revision: str | None
) -> tuple[datasets.DatasetBuilder, str, str]:
    """Returns the builder of a repository as the Hub has it, its full name and its commit."""
    info = client.ask(name, revision, options.get("token"))
    name, commit = info.id, str(info.sha)
    builder = of_path(name, name, options | {"revision": commit})
    if builder.hash != commit or builder.name == "cache":
        # `datasets` hides that the Hub went away by reading whatever commit is cached.
        raise ConnectionError(client.unreachable(name))
    if not (options.get("data_files") or options["data_dir"]):
        left_out.warn_of_repository(builder, info)
    return builder, name, commit


def of_cache(
    name: str, asked: tuple[dict[str, Any], ...], revision: str | None
) -> tuple[datasets.DatasetBuilder, str, str]:
    """Returns the builder of the caches' copy of a repository, its full name and its commit.

    Args:
        name: The repository.
        asked: The arguments of `datasets.load_dataset_builder`; the first that were prepared count.
        revision: A branch, a tag or a commit.
    """
    name = cache.full_name(name)
    commit = cache.commit_of(name, revision)
    if revision and not commit:
        raise FileNotFoundError(f"revision={revision!r}: {client.not_cached(name)}")
    options, seen = asked[0], set()
    for request in asked:
        folders = cache.prepared(name, request, commit)
        seen |= folders.keys()
        config = options["name"] or ("default" if len(folders) != 1 else next(iter(folders)))
        folder = folders.get(config)
        if folder is None:
            continue
        builder = Cache(
            cache_dir=options.get("cache_dir"),
            dataset_name=name.partition("/")[2],
            repo_id=name,
            config_name=folder.parts[-3],
            version=folder.parent.name,
            hash=folder.name,
        )
        return builder, name, folder.name
    snapshot = cache.whole_snapshot(name, commit)
    if snapshot:
        return of_path(str(snapshot), name, options), name, snapshot.name
    if seen:
        raise ValueError(_which_config(name, options["name"], sorted(seen), "The cache has"))
    raise FileNotFoundError(client.not_cached(name))


def of_path(path: str, name: str, options: dict[str, Any]) -> datasets.DatasetBuilder:
    """Returns the builder of what `datasets` finds at a path: a repository, a folder or a module.

    Args:
        path: What `datasets.load_dataset_builder` takes.
        name: What the user calls it.
        options: Further arguments of `datasets.load_dataset_builder`.

    Raises:
        ValueError: The configuration does not exist, or none is chosen of several; it lists them.
    """
    try:
        return datasets.load_dataset_builder(path, **options)
    except (ValueError, TypeError) as error:
        extra = options.keys() - inspect.signature(datasets.load_dataset_builder).parameters.keys()
        for key in extra:
            if repr(key) in str(error):
                said = f"The files of {name!r} have a builder that takes no {key!r}: leave it out."
                raise ValueError(said) from error
        shared = ("data_dir", "data_files", "revision", "download_config")
        given = {key: options[key] for key in shared if options.get(key) is not None}
        if options.get("token") is not None:
            given["download_config"] = datasets.DownloadConfig(token=options["token"])
        known = datasets.get_dataset_config_names(path, **given)
        config = options["name"]
        if config not in known and (config is not None or len(known) > 1):
            raise ValueError(_which_config(name, config, known)) from error
        raise


def _which_config(name: str, given: str | None, known: list[str], there: str = "There are") -> str:
    said = f"has no configuration {given!r}." if given else "has several configurations."
    near = closest(given or "", known) or f" Write config_name={known[0]!r}."
    return f"{name!r} {said} {there} {listed(known)}.{near}"
