"""What a run says while it goes on: a bar on a terminal or in a notebook, else plain lines."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from trainers.data.skipped import Skips, name_of
from trainers.run import NO_STALL, PLACE, InputStall

_SECONDS_BETWEEN_LINES = 10
_SECONDS_OF_SILENCE = 15
STALL = 0.05  # of the time, from which on an input stall is told
_WIDTH = 120  # of a line where there is no terminal
_IN_NOTEBOOK = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)


class Progress:
    """Shows the step, metrics, records a second and the time left, in the first process.

    Args:
        steps: Number of steps of the run, as far as anybody knows, or None.
        batch_size: Records in a step.
        best: Name of the metric that decides which checkpoint is the best; it is shown early.
    """

    def __init__(self, steps: int | None, batch_size: int, best: str | None = None):
        self._steps = steps
        self._batch_size = batch_size
        self._order = ["train/loss", "eval/loss", best]
        self._first = self._done = 0
        self._seconds = 0.0
        self._begun = time.perf_counter()
        self._bar: tqdm | None = None
        self._speaks = jax.process_index() == 0
        self._said = -float("inf")

    def begin(self, step: int) -> None:
        """Begins to measure and to show, after `step` finished steps."""
        self._first = self._done = step
        self._begun = time.perf_counter()
        if self._speaks and (_IN_NOTEBOOK or (sys.stderr is not None and sys.stderr.isatty())):
            self._bar = tqdm(total=self._steps, initial=step, unit="step", dynamic_ncols=True)

    def say(self, line: str) -> None:
        """Writes a line, if it is not empty; where nobody reads it, the run goes on in silence."""
        if not self._speaks or not line:
            return
        try:
            with tqdm.external_write_mode(sys.stdout):
                print(line, flush=True)
        except (OSError, ValueError):  # a closed pipe, a full disk; a closed file
            self._speaks = False

    @contextlib.contextmanager
    def patience(self, line: str) -> Iterator[None]:
        """Writes a line if the block takes longer than a few seconds."""
        timer = threading.Timer(_SECONDS_OF_SILENCE, self.say, [line])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def advance(self, step: int, seconds: float) -> None:
        """Notes that `step` steps are finished, the latest of them in `seconds`."""
        self._seconds += seconds
        self._done = step
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, row: Mapping[str, float], stall: InputStall = NO_STALL) -> None:
        """Shows a row of metrics; lines between evaluations are at least ten seconds apart.

        Args:
            row: The metrics.
            stall: The share of the time that the devices waited for data; told where it matters.
        """
        values = {name: value for name, value in row.items() if name not in PLACE}
        if not self._speaks or (self._bar is None and not self._is_due(row["step"], values)):
            return
        first = [name for name in self._order if name in values]
        names = first + [name for name in values if name not in first]
        parts = [f"{name} {values[name]:.4g}" for name in names]
        rate = self._rate(row["step"])
        rate += f"  {stall:.0%} waiting for data" if stall > STALL else ""
        if self._bar is not None:  # which tells of the time left by itself
            self._bar.set_postfix_str("  ".join([*parts[:4], rate]).rstrip(), refresh=False)
            return
        rate += self._left(row["step"])
        end = "" if self._steps is None else f"/{self._steps}"
        place = f"step {row['step']}{end}  epoch {row['epoch']:.2f}"
        width = shutil.get_terminal_size((_WIDTH, 24)).columns
        while len(parts) > 1 and len("  ".join([place, *parts, rate])) > width:
            parts.pop()  # all of them are in the history, and in metrics.jsonl
        self.say("  ".join([place, *parts, rate]).rstrip())

    def _is_due(self, step: float, values: Mapping[str, float]) -> bool:
        """Returns whether a line is due, and notes that it is written."""
        now = time.perf_counter()
        evaluated = any(name.startswith("eval/") for name in values)
        due = evaluated or step == self._steps or now - self._said > _SECONDS_BETWEEN_LINES
        self._said = now if due else self._said
        return due

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _rate(self, step: float) -> str:
        finished = step - self._first
        if not finished:
            return ""
        return f"{finished / self._seconds * self._batch_size:,.0f} examples/s"

    def _left(self, step: float) -> str:
        finished = step - self._first
        if self._steps is None or not finished:
            return ""
        passed = (time.perf_counter() - self._begun) / finished  # with evaluating and saving
        return f"  {tqdm.format_interval(max(0, self._steps - step) * passed)} left"


def told_of_start(step: int, workdir: Any, init_from: Any) -> str:
    """Returns what to say of a run that goes on after `step` steps."""
    if workdir is None:
        return f"Going on from step {step}, where fit() ended."
    instead = ", not from init_from" if init_from is not None else ""
    return f"Going on from step {step} in {workdir}{instead}."


def told_of_skips(skips: Skips) -> str:
    """Returns what to say of records that a run leaves out, or nothing."""
    parts = [f"{len(records):,} records from step {step:,} on" for step, records in skips]
    return f"Leaving out {', '.join(parts)}." if parts else ""


def told_of_spike(spike: Mapping[str, Any], records: np.ndarray | None) -> str:
    """Returns what to say of a step whose loss stands out.

    Args:
        spike: Its `batch` and by how many `deviations`.
        records: The batch's records, as `Trainer.records_at` names them; None where they have no
            numbers.
    """
    batch = spike["batch"]
    line = (
        f"The loss of batch {batch} stands out: {spike['deviations']:.1f} deviations above those "
        f"of the last 1,000 steps. Look at it with trainer.batch_at({batch})"
    )
    if records is None:
        return f"{line}."
    return (
        f"{line}; its records are {some(records)}. To go on without them from a checkpoint before, "
        f"write Trainer(..., skip=trainer.records_at({batch}))."
    )


_REMEDIES = {
    "reading": "more threads (num_threads=), files on this machine, or an eager source where the "
    "data fit into memory",
    "decoding and transforming": "more threads (num_threads=), a cheaper transform, smaller "
    "images, or an eager source, which decodes and transforms once",
    "the transfer": "smaller columns, such as uint8 images that a stage makes floats of, smaller "
    "images, or an eager source, whose data stay on the devices",
}


def told_of_stall(stall: InputStall) -> str:
    """Returns what to say of an input stall, and of a large one how to shorten it."""
    shares = stall.reading, stall.decoding, stall.transfer
    parts = dict(zip(_REMEDIES, shares, strict=True))
    line = f"Input stall, the share of the time that the devices waited for data: {stall:.1%}"
    if not stall:
        return f"{line}."
    line += f": {', '.join(f'{name} {share:.1%}' for name, share in parts.items())}."
    remedy = f" To shorten it: {_REMEDIES[max(parts, key=parts.__getitem__)]}."
    return line + remedy * (stall > STALL)


def some(records: np.ndarray, most: int = 8) -> str:
    """Returns the names of the first few records and how many others there are.

    Example:
        >>> some(np.array([[0, 12], [1, 5], [0, 3]]), most=2)
        '12 of source 0, 5 of source 1 and 1 others'
    """
    told, others = ", ".join(map(name_of, records[:most].tolist())), len(records) - most
    return f"{told} and {others} others" if others > 0 else told


def told_of_end(status: str, step: int, workdir: Any) -> str:
    """Returns what to say of a run that ended after `step` steps, before its last, or nothing."""
    why = {"preempted": "SIGTERM came", "stopped": "Ctrl-C or a callback stopped the run"}
    if status not in why:
        return ""
    further = "the next fit() goes on from there"
    if workdir is not None:
        further = f"it is saved, and the same script goes on from there, in {workdir}"
    return f"{why[status]} after step {step}: {further}."
