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

from datarax.errors import expect_between

ROUNDS = 8
"""Cipher rounds of an epoch's order. At 4, Grain's usual number, neighbours stay together."""

MAX_RECORDS = 2**31
"""Positions are `int32`, as everywhere in JAX without x64."""


def index_shuffle(index, *, num_records: int, seed, rounds: int = ROUNDS) -> jax.Array:
    """Returns the record at each position of a pseudo-random permutation of `num_records` records.

    Equal to `grain.experimental.index_shuffle(index, max_index=num_records - 1, seed=seed,
    rounds=rounds)` bit for bit, and a permutation also where Grain's is not (`2**even + 1` records:
    its block is one bit short there). Nothing of length `num_records` is ever formed.

    The cipher is Simon's round function (Beaulieu et al., "The SIMON and SPECK families of
    lightweight block ciphers", 2013) in a Feistel network with the round keys of C++'s
    `std::seed_seq`; values outside the range are encrypted again until they fall inside ("cycle
    walking": Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

    Args:
        index: Positions, integers of any shape, concrete or traced; taken modulo `num_records`.
        num_records: Length of the permutation, a Python int from 1 to 2**31.
        seed: Integer from 0 to 2**32 - 1, concrete or traced; an array broadcasts against `index`.
        rounds: Cipher rounds, even, from 4 to 1024.

    Returns:
        `int32` array of `index`'s shape (broadcast with `seed`), values in `[0, num_records)`.

    Raises:
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
    return _index_shuffle(index, seed, num_records, rounds)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _index_shuffle(index, seed, num_records, rounds):
    index = jnp.asarray(index).astype(jnp.uint32) % np.uint32(num_records)
    seed = jnp.asarray(seed).astype(jnp.uint32)
    if seed.ndim:
        index, seed = jnp.broadcast_arrays(index, seed)
    if num_records == 1:
        return jnp.zeros(index.shape, jnp.int32)

    # Grain takes ceil(log2(max_index)) for the width, which is one bit short at 2**even + 1.
    bits = max((num_records - 1).bit_length(), 16)
    width = (bits + 1) // 2
    block = jnp.uint16 if width == 8 else jnp.uint32
    keys = _round_keys(seed, rounds, width)
    value = _encrypt(index.astype(block), keys, width)
    return _walk(value, keys, width, np.asarray(num_records - 1, block)).astype(jnp.int32)


def _walk(value, keys, width, largest):
    """Encrypts blocks above `largest` again until none is."""
    # A short permutation takes 2**16 / num_records walks on average, and the slowest of 128
    # positions five times as many: the last quarter of the positions walks on by itself.
    short = largest < 2**13
    few = value.size // 4 if short and value.ndim == 1 and value.size >= 32 else 0

    def walk(value):
        for _ in range(2 if short else 1):  # two spread the loop's overhead
            value = jnp.where(value > largest, _encrypt(value, keys, width), value)
        return value

    def go_on(value):
        outside = value > largest
        return jnp.sum(outside, dtype=jnp.int32) > few if few else jnp.any(outside)

    value = lax.while_loop(go_on, walk, value)
    if not few:
        return value
    outside = value > largest
    slot = jnp.where(outside, jnp.cumsum(outside) - 1, few)
    place = jnp.full(few, value.size).at[slot].set(jnp.arange(value.size), mode="drop")
    rest = value.at[place].get(mode="fill", fill_value=0)
    keys = [key.at[place].get(mode="clip") if key.ndim else key for key in keys]
    return value.at[place].set(_walk(rest, keys, width, largest), mode="drop")


def _encrypt(value, keys, width):
    """Encrypts blocks of two `width`-bit words with Simon's round function."""
    # The narrowest words that hold the bits: the most of them fit into a vector register.
    word = jnp.uint8 if width == 8 else jnp.uint16
    mask = np.asarray((1 << width) - 1, word)
    shift = np.asarray(width, value.dtype)

    def rotate(x, by):  # bits above the word's are left over, for `mix` to mask
        by %= width
        return (x << np.asarray(by, word)) | (x >> np.asarray(width - by, word)) if by else x

    def mix(x):
        return ((rotate(x, 1) & rotate(x, 8)) ^ rotate(x, 2)) & mask

    left, right = (value >> shift).astype(word), value.astype(word) & mask
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ mix(right) ^ even.astype(word)
        right = right ^ mix(left) ^ odd.astype(word)
    return (left.astype(value.dtype) << shift) | right.astype(value.dtype)


def _round_keys(seed, rounds, width):
    """Draws `rounds` keys from `std::seed_seq{seed}`, as the C++ standard ([rand.util.seedseq])."""
    n = rounds
    lag = 11 if n >= 623 else 7 if n >= 68 else 5 if n >= 39 else 3 if n >= 7 else (n - 1) // 2
    first = (n - lag) // 2
    second = first + lag
    words = [jnp.full_like(seed, 0x8B8B8B8B)] * n

    def scramble(x):
        return x ^ (x >> np.uint32(27))

    for k in range(n):
        i, p, q = k, (k + first) % n, (k + second) % n
        a = np.uint32(1664525) * scramble(words[i] ^ words[p] ^ words[k - 1])
        b = a + (np.uint32(1) if k == 0 else np.uint32(1) + seed if k == 1 else np.uint32(k))
        words[p], words[q] = words[p] + a, words[q] + b
        words[i] = b
    for k in range(n):
        i, p, q = k, (k + first) % n, (k + second) % n
        a = np.uint32(1566083941) * scramble(words[i] + words[p] + words[k - 1])
        b = a - np.uint32(k)
        words[p], words[q] = words[p] ^ a, words[q] ^ b
        words[i] = b
    mask = np.uint32((1 << width) - 1)
    return [word & mask for word in words]


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
    start = jnp.asarray(start)
    if num_records > np.iinfo(start.dtype).max:  # 2**31 divides 2**32: wrapping does no harm
        start = start.astype(jnp.uint32)
    return (start % np.asarray(num_records, start.dtype)).astype(jnp.uint32)


def _arange(size):
    return jnp.arange(size, dtype=jnp.uint32)


def steps_per_epoch(num_records: int, batch_size: int) -> int:
    """Returns `ceil(num_records / batch_size)`: the last batch of an epoch may be partly filled."""
    return -(-num_records // batch_size)
