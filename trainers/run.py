"""A run: what callbacks see of it, and what a checkpoint keeps."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

from flax import nnx

PLACE = "step", "epoch", "rows_seen", "tokens_seen"
"""What a row of the history tells of where the run stands; the rest of it are metrics."""

Status = Literal["finished", "stopped", "preempted", "diverged"]


class InputStall(float):
    """The share of a run's time in which its devices waited for data, from 0 to 1.

    It counts from the first step on, without compiling; the first data are not waited for in it.

    Args:
        reading: The share that reading took, from files, the network or a subclass's `read_rows`.
        decoding: The share that decoding and transforming took.
        transfer: The share that the transfer to the devices took.

    Example:
        >>> stall = InputStall(0.25, 0.5, 0.0)
        >>> stall, stall.decoding
        (0.75, 0.5)
    """

    reading: float
    decoding: float
    transfer: float

    def __new__(cls, reading: float = 0.0, decoding: float = 0.0, transfer: float = 0.0) -> Self:
        stall = super().__new__(cls, reading + decoding + transfer)
        stall.reading, stall.decoding, stall.transfer = reading, decoding, transfer
        return stall

    def __getnewargs__(self) -> tuple[float, float, float]:
        return self.reading, self.decoding, self.transfer


class Run:
    """A run at an exact step, as callbacks see it.

    What a callback must remember it takes from `history`: that is saved, so a resumed run decides
    as the uninterrupted one.

    Attributes:
        step: Number of finished steps.
        steps: Number of steps of the whole run; None while nobody knows how long a stream's epochs
            are.
        epoch: Number of finished epochs, with the fraction where an epoch's length is known.
        rows_seen: Number of records that counted in the finished steps.
        history: One dict a log, in order; a callback may add to the last.
        reported: The last step whose log, evaluation and callbacks are done.
        stopped: Whether a callback has stopped the run.
        status: How the run ended, None while it goes on.
        data_start: The step that began with batch 0: 0, unless the data was restarted.
        epoch_start: The step that began with the first batch of its epoch; noted of a stream.
        skips: Pairs of a step and the numbers of the records that are left out from there on; of a
            mixture, pairs of a source and its record.
        spikes: Steps whose loss stands out, in order: of each its `batch`, as in `batch_at`, and by
            how many `deviations`.
    """

    def __init__(
        self,
        steps: int | None,
        model: Callable[[], nnx.Module],
        optimizer_state: Callable[[], Any],
    ):
        self.step = 0
        self.steps = steps
        self.epoch = 0.0
        self.rows_seen = 0
        self.history: list[dict[str, Any]] = []
        self.reported = 0
        self.stopped = False
        self.status: Status | None = None
        self.data_start = 0
        self.epoch_start = 0
        self.skips: list[tuple[int, list[Any]]] = []
        self.spikes: list[dict[str, Any]] = []
        self._model, self._optimizer_state = model, optimizer_state

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric so far."""
        return {k: v for row in self.history for k, v in row.items() if k not in PLACE}

    def best(self, of: tuple[str, str] | None) -> tuple[int, float] | None:
        """Returns the step and the value of a metric's best evaluation so far.

        Args:
            of: `(metric, "min" | "max")`.

        Returns:
            `(step, value)`, the first of equals; None where there is none. NaN is never the best.
        """
        if of is None:
            return None
        metric, mode = of
        values = [(row["step"], row[metric]) for row in self.history if metric in row]
        values = [(step, value) for step, value in values if not math.isnan(value)]
        return {"min": min, "max": max}[mode](values, key=lambda v: v[1]) if values else None

    def model(self) -> nnx.Module:
        """Returns a copy of the model as it is at this step, in evaluation mode."""
        return self._model()

    def optimizer_state(self) -> Any:
        """Returns a copy of the optimizer's state at this step, as `optimizer.init` structures it.

        An injected rate is `run.optimizer_state().hyperparams["learning_rate"]`.
        """
        return self._optimizer_state()

    def log(self, values: Mapping[str, float]) -> None:
        """Adds values to the history's row of this step, and begins one where there is none.

        Args:
            values: Numbers by name, such as `{"train/learning_rate": 1e-3}`.
        """
        if not self.history or self.history[-1]["step"] != self.step:
            place = {"step": self.step, "epoch": self.epoch, "rows_seen": self.rows_seen}
            self.history.append(place)
        self.history[-1].update(values)

    def forget_report(self) -> None:
        """Takes back what was logged at this step, before its report is done."""
        self.history[:] = [row for row in self.history if row["step"] <= self.reported]

    def moves_to(self, step: int, epoch: float) -> None:
        """Notes that `step` steps and `epoch` epochs are finished."""
        if int(epoch) > int(self.epoch):
            self.epoch_start = step
        self.step, self.epoch = step, epoch

    def is_last(self, step: int) -> bool:
        """Returns whether the run ends after `step` steps."""
        return self.steps is not None and step >= self.steps

    def goes_back(self, step: int, epoch: float, rows_seen: int) -> None:
        """Forgets what was after `step` steps."""
        self.step, self.reported = step, min(step, self.reported)
        self.epoch, self.rows_seen = epoch, rows_seen
        self.history[:] = [row for row in self.history if row["step"] <= step]
        self.spikes[:] = [spike for spike in self.spikes if spike["batch"] < step - self.data_start]

    def skip(self, records: Iterable[Any]) -> bool:
        """Leaves out records from this step on; returns whether some were not left out before."""
        known = {record for _, before in self.skips for record in before}
        new = [record for record in records if record not in known]
        self.skips += [(self.step, new)] if new else []
        return bool(new)

    def takes(self, other: "Run") -> None:
        """Takes over where another run stands, and its history."""
        self.step, self.epoch, self.reported = other.step, other.epoch, other.reported
        self.rows_seen = other.rows_seen
        self.data_start, self.epoch_start = other.data_start, other.epoch_start
        self.history[:], self.stopped = other.history, other.stopped
        self.skips[:], self.spikes[:] = other.skips, other.spikes

    def settle(self) -> None:
        """Makes what callbacks added to the last row of the history plain numbers, to be saved.

        Raises:
            TypeError: If something in it is not a number.
        """
        for name, value in self.history[-1].items() if self.history else ():
            if not isinstance(value, int | float):
                if getattr(value, "size", None) != 1:
                    raise TypeError(
                        f"A callback put a {type(value).__name__} into run.history[-1][{name!r}]: "
                        "the history holds numbers, so write float(value)."
                    )
                self.history[-1][name] = value.item()


NO_STALL = InputStall()
