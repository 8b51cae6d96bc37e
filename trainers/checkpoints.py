"""Checkpoints: when to save and what to keep."""

import dataclasses

from datarax.errors import expect_between


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When to save and what to keep.

    The last step is always saved, and so is the step at which a run is stopped or preempted.

    Args:
        every: Steps between two checkpoints.
        keep: How many of the newest to keep.
        best: `(metric, "min" | "max")`, such as `("eval/accuracy", "max")`: the checkpoint with the
            best value is kept beside them, under `<workdir>/best`.
        every_minutes: Minutes between two checkpoints, beside `every`.

    Raises:
        ValueError: If a number is not positive or `best` is no such pair.
    """

    every: int = 1000
    keep: int = 3
    best: tuple[str, str] | None = None
    every_minutes: float | None = None

    def __post_init__(self):
        expect_between("every", self.every, 1, 2**31 - 1)
        expect_between("keep", self.keep, 1, 2**31 - 1)
        if self.best is not None and (len(self.best) != 2 or self.best[1] not in ("min", "max")):
            raise ValueError(f'best={self.best!r}: expected a pair as ("eval/accuracy", "max").')
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(f"every_minutes={self.every_minutes}: expected a positive number.")
