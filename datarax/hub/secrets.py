"""What never to print: tokens, passwords, headers, and the signatures in URLs."""

import logging
import re
from collections.abc import Mapping
from typing import Any, NoReturn

_SECRET = re.compile(
    r"token|secret|passw|credential|auth|cookie|header|signature|(?<![a-z])key", re.I
)
_HIDDEN = "..."


def redacted(message: Any) -> str:
    """Returns a message without tokens, passwords and the queries of URLs.

    Example:
        >>> redacted("GET https://me:pass@host/rows.parquet?Signature=abc with hf_abc")
        'GET https://host/rows.parquet with hf_...'
    """
    # `pathlib` makes `https:/` of `https://`.
    text = re.sub(r"(\w+:/+)[^/\s@'\"]+@", r"\1", str(message))
    text = re.sub(r"(\w+:/+[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    text = re.sub(r"\b(Bearer|Basic) [\w.~+/=-]+", r"\1 ...", text)
    return re.sub(r"\bhf_\w+", "hf_...", text)


def hidden(value: Any, key: str = "") -> Any:
    """Returns a value for a `repr`: what keys such as `token` hold is hidden, URLs are redacted.

    Args:
        value: Keyword arguments, or part of them.
        key: The key of the part.

    Example:
        >>> hidden({"token": "hf_abc", "revision": "main"})
        {'token': '...', 'revision': 'main'}
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if _SECRET.search(key):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {name: hidden(part, str(name)) for name, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(hidden(part, key) for part in value)
    if isinstance(value, str):
        return redacted(value)
    holds_secret = any(_SECRET.search(name) for name in getattr(value, "__dict__", {}))
    return f"<{type(value).__name__}>" if holds_secret else value


def is_clean(error: BaseException) -> bool:
    """Returns whether neither an error, its notes nor any error behind it tells a secret."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if any(redacted(text) != str(text) for text in (one, *getattr(one, "__notes__", ()))):
            return False
        waiting += [one.__cause__, one.__context__]
    return True


def raise_from(told: BaseException, error: BaseException) -> NoReturn:
    """Raises an error from another one that is being handled, or alone if that tells a secret.

    Args:
        told: The error to raise.
        error: The error that is being handled.
    """
    cause = error if is_clean(error) else None
    try:
        raise told from cause
    finally:
        told.__context__ = cause  # Python has set it to `error`


class _Redacting(logging.Filter):
    """Takes the secrets out of what a library logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if (clean := redacted(text)) != text:
            record.msg, record.args = clean, ()
        raised = record.exc_info[1] if record.exc_info else None
        if raised is not None and not is_clean(raised):
            record.exc_info = None
        return True


_REDACTING = _Redacting()
_LIBRARIES = ("aiohttp", "datasets", "fsspec", "httpcore", "httpx", "huggingface_hub", "urllib3")


def redact_logs() -> None:
    """Takes the secrets out of what the Hub's libraries log; httpx logs each URL at level INFO."""
    for name in list(logging.root.manager.loggerDict):  # a logger's filter serves none below it
        if name.partition(".")[0] in _LIBRARIES:
            logging.getLogger(name).addFilter(_REDACTING)
