"""What never to print: tokens, passwords, headers, and the signatures in URLs."""

import re
from collections.abc import Mapping
from typing import Any

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
    text = re.sub(r"(\w+://)[^/\s@'\"]+@", r"\1", str(message))
    text = re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
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


def is_clean(error: BaseException | None) -> bool:
    """Returns whether neither an error nor any behind it holds a secret in its message."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if redacted(error) != str(error):
            return False
        error = error.__cause__ or error.__context__
    return True
