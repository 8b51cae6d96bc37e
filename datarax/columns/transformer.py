"""A transform applied to records on a pool of threads, written into the arrays of a batch."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import datasets
import numpy as np

from datarax.columns.arrow import cores
from datarax.columns.nested import Path
from datarax.columns.outputs import Outputs, Unlike
from datarax.columns.records import Records
from datarax.columns.threads import Late, Threads
from datarax.columns.transform import NoRecord, Transform, TransformFunction, placed
from datarax.errors import expect_between
from datarax.hub.secrets import redacted

logger = logging.getLogger(__name__)

_TRIED = 64  # rows that are tried, where those before are damaged
_MOST_THREADS = 1024

# A row is not skipped for these: it can be read, or all rows fail alike.
_ALWAYS_RAISED = Unlike, NoRecord, ImportError, MemoryError


class Transformer:
    """A transform, the threads that it runs on, and the columns that it makes.

    Args:
        function: The transform.
        features: The features of the records.
        on_bad_rows: What to do where a record cannot be decoded or transformed: raise, or skip it.
        num_threads: How many threads; None for one a core.
        timeout: Seconds that a record may take; None for no limit.

    Raises:
        TypeError: If the transform cannot be called with a record.
        ValueError: If `num_threads` or `timeout` is out of range.
    """

    def __init__(
        self,
        function: TransformFunction,
        features: datasets.Features,
        *,
        on_bad_rows: Literal["raise", "skip"] = "raise",
        num_threads: int | None = None,
        timeout: float | None = None,
    ):
        if num_threads is not None:
            expect_between("num_threads", num_threads, 1, _MOST_THREADS)
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout}: expected seconds, more than 0, or None.")
        self.transform = Transform(function)
        self.features = features
        self._skips = on_bad_rows == "skip"
        self._timeout = timeout
        self._threads = Threads(num_threads or cores())
        self._outputs: Outputs | None = None
        self.first: dict[Path, np.ndarray] = {}

    @property
    def outputs(self) -> Outputs:
        """The columns that it makes, once `learn` was called."""
        assert self._outputs is not None
        return self._outputs

    def learn(self, records: Records, label: Callable[[int], str]) -> None:
        """Finds out which columns the transform makes, by the first, middle and last of some rows.

        Damaged rows are passed over where rows are skipped. The first row is kept as `first`,
        transformed with seed 0.

        Args:
            records: Some rows, at least one.
            label: Returns what errors call a row.

        Raises:
            Exception: What the transform raised, with the row in its message.
        """
        shown: dict[int, tuple[dict[str, Any], dict[Path, Any]]] = {}

        def show(row: int) -> None:
            record = records[row]
            shown[row] = dict(record), self.transform(record, 0, row)

        error: Exception | None = None
        for row in range(min(_TRIED, len(records))):
            error = self._each([row], show, records, label).get(0)
            if error is None:
                break
            if self.must_raise(error):
                raise error
        if error is not None:
            raise error
        # What is wrong with the others is raised where they stand in the order.
        self._each([len(records) // 2, len(records) - 1], show, records, label)
        self._outputs = Outputs(self.transform.name, self.features, list(shown.values()))
        self.first = self._outputs.buffers(1)
        self._outputs.write(self.first, 0, next(iter(shown.values()))[1])

    def apply(
        self,
        records: Records,
        numbers: np.ndarray,
        seed: int,
        out: dict[Path, np.ndarray],
        label: Callable[[int], str],
    ) -> dict[int, Exception]:
        """Transforms records, and writes them to arrays.

        Args:
            records: `n` records.
            numbers: Their numbers, `uint64` of shape `(n,)`.
            seed: The seed of their epoch, `(seed + epoch) % 2**32`.
            out: Arrays of shape `(n, ...)`, of `Outputs.buffers` or slices of them.
            label: Returns what errors call a row.

        Returns:
            What is wrong with rows, in their order, with the row in its message. The first row
            stands in their place.

        Raises:
            TimeoutError: A record took longer than `timeout`.
        """

        def write(row: int) -> None:
            made = self.transform(records[row], seed, int(numbers[row]))
            self.outputs.write(out, row, made)

        errors = self._each(range(len(records)), write, records, label)
        for row in errors:
            for path, column in out.items():
                column[row] = self.first[path][0]
        return errors

    def must_raise(self, error: Exception) -> bool:
        """Returns whether an error of a row is raised, and the row not left out."""
        return not self._skips or isinstance(error, _ALWAYS_RAISED)

    def _each(
        self,
        rows: Sequence[int],
        function: Callable[[int], None],
        records: Records,
        label: Callable[[int], str],
    ) -> dict[int, Exception]:
        """Calls a function of rows on the threads; returns what it raised, by item of `rows`."""

        def named(item: int) -> str:
            file = records.file(rows[item])
            return label(rows[item]) + (f" ({redacted(file)})" if file else "")

        def slow(item: int, seconds: float) -> None:
            logger.warning(
                "%s: the transform %s has run for %.0f s, and there is no limit: timeout=%.0f "
                "would make it an error.",
                *(named(item), self.transform.name, seconds, seconds),
            )

        try:
            errors = self._threads.each(
                lambda item: function(rows[item]), len(rows), self._timeout, slow
            )
        except Late as late:
            raise TimeoutError(
                f"{named(late.item)}: the transform {self.transform.name} took longer than "
                f"{late.seconds:g} s. Let it wait for nothing, or give it longer: "
                f"timeout={2 * late.seconds:g}."
            ) from None
        note = f"Raised by the transform {self.transform.name}, or while its record was read."
        skip = " Leave such rows out with on_bad_rows='skip'."
        return {
            item: placed(error, named(item), note + skip * (not isinstance(error, _ALWAYS_RAISED)))
            for item, error in sorted(errors.items())
        }
