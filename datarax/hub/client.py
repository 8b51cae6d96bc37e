"""Asking the Hub, within bounded time."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import huggingface_hub

# Seconds that a load in this thread asked for, and those of a request that has no limit.
_bounds: ContextVar[tuple[float | None, float] | None] = ContextVar("bounds", default=None)
_under_way: list[float] = []  # the latter of every load


def ask(name: str, revision: str | None, token: str | bool | None) -> huggingface_hub.DatasetInfo:
    """Returns what the Hub says of a repository: its full name, its commit, its files, its card.

    Args:
        name: a repository, with its namespace or without.
        revision: a branch, a tag or a commit; the main branch when None.
        token: the Hub token to ask with; the stored one when None.
    """
    api = huggingface_hub.HfApi(token=token)
    info = api.dataset_info(name.removeprefix("hf://datasets/"), revision=revision)
    if info.gated:
        # Asked here because `datasets` answers a refusal with whatever it has in its cache.
        api.auth_check(info.id, repo_type="dataset")
    return info


@contextmanager
def bounded(timeout: float | None) -> Iterator[None]:
    """Bounds every request of this thread within; the library waits for a listing for ever.

    Args:
        timeout: seconds; those of the library, and at most `HF_HUB_DOWNLOAD_TIMEOUT`, when None.
    """
    hooks = huggingface_hub.get_session().event_hooks["request"]
    if _bound not in hooks:  # for good: all threads share one client, so the hook asks whose turn
        hooks.append(_bound)
    seconds = timeout or float(huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT)
    token = _bounds.set((timeout, seconds))
    _under_way.append(seconds)
    try:
        yield
    finally:
        _bounds.reset(token)
        _under_way.remove(seconds)


def _bound(request: Any) -> None:
    asked, seconds = _bounds.get() or (None, max(_under_way, default=None))
    # Threads of `datasets` are of some load, but not known of which: the longest may be theirs.
    limits = request.extensions["timeout"]
    request.extensions["timeout"] = {
        key: asked or (seconds if limit is None else limit) for key, limit in limits.items()
    }


def endpoint() -> str:
    """Returns the Hub's address."""
    return huggingface_hub.constants.ENDPOINT


def unreachable(name: str) -> str:
    """Returns the sentences for a Hub that does not answer."""
    return (
        f"The Hub at {endpoint()} could not be reached for {name!r}. A copy in the cache loads "
        "with local_files_only=True, a folder of files with name='path/to/folder'."
    )


def not_cached(name: str) -> str:
    """Returns the sentences for a repository that no cache holds."""
    return (
        f"{name!r} is not in the cache, and with local_files_only=True or HF_HUB_OFFLINE=1 nothing "
        "is asked of the network. Load it once without, or run "
        f"`hf download --repo-type dataset {name}`."
    )
