"""The note that a run which diverged leaves in its workdir, for the next start of the run."""

import dataclasses
import json

from etils import epath

from trainers.devices import agreement
from trainers.loop.divergence import Divergence


def note(workdir: epath.Path | None, found: Divergence) -> None:
    """Leaves a note in the workdir, for the next start of the run."""
    if workdir is not None and agreement.is_first():
        text = json.dumps(dataclasses.asdict(found), indent=2)
        _file(workdir).write_text(text + "\n")


def noted(workdir: epath.Path | None, step: int, first: int) -> Divergence | None:
    """Returns the note of a run that diverged after `step` steps on the same data."""
    if workdir is None:
        return None
    fields = agreement.of_first(
        lambda: json.loads(_file(workdir).read_text()) if _file(workdir).exists() else None
    )
    if fields is None:
        return None
    found = Divergence(**fields)
    return found if (found.step, found.first) == (step, first) else None


def forget(workdir: epath.Path | None) -> None:
    """Removes a note: the run goes on."""
    if workdir is not None and agreement.is_first():
        _file(workdir).unlink(missing_ok=True)


def remedy(workdir: epath.Path | None) -> str:
    """Returns what to do to go on, where there is a workdir."""
    return f" To go on from there after a change, delete {_file(workdir)}." if workdir else ""


def _file(workdir: epath.Path) -> epath.Path:
    return workdir / "diverged.json"
