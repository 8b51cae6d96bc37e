"""Draws of a mixture: which source each record is of, in fixed proportions."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from datarax.errors import expect_between

_ROUND = 1000  # draws in which the proportions hold


class MixtureDraws:
    """A sequence of draws without end, each of one source.

    Each round of 1,000 draws holds `1000 * weight` of each source, to within one, evenly spread;
    over many rounds the proportions are exact.

    Args:
        weights: One positive number a source; only their proportions count.

    Attributes:
        done: How many draws there were.
        ups: How often each source's share of a round was rounded up so far.
    """

    def __init__(self, weights: Sequence[float]):
        total = sum(Fraction(weight) for weight in weights)
        self.weights = tuple(float(Fraction(weight) / total) for weight in weights)
        self._shares = tuple(Fraction(weight) / total * _ROUND for weight in weights)
        self.restart()

    def restart(self) -> None:
        """Goes back to the first draw."""
        self.go_to(0, (0,) * len(self._shares))

    def go_to(self, done: int, ups: Sequence[int]) -> None:
        """Goes to where the attributes were these."""
        self.done, self.ups = done, tuple(ups)

    def expect_reached(self, done: int, ups: Sequence[int]) -> None:
        """Raises `ValueError` unless the attributes can ever be these."""
        expect_between("index", done, 0, 2**63 - 1)
        rounds = done // _ROUND
        for up in ups:
            expect_between("ups", up, 0, rounds)
        rest = _ROUND - sum(int(share) for share in self._shares)  # rounded up in every round
        if len(ups) != len(self._shares) or sum(ups) != rounds * rest:
            raise ValueError(f"ups={list(ups)}: expected those after {rounds} rounds of draws.")

    def take(self, count: int) -> np.ndarray:
        """Returns which source each of the next draws is of, int64 of shape `(count,)`."""
        found = []
        while count:
            start = self.done % _ROUND
            chosen, ups = self._round()
            found.append(chosen[start : start + count])
            count -= len(found[-1])
            done = self.done + len(found[-1])
            self.go_to(done, self.ups if done % _ROUND else ups)
        return np.concatenate(found)

    def _round(self) -> tuple[np.ndarray, tuple[int, ...]]:
        """Returns the sources of this round's draws, and `ups` after it.

        Every source gets its share rounded down or up; up those that have been given least so far.
        """
        shares, ups, number = self._shares, self.ups, self.done // _ROUND
        low = [int(share) for share in shares]
        owed = [(number + 1) * (s - n) - up for s, n, up in zip(shares, low, ups, strict=True)]
        most = sorted(range(len(shares)), key=lambda n: (-owed[n], n))[: _ROUND - sum(low)]
        counts = [n + (number in most) for number, n in enumerate(low)]
        due = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
        chosen = np.repeat(np.arange(len(counts)), counts)[np.argsort(due, kind="stable")]
        return chosen, tuple(up + (number in most) for number, up in enumerate(ups))
