"""Timing side by side: two programs run in turn, and the median of the ratios of their pairs.

A shared machine's speed changes from second to second. What runs in turn is slowed down alike, so a
ratio holds where times do not.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PAIRS = 15


@dataclasses.dataclass(frozen=True)
class Rival:
    """What the trainer is compared with.

    Args:
        run: Runs `steps` steps and returns when they are finished.
        steps: Number of steps of one call.
    """

    run: Callable[[], object]
    steps: int


class Turns:
    """A callback that lets rivals run between the trainer's steps, and times all of them.

    The trainer's time is all that passes from one call's end to the next call's begin: whole steps
    with their log rows, synchronisation and Python. Compilation falls before the first call, where
    the rivals compile too.

    Args:
        steps: Steps between two calls, `every(steps, turns)`.
        rivals: What runs in between, by name.
        pairs: How often each is timed.

    Example:
        >>> turns = Turns(500, {"mine": Rival(run_500_steps, 500)})
        >>> trainer = Trainer(model, source, steps=turns.total, callbacks=[every(500, turns)])
        >>> trainer.fit()
        >>> print(turns)
    """

    def __init__(self, steps: int, rivals: Mapping[str, Rival], pairs: int = PAIRS):
        self.steps = steps
        self.total = steps * (pairs + 1)
        self.rivals = dict(rivals)
        self.ours: list[float] = []  # seconds a step, one a pair, as below
        self.theirs: dict[str, list[float]] = {name: [] for name in rivals}
        self._begun: float | None = None

    def __call__(self, run: object) -> None:
        """Notes the trainer's time and runs the rivals."""
        now = time.perf_counter()
        if self._begun is None:
            for rival in self.rivals.values():
                rival.run()
        else:
            self.ours.append((now - self._begun) / self.steps)
            for name, rival in self.rivals.items():
                self.theirs[name].append(seconds(rival.run) / rival.steps)
        self._begun = time.perf_counter()

    def ratios(self, name: str) -> list[float]:
        """Returns a rival's time over the trainer's, a pair each: above 1 the trainer is faster."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs[name], strict=True)]

    def __str__(self) -> str:
        ours = f"trainer {statistics.median(self.ours) * 1e6:,.0f} us a step"
        lines = [f"  {name:32} {summary(self.ratios(name))}" for name in self.rivals]
        return "\n".join([*lines, f"  ({len(self.ours)} pairs; {ours})"])


def seconds(run: Callable[[], object]) -> float:
    """Returns how long one call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def peak_megabytes() -> float:
    """Returns this process's peak memory; `ru_maxrss` would be that of its parent, if larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def summary(values: list[float]) -> str:
    """Returns median and quartiles as text."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:8.3f}   (quartiles {low:.3f} to {high:.3f})"


def versions(*packages: str) -> str:
    """Returns the machine's cores and the versions of packages, on one line."""
    import importlib.metadata
    import os
    import platform

    found = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(found)}"
