"""Asking the Hub: within bounded time, and with errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import huggingface_hub
import huggingface_hub.errors as hub
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from datarax.hub.private import httpx

# Seconds that a load in this thread asked for, and those of a request that has no limit.
_bounds: ContextVar[tuple[float | None, float] | None] = ContextVar("bounds", default=None)
_under_way: list[float] = []  # the latter of every load


def resolve(name: str, revision: str | None, token: str | bool | None) -> tuple[str, str]:
    """Returns the repository that a name stands for, and the commit that a revision is now.

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
    return info.id, info.sha


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


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what the Hugging Face libraries raise within into errors that say what to do.

    Args:
        name: the repository, folder or builder to name in them.
    """
    access = (
        "If it is private or gated, ask for access on its page, then run `hf auth login` or write "
        'download_kwargs={"token": ...}.'
    )
    network = (httpx.RequestError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)
    try:
        yield
    except hub.RevisionNotFoundError as error:
        raise DatasetNotFoundError(f"{name!r} has no such branch, tag or commit.") from error
    except hub.GatedRepoError as error:
        raise DatasetNotFoundError(f"{name!r} is gated. {access}") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        said = f"{name!r} is no dataset at {_endpoint()}, or a private one. {access}"
        raise DatasetNotFoundError(said) from error
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            said = f"{_endpoint()} refused access to {name!r} ({status}). {access}"
            raise DatasetNotFoundError(said) from error
        raise ConnectionError(f"{unreachable(name)} It answered {status}.") from error
    except network as error:
        raise ConnectionError(f"{unreachable(name)} ({type(error).__name__})") from error
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, (*network, hub.HfHubHTTPError)):
            raise ConnectionError(f"{unreachable(name)} ({type(cause).__name__})") from error
        said = f"The data files of {name!r} do not make one table: {cause or error}"
        raise type(error)(said) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"{name!r} is a loading script, which `datasets` does not run. The Hub may have its "
            'rows as Parquet: write download_kwargs={"revision": "refs/convert/parquet"}.'
        ) from error


def _endpoint() -> str:
    return huggingface_hub.constants.ENDPOINT


def unreachable(name: str) -> str:
    """Returns the sentences for a Hub that does not answer."""
    return (
        f"The Hub at {_endpoint()} could not be reached for {name!r}. A copy in the cache loads "
        "with local_files_only=True, a folder of files with name='path/to/folder'."
    )


def not_cached(name: str) -> str:
    """Returns the sentences for a repository that no cache holds."""
    return (
        f"{name!r} is not in the cache, and with local_files_only=True or HF_HUB_OFFLINE=1 nothing "
        "is asked of the network. Load it once without, or run "
        f"`hf download --repo-type dataset {name}`."
    )
