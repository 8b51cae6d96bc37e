"""The order of a stream's records: arithmetic on (seed, epoch, stream, window)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datarax.order.cipher import avalanche
from datarax.order.permutation import index_shuffle

_WORD = 2**64 - 1


def permutation(length: int, *key: int) -> np.ndarray:
    """Returns a pseudo-random permutation of a short range: a sort by hashes.

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
        seed = _mix(seed ^ word)
    bits = max(length - 1, 1).bit_length()
    index, hashes = (column[:length] for column in _hashed(bits))
    keys = _keyed(hashes, seed)
    if bits > 14:  # of 32, too few would be left to sort by
        keys = keys.astype(np.uint64) << np.uint64(32) | _keyed(hashes, _mix(seed))
    # A key's lower bits give way to the index: no two are equal, so any sort gives the same.
    low = keys.dtype.type(2**bits - 1)
    keys &= ~low
    keys |= index
    keys.sort()
    keys &= low
    return keys.astype(np.int64)


@lru_cache(maxsize=2)  # windows of a stream have about one length
def _hashed(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a range and its hashes."""
    index = np.arange(2**bits, dtype=np.uint32)
    return index, avalanche(index)


def _keyed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Returns other hashes for each seed of 64 bits."""
    x = hashes ^ np.uint32(seed & 0xFFFFFFFF)
    x *= np.uint32(seed >> 32 | 1)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    return x


def _mix(x: int) -> int:
    """SplitMix64's output function (Steele, Lea and Flood, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


@dataclass(frozen=True)
class ShuffleOrder:
    """The order of a stream's records.

    Args:
        shuffle: Whether each epoch has its own random order.
        seed: Seed of that order; epoch `e` follows `(seed + e) % 2**32`.
        shuffle_buffer_size: How many rows are shuffled together.
        streams: The number of canonical streams that the shards are dealt to.
    """

    shuffle: bool
    seed: int
    shuffle_buffer_size: int
    streams: int = 1

    def shards(self, num_shards: int, epoch: int, stream: int) -> list[int]:
        """Returns the shards of one canonical stream in one epoch, in order."""
        ids = np.arange(num_shards)
        if self.shuffle:
            seed = np.uint32(self.epoch_seed(epoch))
            ids = np.asarray(index_shuffle(ids, num_records=num_shards, seed=seed))
        return ids[stream :: self.streams].tolist()

    def epoch_seed(self, epoch: int) -> int:
        """Returns the seed of an epoch's order."""
        return (self.seed + epoch) % 2**32
