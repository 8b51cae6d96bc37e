"""The order of a stream's records: arithmetic on (seed, epoch, stream, window)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from datarax import order

_WORD = 2**64 - 1


def permutation(length: int, *key: int) -> np.ndarray:
    """Returns a pseudo-random permutation of a short range: a sort by SplitMix64 hashes.

    A window is permuted as a whole, and its length is seldom the same twice: `index_shuffle` would
    be compiled for each.

    Args:
        length: How many, up to 2**31.
        key: Integers that name the permutation.

    Returns:
        int64 array of shape `(length,)`.
    """
    seed = 0
    for word in key:
        seed = _mix(seed ^ word) & _WORD
    bits = np.uint64(max(length - 1, 1).bit_length())
    index = np.arange(length, dtype=np.uint64)
    # The hash's lower bits give way to the index: no two are equal, so any sort gives the same.
    keys = _mix(index + np.uint64(seed))
    keys >>= bits
    keys <<= bits
    keys |= index
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)


def _mix(x: Any) -> Any:
    """SplitMix64's output function (Steele, Lea and Flood, 2014), of an array or an integer."""
    if isinstance(x, int):
        x = (x + 0x9E3779B97F4A7C15) & _WORD
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
        return x ^ (x >> 31)
    x = x + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


@dataclass(frozen=True)
class Order:
    """The order of a stream's records.

    Args:
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order; epoch `e` follows `(seed + e) % 2**32`.
        window: How many rows are shuffled together.
        streams: The number of canonical streams that the shards are dealt to.
    """

    shuffle: bool
    seed: int
    window: int
    streams: int = 1

    def shards(self, num_shards: int, epoch: int, stream: int) -> list[int]:
        """Returns the shards of one canonical stream in one epoch, in order."""
        ids = np.arange(num_shards)
        if self.shuffle:
            seed = np.uint32(self.epoch_seed(epoch))
            ids = np.asarray(order.index_shuffle(ids, num_records=num_shards, seed=seed))
        return ids[stream :: self.streams].tolist()

    def epoch_seed(self, epoch: int) -> int:
        """Returns the seed of an epoch's order."""
        return (self.seed + epoch) % 2**32
