"""Writers: where the metrics of a run go."""

import contextlib
import functools
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPLOADS = 60.0
_CONFIGURATION = "config.json"


class Writer(Protocol):
    """What a writer has: `write_scalars`, as clu's metric writers.

    Where a writer has them, these are called, too: `resume(step)` once before all, with the step
    from which the run goes on, 0 at its start; `write_hparams(hparams)` once, with the run's
    configuration by name; `flush()`, and `close()` at the end.
    """

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers of a step."""


class JsonLines:
    """Writes `metrics.jsonl`: one JSON object a log, with `step`, the metrics and `time`.

    Args:
        path: The file.
        history: What the run has logged so far. The file is made to hold just these rows: those a
            killed run wrote after its last checkpoint come again.
    """

    def __init__(self, path: epath.PathLike, history: Sequence[Mapping[str, Any]] = ()):
        self._path = epath.Path(path)
        before = self._path.read_text().splitlines() if self._path.exists() else []
        rows = {row["step"]: line for line in before if (row := _row(line)) is not None}
        self._lines = [rows.get(row["step"]) or _json(row) for row in history]
        self._is_local = "://" not in os.fspath(self._path)
        self._written = -float("inf")
        if self._lines != before:
            self._write_all()
        self._file = self._path.open("a") if self._is_local else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        line = _json({"step": step, **scalars, "time": round(time.time(), 3)})
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()  # a row is whole or, after a crash, left out when the run goes on
            return
        self._lines.append(line)  # a bucket has no appending: the file is written anew
        if time.monotonic() - self._written > _SECONDS_BETWEEN_UPLOADS:
            self._write_all()

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        text = json.dumps(dict(hparams), indent=2, default=str)
        (self._path.parent / _CONFIGURATION).write_text(text + "\n")

    def flush(self) -> None:
        if self._file is None:
            self._write_all()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def _write_all(self) -> None:
        temporary = self._path.parent / f"{self._path.name}.tmp"
        temporary.write_text("".join(line + "\n" for line in self._lines))
        temporary.replace(self._path)
        self._written = time.monotonic()


def written_hparams(workdir: epath.Path) -> dict[str, Any]:
    """Returns the configuration that an earlier start of a run wrote, or nothing."""
    path = workdir / _CONFIGURATION
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:  # the start was killed while it wrote
        return {}


def _json(row: Mapping[str, Any]) -> str:
    """Returns a row as JSON, which has no NaN and no infinity: they are null."""
    lost = {name for name, x in row.items() if isinstance(x, float) and not math.isfinite(x)}
    return json.dumps({name: None if name in lost else value for name, value in row.items()})


class TensorBoard:
    """Writes TensorBoard's event files, through tensorboardX.

    A run that goes on takes the steps out of the files that it will write again.

    Args:
        directory: Where they go.

    Raises:
        ImportError: If tensorboardX is not installed.
    """

    def __init__(self, directory: epath.PathLike):
        try:
            from tensorboardX import SummaryWriter
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        except ImportError as error:
            raise ImportError(
                "TensorBoard files need `pip install datarax[tensorboard]`"
            ) from error
        self._directory = epath.Path(os.fspath(directory))
        self._open, self._event = SummaryWriter, Event

    @functools.cached_property
    def _writer(self) -> Any:
        # A new file, so not before it is needed. Its usual name holds the second: a run that goes
        # on within the same one would write over the file before.
        return self._open(os.fspath(self._directory), filename_suffix=f".{time.time_ns()}")

    def resume(self, step: int) -> None:
        """Takes out of the files what is of later steps than `step`."""
        for path in list(self._directory.iterdir()) if self._directory.exists() else ():
            if "tfevents" in path.name:
                whole = path.read_bytes()
                kept = b"".join(r for r in _records(whole) if self._step_of(r) <= step)
                if kept != whole:
                    path.write_bytes(kept)

    def _step_of(self, record: bytes) -> int:
        return self._event.FromString(record[12:-4]).step

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers of a step."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration of the run."""
        self._writer.add_text("config", json.dumps(dict(hparams), indent=2, default=str))

    def flush(self) -> None:
        """Brings what was written into the file."""
        self._writer.flush()

    def close(self) -> None:
        """Ends writing."""
        self._writer.close()


def _records(events: bytes) -> Iterator[bytes]:
    """Yields the whole records of an event file; the last of a killed run may be cut off.

    A record is its length in 8 bytes, a checksum in 4, the event, and a checksum in 4
    (https://www.tensorflow.org/tutorials/load_data/tfrecord).
    """
    start = 0
    while start + 12 <= len(events):
        stop = start + 16 + int.from_bytes(events[start : start + 8], "little")
        if stop <= len(events):
            yield events[start:stop]
        start = stop


class Writers:
    """Several writers as one; one that raises is left out from then on, and that is said once.

    Args:
        writers: The writers.
    """

    def __init__(self, writers: Sequence[Writer]):
        self._writers = list(writers)

    def resume(self, step: int) -> None:
        self._each("resume", step)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._each("write_scalars", step, scalars)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._each("write_hparams", hparams)

    def flush(self) -> None:
        self._each("flush")

    def close(self) -> None:
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for writer in list(self._writers):
            if not hasattr(writer, method):  # only `write_scalars` is needed
                continue
            try:
                getattr(writer, method)(*arguments)
            except Exception as error:  # a report must not end a run
                self._writers.remove(writer)
                with contextlib.suppress(Exception):  # it has failed, and that is said
                    getattr(writer, "close", lambda: None)()
                logger.warning(
                    "%s.%s raised %s: %s. Training goes on without this writer.",
                    type(writer).__name__,
                    method,
                    type(error).__name__,
                    error,
                )


def _row(line: str) -> dict | None:
    """Returns a line's row, None where the line was cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
