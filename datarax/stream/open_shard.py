"""One shard, read from its exact position, through a bad network."""

import logging
import math
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import GeneratorType
from typing import Any, Literal

import pyarrow as pa

from datarax.columns.transform import placed
from datarax.hub import network
from datarax.hub.explained import cure
from datarax.hub.secrets import raise_from
from datarax.stream.shards import Shards, Unfit, UsersError, unfit
from datarax.stream.window import Slice, Table

logger = logging.getLogger(__name__)

_ATTEMPTS = 8


@dataclass(frozen=True)
class ReadPolicy:
    """Where reading stops, and where it goes on without the rest of a shard.

    Args:
        timeout: Seconds without a row after which reading is an error; None: no limit.
        on_bad_rows: Where a shard cannot be read to its end: raise, or skip the rest.
    """

    timeout: float | None = None
    on_bad_rows: Literal["raise", "skip"] = "raise"


class OpenShard:
    """One shard, read a few rows at a time.

    Args:
        shards: All shards.
        shard: The number of this shard.
        policy: When a failure to read is an error.
        state: A value of `state` to go on from; None: the shard's start.
    """

    def __init__(
        self, shards: Shards, shard: int, policy: ReadPolicy, state: list[Any] | None = None
    ):
        self.shard = shard
        self.bad = 0
        self._shards, self._policy = shards, policy
        self._worker = network.Worker()
        # The table at hand, of `_length` rows, begins at row `_row` and is read from `_before`.
        self._before, self._row, self._offset = state or (None, 0, 0)
        self._after, self._length = self._before, 0
        self._table: Table | None = None
        self._tables: Iterator[tuple[pa.Table, Any]] | None = None
        self._closes: weakref.finalize | None = None

    @property
    def state(self) -> list[Any]:
        """Where the shard is: JSON-able, and never changed once it was given."""
        if self._length and self._offset >= self._length:
            return [self._after, self._row + self._length, 0]  # nothing is read again
        return [self._before, self._row, self._offset]

    def read(self, rows: int) -> Slice | None:
        """Returns up to `rows` rows, None at the end of the shard."""
        # A state's offset counts from its table's start, whatever the size of tables is now.
        while self._offset >= self._length:
            beyond = self._offset - self._length
            if not self._advance():
                return None
            self._offset = beyond
        if self._table is None:
            return None
        start, self._offset = self._offset, min(self._offset + rows, self._length)
        return Slice(self._table, start, self._offset)

    def peek(self) -> pa.Table | None:
        """Returns the first table, which will be read again; None if the shard is empty."""
        if self._table is None:
            self._advance()
        return None if self._table is None else self._table.rows

    def close(self) -> None:
        """Closes the file."""
        if self._closes is not None:
            self._closes()
        self._closes, self._tables = None, None

    def _advance(self) -> bool:
        row = self._row + self._length
        while True:
            found = self._next(row)
            if found is None:
                return False
            table, after = found
            if len(table):
                self._before, self._after = self._after, after
                self._table = Table(table, self.shard, row, self._shards.label)
                self._row, self._length = row, len(table)
                return True
            self._after = after

    def _next(self, row: int) -> tuple[pa.Table, Any] | None:
        left = network.deadline(self._policy.timeout)
        waits, attempts = network.pauses(_ATTEMPTS), 0
        while True:
            try:
                return self._worker.within(left(), self._pull)
            except network.Stalled as error:
                self.close()
                raise self._error(TimeoutError, row, self._stalled()) from error
            except Exception as error:
                self.close()
                if isinstance(error, UsersError):
                    if not network.is_transient(error.error):
                        label = self._label(row)
                        note = f"Raised by a function of the dataset's map or filter, at {label}."
                        raise placed(error.error, label, note) from error.error.__cause__
                    error = error.error
                if isinstance(error, Unfit):
                    raise unfit(error, row, self._shards.label(self.shard)) from error
                if isinstance(error, ImportError):  # no bad row: all rows of its kind fail alike
                    raise_from(
                        self._error(ImportError, row, f"{said(error)}. {cure(error)}"), error
                    )
                if network.is_refusal(error):
                    raise_from(self._error(refusal_of(error), row, said(error)), error)
                if not network.is_transient(error):
                    return self._give_up(row, error)
                attempts, asked = attempts + 1, network.asked_pause(error)
                pause = max(next(waits, math.inf), asked)
                seconds = left()
                if pause == math.inf or (seconds is not None and pause > seconds):
                    found = f"{said(error)}. {self._gave_up(attempts, asked)}"
                    raise_from(self._error(ConnectionError, row, found), error)
                logger.warning(
                    "%s: %s. Reading on in %.1f s.", self._label(row), said(error), pause
                )
            time.sleep(pause)

    def _pull(self) -> tuple[pa.Table, Any] | None:
        if self._tables is None:
            self._tables = self._shards.open(self.shard, self._after)
            # At the end of Python, too: later the modules that closing takes are gone.
            self._closes = weakref.finalize(self, _close, self._tables)
        return next(self._tables, None)

    def _give_up(self, row: int, error: Exception) -> None:
        if self._policy.on_bad_rows == "raise":
            found = (
                f"the rest cannot be read ({said(error)}). Repair or remove it, or go on with the "
                "next with on_bad_rows='skip'"
            )
            raise_from(self._error(ValueError, row, found), error)
        logger.warning("%s: the rest is left out: %s.", self._label(row), said(error))
        self.bad += 1

    def _stalled(self) -> str:
        seconds = self._policy.timeout or 0
        return (
            f"nothing came for {seconds:g} s. Resume from the last state, or wait longer: "
            f"timeout={2 * seconds:g}"
        )

    def _gave_up(self, attempts: int, asked: float) -> str:
        seconds = self._policy.timeout
        wanted = f", and the server asks to wait {asked:g} s" if asked else ""
        longer = "" if seconds is None else f", or wait longer: timeout={2 * seconds + asked:g}"
        return f"It failed {attempts} times{wanted}. Resume from the last state{longer}"

    def _label(self, row: int) -> str:
        return f"{network.redacted(self._shards.label(self.shard))}, row {row}"

    def _error(self, kind: type[Exception], row: int, found: str) -> Exception:
        return kind(f"{self._label(row)}: {found}.")


def _close(tables: Iterator) -> None:
    # A generator left behind in a stall still runs on its own thread and cannot be closed.
    if isinstance(tables, GeneratorType) and not tables.gi_running:
        tables.close()


def said(error: BaseException) -> str:
    """Returns what an error says, in one line and without secrets."""
    text = " ".join(network.redacted(error).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(".: ")


def refusal_of(error: BaseException) -> type[Exception]:
    """Returns the built-in kind of a refusal."""
    status = network.status_of(error)
    missing = isinstance(error, FileNotFoundError) or status == 404
    return FileNotFoundError if missing else PermissionError if status in (401, 403) else OSError
