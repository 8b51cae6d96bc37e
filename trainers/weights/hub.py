"""Weights on the Hub: from a model's name to its safetensors files in the cache."""

import re
from pathlib import Path

from etils import epath
from huggingface_hub import errors, hf_hub_download

from datarax.hub.client import endpoint
from datarax.hub.network import patiently
from datarax.hub.private import httpx
from trainers.weights.safetensors import SUFFIX, USUAL, shards

_NAME = re.compile(r"(?:hf://)?(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>.+\.safetensors))?")


def is_name(text: str) -> bool:
    """Returns whether a text may be a model's name, as `google/gemma-3-270m`."""
    return _NAME.fullmatch(text) is not None


def downloaded(name: str, revision: str | None = None) -> epath.Path:
    """Downloads a model's weights, unless they are in the cache.

    Args:
        name: `namespace/name` of a model, with `/file.safetensors` behind it where its weights are
            not called `model.safetensors`.
        revision: A branch, a tag or a commit; None: the main branch. All files are of one commit.

    Returns:
        The file, or the index beside its files.

    Raises:
        FileNotFoundError: If there is no such model, or it has no such file.
        ConnectionError: If the Hub cannot be reached, and the cache has no copy.
    """
    match = _NAME.fullmatch(name)
    assert match is not None  # `is_name` is asked before
    repository, files = match["repository"], [match["file"]] if match["file"] else [*USUAL]
    try:
        try:
            return _first(repository, files, revision)
        except httpx.RequestError:
            return _first(repository, files, revision, cached=True)
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"The Hub at {endpoint()} could not be reached for {repository!r}, and the cache has "
            f"no copy. Run `hf download {repository}` where it can, or give a local folder."
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository!r} has none of {', '.join(files)}. Name the file that it has, as in "
            f"'{repository}/weights.safetensors'."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repository!r} has no branch, tag or commit {revision!r}."
        ) from error
    except errors.RepositoryNotFoundError as error:  # a gated one, too
        raise FileNotFoundError(
            f"{repository!r} is no model at {endpoint()}, or a private one, nor a file or folder "
            "here. If it is private or gated, ask for access on its page, then run `hf auth login`."
        ) from error


def _first(
    repository: str, files: list[str], revision: str | None, *, cached: bool = False
) -> epath.Path:
    """Returns the first of some files that a repository has, with those that it tells of."""

    def get(file: str, revision: str | None) -> Path:
        def ask() -> str:
            return hf_hub_download(repository, file, revision=revision, local_files_only=cached)

        return Path(patiently(ask))

    *others, last = files
    for file in others:
        try:
            path = get(file, revision)
            break
        except errors.EntryNotFoundError:  # in the cache alone, too
            continue
    else:
        path = get(last, revision)
    if not path.name.endswith(SUFFIX):
        for shard in shards(epath.Path(path)):
            get(shard, path.parent.name)  # the cache is `snapshots/<commit>/<file>`
    return epath.Path(path)
