"""What a source's state keeps of its transform: a digest of its name, of which another is told."""

import logging
from typing import Any

from datarax.columns.transform import Transform, TransformFunction

logger = logging.getLogger(__name__)

_TOLD: set[tuple[Any, Any]] = set()


def state_with_transform(
    state: dict[str, Any], transform: TransformFunction | None
) -> dict[str, Any]:
    """Returns a state with all that it keeps of a transform: a digest of its name."""
    return state if transform is None else state | {"transform": Transform(transform).digest}


def note_other_transform(
    state: dict[str, Any], transform: TransformFunction | None, label: str
) -> None:
    """Logs a warning, once for each two, where a state was saved with another transform."""
    own = None if transform is None else Transform(transform)
    saved, digest = state.get("transform"), own and own.digest
    if saved == digest or (saved, digest) in _TOLD:
        return
    _TOLD.add((saved, digest))
    logger.warning(
        "The state was saved %s, and %s has %s: the order goes on, and the records differ.",
        "without a transform" if saved is None else "with another transform",
        *(label, "none" if own is None else own.name),
    )
