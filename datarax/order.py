"""The order of records: batch `t` is a pure function of (data, seed, `t`).

Order is arithmetic, not state. Epoch `e` of a source with seed `s` visits its records in the
permutation that `index_shuffle` gives for seed `(s + e) % 2**32`, evaluated at any position in O(1)
memory, inside a compiled program. Everything that hands out records goes through this module.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax.cipher import encrypt, joined, round_keys, split, word_type
from datarax.errors import expect_between
from datarax.walk import walk

ROUNDS = 8
"""Cipher rounds of an epoch's order. At 4, Grain's usual number, neighbours stay together."""

MAX_RECORDS = 2**31
"""Positions are `int32`, as everywhere in JAX without x64."""

_STOPS = 512  # values that cut the walks of a very short permutation into pieces
_FEW = 128  # records below which that pays


def index_shuffle(index, *, num_records: int, seed, rounds: int = ROUNDS) -> jax.Array:
    """Returns the record at each position of a pseudo-random permutation of `num_records` records.

    Equal to `grain.experimental.index_shuffle(index, max_index=num_records - 1, seed=seed,
    rounds=rounds)` bit for bit, and a permutation also where Grain's is not (`2**even + 1` records:
    its block is one bit short there). Nothing of length `num_records` is ever formed.

    Positions are encrypted (`datarax.cipher`), and values outside the range again until they fall
    inside (`datarax.walk`).

    Args:
        index: Positions, integers of any shape, concrete or traced; taken modulo `num_records`.
        num_records: Length of the permutation, a Python int from 1 to 2**31.
        seed: Integer from 0 to 2**32 - 1, concrete or traced; an array broadcasts against `index`.
        rounds: Cipher rounds, even, from 4 to 1024.

    Returns:
        `int32` array of `index`'s shape (broadcast with `seed`), values in `[0, num_records)`.

    Raises:
        TypeError: If `index` holds no integers.
        ValueError: If `num_records`, a concrete `seed` or `rounds` is out of its range.

    Example:
        >>> index_shuffle(jnp.arange(5), num_records=5, seed=42)
        Array([1, 0, 2, 4, 3], dtype=int32)
    """
    expect_between("num_records", num_records, 1, MAX_RECORDS)
    if not (4 <= rounds <= 1024 and rounds % 2 == 0):
        raise ValueError(f"rounds={rounds}: expected an even number from 4 to 1024.")
    if isinstance(seed, (int, np.integer)):
        expect_between("seed", seed, 0, 2**32 - 1)
        seed = np.uint32(seed)
    return _index_shuffle(_integers("index", index), seed, num_records, rounds)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _index_shuffle(index, seed, num_records, rounds):
    index = jnp.asarray(index).astype(jnp.uint32) % np.uint32(num_records)
    seed = jnp.asarray(seed).astype(jnp.uint32)
    if seed.ndim:
        index, seed = jnp.broadcast_arrays(index, seed)
    if num_records == 1:
        return jnp.zeros(index.shape, jnp.int32)

    # Grain takes ceil(log2(max_index)) for the width, which is one bit short at 2**even + 1.
    width = (max((num_records - 1).bit_length(), 16) + 1) // 2
    keys = round_keys(seed.reshape(-1) if seed.ndim else seed, rounds, width)
    position = index.reshape(-1)
    if not seed.ndim and num_records <= min(_FEW, 2 * position.size + 16):
        value = _whole_order(keys, num_records)[position]
    elif not seed.ndim and num_records <= position.size:  # no record walks twice
        value = _records(jnp.arange(num_records), keys, width, num_records)[position]
    else:
        value = _records(position, keys, width, num_records)
    return value.reshape(index.shape).astype(jnp.int32)


def _records(position, keys, width, num_records):
    """Encrypts positions until each is below `num_records`."""
    block, word = jnp.uint16 if width == 8 else jnp.uint32, word_type(width)

    def encrypted(value, *keys):
        return joined(encrypt(split(value, width, jnp.uint32), keys, width), width)

    def outside(value, *_):
        return value > np.uint32(num_records - 1)

    def loop(value, *keys):
        keys = [key.astype(word) for key in keys]
        words = encrypt(split(value.astype(block), width), keys, width)
        return _walk(joined(words, width), keys, width, num_records - 1).astype(jnp.uint32)

    keys = [key.astype(jnp.uint32) for key in keys]
    return walk(encrypted, outside, position.astype(jnp.uint32), *keys, loop=loop).astype(block)


def _walk(value, keys, width, largest):
    """Encrypts blocks above `largest` again until none is."""
    # A short permutation walks 2**16 / num_records times on average, the slowest of 128 positions
    # five times as often: whenever half of the positions are there, the others go on in less room.
    short = largest < 2**13
    few = value.size // 2 if short and value.size > 16 else 0
    # Counting who is there costs a third of a turn, so the longer the walks, the rarer it is.
    turns = max(1, 2**11 // (largest + 1))
    bound = np.asarray(largest, value.dtype)
    high, low = (np.asarray(word, word_type(width)) for word in divmod(largest, 1 << width))

    def turn(value):
        left, right = split(value, width)
        for _ in range(2 if short else 1):  # two spread the loop's overhead, more are slower
            # On words, since the vectors of a comparison of blocks would hold half as many.
            outside = (left > high) | ((left == high) & (right > low))
            left_after, right_after = encrypt((left, right), keys, width)
            left = jnp.where(outside, left_after, left)
            right = jnp.where(outside, right_after, right)
        return joined((left, right), width)

    def turns_of(value):
        return lax.fori_loop(0, turns, lambda _, value: turn(value), value)

    def go_on(value):
        return jnp.sum(value > bound, dtype=jnp.int32) > few

    value = lax.while_loop(go_on, turns_of if turns > 1 else turn, value)
    if not few:
        return value
    outside = value > bound
    slot = jnp.where(outside, jnp.cumsum(outside) - 1, few)
    place = jnp.full(few, value.size).at[slot].set(jnp.arange(value.size), mode="drop")
    rest = value.at[place].get(mode="fill", fill_value=0)
    keys = [key.at[place].get(mode="clip") if key.ndim else key for key in keys]
    return jnp.where(outside, _walk(rest, keys, width, largest)[slot], value)


def _whole_order(keys, num_records):
    """Returns the records at all positions of a very short permutation, `_STOPS` values or less.

    The few walks would take thousands of steps each. So many walks set out, one from each value
    below `_STOPS`, and end at the first such value; the pieces are joined by doubling their length
    ("pointer jumping": Wyllie, "The complexity of parallel computations", 1979).
    """
    following = _records(jnp.arange(_STOPS), keys, 8, _STOPS)
    for _ in range((_STOPS - 1).bit_length()):
        there = following < np.uint16(num_records)
        following = jnp.where(there, following, following[following])
    return following


def epoch_seed(seed, epoch) -> jax.Array:
    """Returns the seed of an epoch's order, `(seed + epoch) % 2**32`, as `uint32`."""
    if isinstance(seed, (int, np.integer)):
        seed = np.uint32(seed)
    return jnp.asarray(seed).astype(jnp.uint32) + jnp.asarray(epoch).astype(jnp.uint32)


def epoch_key(seed, epoch) -> jax.Array:
    """Returns the key that names an epoch's order to `get_batch_at`."""
    return jax.random.key(epoch_seed(seed, epoch))


def key_seed(key) -> jax.Array:
    """Mixes a key's words to one `uint32` seed, such that `jax.random.key(s)` gives `s`.

    Args:
        key: A typed key, or a raw `uint32` array of shape `(2,)` or `(4,)`; may be traced.

    Returns:
        `uint32` scalar. It depends on every word of the key.

    Raises:
        TypeError: If `key` is not one PRNG key.
    """
    key = jnp.asarray(key)
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if words.dtype != jnp.uint32 or words.shape not in ((2,), (4,)):
        raise TypeError(
            f"key={key}: expected one PRNG key. Write key=jax.random.key(0), or "
            "key=jax.random.fold_in(key, epoch) for an epoch of its own."
        )
    # threefry's key(s) is [0, s] and rbg's is [0, s, 0, s]: the other terms vanish there.
    seed = words[1] ^ avalanche(words[0])
    if words.shape == (4,):
        seed = seed ^ avalanche(avalanche(words[2] ^ words[0]) + (words[3] ^ words[1]))
    return seed


def avalanche(x):
    """MurmurHash3's 32-bit finalizer (Appleby, 2011): every bit spreads over all; 0 stays 0."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def window(start, size: int, *, num_records: int, seed=None) -> jax.Array:
    """Returns the records at `size` positions of one epoch, from `start` on, wrapping at its end.

    Args:
        start: First position, an integer, concrete or traced.
        size: How many positions, a Python int.
        num_records: Records in an epoch.
        seed: The epoch's seed, or None for the stored order.

    Returns:
        `int32` array of shape `(size,)`.
    """
    position = (_modulo(start, num_records) + _arange(size)) % np.uint32(num_records)
    if seed is None:
        return position.astype(jnp.int32)
    return index_shuffle(position, num_records=num_records, seed=seed)


def run_on(epoch, index, size: int, *, num_records: int, seed=None) -> jax.Array:
    """Returns the `size` records that follow position `index` of `epoch`, on into the next epochs.

    Args:
        epoch: The epoch, an integer, concrete or traced.
        index: Position within it, from 0 to `num_records`.
        size: How many records, a Python int.
        num_records: Records in an epoch.
        seed: The source's seed, or None for the stored order.

    Returns:
        `int32` array of shape `(size,)`.
    """
    position = jnp.asarray(index).astype(jnp.uint32) + _arange(size)
    within = position % np.uint32(num_records)
    if seed is None:
        return within.astype(jnp.int32)
    epochs = jnp.asarray(epoch).astype(jnp.uint32) + position // np.uint32(num_records)
    return index_shuffle(within, num_records=num_records, seed=epoch_seed(seed, epochs))


def _modulo(start, num_records):
    if isinstance(start, (int, np.integer)):
        return np.uint32(int(start) % num_records)
    start = _integers("start", start)
    if num_records > np.iinfo(start.dtype).max:  # 2**31 divides 2**32: wrapping does no harm
        start = start.astype(jnp.uint32)
    return (start % np.asarray(num_records, start.dtype)).astype(jnp.uint32)


def _integers(name, value):
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, np.integer):
        raise TypeError(f"{name}={value}: expected an integer, found {value.dtype}.")
    return value


def _arange(size):
    return jnp.arange(size, dtype=jnp.uint32)


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Returns `ceil(num_records / batch_size)`: the last batch of an epoch may be partly filled."""
    return -(-num_records // batch_size)
