"""The order on the host: Grain's `index_shuffle` in NumPy, without a device or a compiler."""

from functools import lru_cache

import numpy as np

from datarax.order.cipher import encrypt, joined, round_keys, split
from datarax.order.permutation import ROUNDS


def host_index_shuffle(index: np.ndarray, *, num_records: int, seed: int) -> np.ndarray:
    """Returns what `index_shuffle` does, bit for bit, as a NumPy array.

    Args:
        index: Positions, integers of shape `(size,)`; taken modulo `num_records`.
        num_records: Length of the permutation, from 1 to 2**31.
        seed: The seed, from 0 to 2**32 - 1.

    Returns:
        `int64` array of shape `(size,)`, values in `[0, num_records)`.

    Example:
        >>> host_index_shuffle(np.arange(5), num_records=5, seed=42)
        array([1, 0, 2, 4, 3])
    """
    value = (np.asarray(index) % num_records).astype(np.uint32)
    if num_records == 1:
        return value.astype(np.int64)
    width = (max((num_records - 1).bit_length(), 16) + 1) // 2
    if width == 8:  # walks are long where there are few records: a step is a look into a table
        table = _encrypted_blocks(seed)

        def encrypted(value: np.ndarray) -> np.ndarray:
            return table[value]
    else:
        keys = _keys(seed, width)

        def encrypted(value: np.ndarray) -> np.ndarray:
            return joined(encrypt(split(value, width), keys, width), width)

    value = encrypted(value)
    outside = np.flatnonzero(value >= num_records)
    while len(outside):
        value[outside] = encrypted(value[outside])
        outside = outside[value[outside] >= num_records]
    return value.astype(np.int64)


@lru_cache(maxsize=8)  # 128 KB for each epoch that is read now
def _encrypted_blocks(seed: int) -> np.ndarray:
    """Returns the encryption of every block of 16 bits."""
    blocks = np.arange(2**16, dtype=np.uint32)
    return joined(encrypt(split(blocks, 8), _keys(seed, 8), 8), 8)


def _keys(seed: int, width: int) -> list[np.ndarray]:
    # As an array: sums of NumPy's scalars warn where they pass 2**32.
    return round_keys(np.asarray([seed], np.uint32), ROUNDS, width)
