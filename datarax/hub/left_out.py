"""Files that are in no split, since the names of others decide what the splits are."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub

from datarax.errors import listed
from datarax.hub.secrets import redacted

logger = logging.getLogger(__name__)

_SHOWN = 5


def warn_of_folder(builder: Any, place: Path) -> None:
    """Warns of files of a folder that are in no split; a card that names its files has chosen.

    Args:
        builder: The builder of the folder.
        place: The folder.
    """
    card = place / "README.md"
    if card.is_file() and (huggingface_hub.metadata_load(card) or {}).get("configs"):
        return
    base = place.resolve().as_posix()
    found = (
        os.path.relpath(os.path.join(folder, name), base)
        for folder, _, names in os.walk(base)
        for name in names
    )
    _warn(builder, str(place), found, f"{base}/")


def warn_of_repository(builder: Any, info: huggingface_hub.DatasetInfo) -> None:
    """Warns of files of a repository that are in no split, as `warn_of_folder` does."""
    if not (info.card_data and info.card_data.get("configs")):
        found = (file.rfilename for file in info.siblings or ())
        _warn(builder, info.id, found, f"@{info.sha}/")


def _warn(builder: Any, name: str, found: Iterable[str], base: str) -> None:
    used = {
        str(file).partition(base)[2]
        for files in (getattr(builder.config, "data_files", None) or {}).values()
        for file in files
    }
    like = {(path.parent, path.suffix) for path in map(PurePosixPath, used)}
    left = sorted(file for file in found if file not in used and _counts(file, like))
    if left:
        logger.warning(
            "%d of the data files of %r are in no split: %s. The names of others hold 'train', "
            "'test' or 'validation', and theirs do not. Put the files of a split into a folder of "
            "its name, or write download_kwargs={'data_files': ...}.",
            *(len(left), redacted(name), listed(left[:_SHOWN]) + ", ..." * (len(left) > _SHOWN)),
        )


def _counts(file: str, like: set[tuple[PurePosixPath, str]]) -> bool:
    """Returns whether a file lies among those of a split; what begins with a dot is hidden."""
    path = PurePosixPath(file)
    return (path.parent, path.suffix) in like and not path.name.startswith((".", "__"))
