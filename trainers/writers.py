"""Writers: where the metrics of a run go."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

logger = logging.getLogger(__name__)


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
    """Writes `metrics.jsonl`: one JSON object a log, with `step`, `time` and the metrics.

    Args:
        path: The file.
        step: Step of the restored checkpoint: rows past it are cut, since they will come again.
    """

    def __init__(self, path: epath.PathLike, step: int = 0):
        self._path = epath.Path(path)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if (row := _row(line)) is not None and row["step"] <= step]
        if kept != lines:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(self._path)
        self._file = self._path.open("a")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        row = {"step": step, **scalars, "time": round(time.time(), 3)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()  # a row is whole or, after a crash, cut off when the run goes on

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        text = json.dumps(dict(hparams), indent=2, default=str)
        (self._path.parent / "config.json").write_text(text + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


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
