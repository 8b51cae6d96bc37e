"""Writers: where the metrics of a run go."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPLOADS = 60.0


class Writer(Protocol):
    """What a writer has: the interface of clu's metric writers."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers of a step."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration of the run."""

    def flush(self) -> None:
        """Brings what was written to where it can be read."""

    def close(self) -> None:
        """Ends writing."""


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
        self._lines = [rows.get(row["step"]) or json.dumps(dict(row)) for row in history]
        self._is_local = "://" not in os.fspath(self._path)
        self._written = -float("inf")
        if self._lines != before:
            self._write_all()
        self._file = self._path.open("a") if self._is_local else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **scalars, "time": round(time.time(), 3)})
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()  # a row is whole or, after a crash, left out when the run goes on
            return
        self._lines.append(line)  # a bucket has no appending: the file is written anew
        if time.monotonic() - self._written > _SECONDS_BETWEEN_UPLOADS:
            self._write_all()

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        text = json.dumps(dict(hparams), indent=2, default=str)
        (self._path.parent / "config.json").write_text(text + "\n")

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


class TensorBoard:
    """Writes TensorBoard's event files, through tensorboardX.

    Args:
        directory: Where they go.

    Raises:
        ImportError: If tensorboardX is not installed.
    """

    def __init__(self, directory: epath.PathLike):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard files need `pip install datarax[tensorboard]`"
            ) from error
        self._writer = SummaryWriter(os.fspath(directory))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._writer.add_text("config", json.dumps(dict(hparams), indent=2, default=str))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Writers:
    """Several writers as one; one that raises is left out from then on, and that is said once.

    Args:
        writers: The writers.
    """

    def __init__(self, writers: Sequence[Writer]):
        self._writers = list(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._each("write_scalars", step, scalars)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._each("write_hparams", hparams)

    def flush(self) -> None:
        self._each("flush")

    def close(self) -> None:
        self._each("close")

    def _each(self, method, *arguments):
        for writer in list(self._writers):
            try:
                getattr(writer, method)(*arguments)
            except Exception as error:  # a report must not end a run
                self._writers.remove(writer)
                with contextlib.suppress(Exception):  # it has failed, and that is said
                    writer.close()
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
