"""What the caches of the Hugging Face libraries hold, found without asking the network."""

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub

from datarax.errors import listed
from datarax.hub import client
from datarax.hub.private import camelcase_to_snakecase, read_from

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Options that do not change which rows a configuration has, or that must not be written down.
_SAME_ROWS = {"name", "cache_dir", "token", "download_config", "download_mode", "storage_options"}
_NOTE = "datarax_request.json"
_QUERY = re.compile(r"(\w+://[^\s?'\"\\]+)\?([^\s'\"\\]+)")
_USER = re.compile(r"(\w+://)[^/\s@'\"\\]+@")
_HASHED = re.compile(r"\?[0-9a-f]{16}[\"\\]")


def full_name(name: str) -> str:
    """Returns the repository `namespace/name` that a name stands for, by what the caches hold.

    Raises:
        FileNotFoundError: The caches hold no repository of this name.
        ValueError: They hold several.
    """
    name = name.removeprefix("hf://datasets/")
    found = [name] if "/" in name else _repositories(name)
    if not found:
        raise FileNotFoundError(client.not_cached(name))
    if len(found) > 1:
        raise ValueError(f"The cache has {listed(found)} for {name!r}: write name={found[0]!r}.")
    return found[0]


def _repositories(name: str) -> list[str]:
    raw = (path.name.split("--") for path in _hub_cache().glob("datasets--*--*"))
    found = {f"{parts[1]}/{parts[2]}" for parts in raw if parts[2:] == [name]}
    # A folder without namespace is of local data.
    built = _arrow_cache(None).glob(f"*___{camelcase_to_snakecase(name)}")
    return sorted(found | {f"{path.name.split('___')[0]}/{name}" for path in built})


def commit_of(name: str, revision: str | None) -> str | None:
    """Returns the commit that a revision meant when it was last downloaded.

    Args:
        name: a repository, `namespace/name`.
        revision: a branch, a tag, a commit, or None.

    Returns:
        The commit; None where `revision` is None or its commit is not known.
    """
    if revision is None or _COMMIT.fullmatch(revision):
        return revision
    ref = _repository(name) / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


def prepared(name: str, options: Mapping[str, Any], commit: str | None) -> dict[str, Path]:
    """Returns the Arrow folders that `datasets` made of a repository's commit, by configuration.

    Args:
        name: a repository, `namespace/name`.
        options: the keyword arguments of `datasets.load_dataset_builder`.
        commit: the commit to find; the one that was prepared last when None.
    """
    namespace, _, short = name.partition("/")
    root = _arrow_cache(options.get("cache_dir")) / f"{namespace}___{camelcase_to_snakecase(short)}"
    found = []
    for info in root.glob("*/*/*/dataset_info.json"):
        folder, config = info.parent, json.loads(info.read_text())["config_name"]
        if _request(options):
            fits = _read_note(folder) == _request(options)
        else:
            # A folder with another name than its configuration is of chosen files or features.
            fits = config == folder.parts[-3]
        if fits and _COMMIT.fullmatch(folder.name) and commit in (None, folder.name):
            found.append((info.stat().st_mtime, config, folder))
    found.sort()
    return {config: folder for _, config, folder in found if folder.name == found[-1][2].name}


@contextlib.contextmanager
def writable(options: dict[str, Any]) -> Iterator[Callable[[Any], None]]:
    """Lets builders be made where the cache of `datasets` cannot be written.

    A builder writes a lock beside the rows that it may prepare. Where it cannot, it gets an empty
    cache for the time being, which a stream does without and prepared rows too.

    Args:
        options: The arguments of `datasets.load_dataset_builder`; `cache_dir` is set if need be.

    Yields:
        A function of a builder that points it to the rows that the cache holds; it raises
        `OSError` if there are none.
    """
    root = _arrow_cache(options.get("cache_dir"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        failure = error
    else:
        yield lambda builder: None
        return
    with tempfile.TemporaryDirectory(prefix="datarax-") as scratch:
        options["cache_dir"] = scratch

        def find(builder: Any) -> None:
            folder = root / Path(builder.cache_dir).relative_to(scratch)
            if not (folder / "dataset_info.json").is_file():
                raise OSError(
                    failure.errno,
                    f"{failure.strerror}, and the rows are not prepared there. Set the variable "
                    "HF_DATASETS_CACHE to a folder that can be written, or write "
                    'download_kwargs={"cache_dir": ...}',
                    str(root),
                ) from failure
            read_from(builder, folder)

        yield find


def note(folder: str | Path, options: Mapping[str, Any]) -> None:
    """Writes beside prepared Arrow files which files or features were asked for.

    `datasets` names such a folder by a hash that only the Hub's listing can give again.
    """
    if _request(options) and _read_note(Path(folder)) != _request(options):
        with contextlib.suppress(OSError):  # a read-only cache only loses what the note is for
            Path(folder, _NOTE).write_text(_request(options))


def whole_snapshot(name: str, commit: str | None) -> Path | None:
    """Returns the newest folder of downloaded files that is known to be whole.

    Args:
        name: a repository, `namespace/name`.
        commit: the commit to find; any when None.
    """
    folders = (_repository(name) / "snapshots").glob(commit or "*")
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            # Only a listing tells a whole copy from the few files that some load has left.
            listed = huggingface_hub.get_cached_repo_tree(
                name, repo_type="dataset", revision=folder.name
            )
        except huggingface_hub.errors.CachedRepoTreeNotFoundError:
            continue
        if all((folder / file.path).exists() for file in listed):
            return folder
    return None


def _read_note(folder: Path) -> str:
    return _unsigned((folder / _NOTE).read_text()) if (folder / _NOTE).is_file() else ""


def _request(options: Mapping[str, Any]) -> str:
    chosen = {key: value for key, value in options.items() if key not in _SAME_ROWS and value}
    if chosen:
        chosen["name"] = options.get("name")
    return _unsigned(json.dumps(chosen, sort_keys=True, default=repr)) if chosen else ""


def _unsigned(text: str) -> str:
    """Returns a note with hashes for the queries of its URLs, which may be signatures."""

    def hashed(match: re.Match) -> str:
        return f"{match[1]}?{hashlib.sha256(match[2].encode()).hexdigest()[:16]}"

    return text if _HASHED.search(text) else _QUERY.sub(hashed, _USER.sub(r"\1", text))


def _hub_cache() -> Path:
    return Path(huggingface_hub.constants.HF_HUB_CACHE).expanduser()


def _arrow_cache(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()


def _repository(name: str) -> Path:
    return _hub_cache() / f"datasets--{name.replace('/', '--')}"
