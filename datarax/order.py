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
_FEW = 224  # records up to which that pays


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
        value = _short(position, keys, num_records)
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
        words = _walk(_paired(words), keys, width, num_records - 1)
        return joined((words[:, 1], words[:, 0]), width).astype(jnp.uint32)

    keys = [key.astype(jnp.uint32) for key in keys]
    return walk(encrypted, outside, position.astype(jnp.uint32), *keys, loop=loop).astype(block)


def _paired(words):
    """Returns left and right words of shape `(size,)` as `(size, 2)`, the right ones first.

    The widest number that a loop stores decides how many lanes XLA gives its vectors. Words have
    twice as many as blocks, and two arrays of words would be computed one after the other.
    """
    word = words[0].dtype
    return lax.bitcast_convert_type(joined(words, 8 * word.itemsize), word)


def _walk(words, keys, width, largest):
    """Encrypts blocks above `largest`, paired words, again until none is."""
    # A short permutation walks 2**16 / num_records times on average, the slowest of 128 positions
    # five times as often: whenever half of the positions are there, the others go on in less room.
    short = largest < 2**13
    few = len(words) // 2 if short and len(words) > 32 else 0
    # Counting who is there costs a third of a turn, so the longer the walks, the rarer it is.
    turns = max(1, 2**12 // (largest + 1))
    high, low = (np.asarray(word, words.dtype) for word in divmod(largest, 1 << width))

    def outside(left, right):
        return (left > high) | ((left == high) & (right > low))

    def turn(words):
        right, left = words[:, 0], words[:, 1]
        for _ in range(2 if short else 1):  # two spread the loop's overhead, more are slower
            again = outside(left, right)
            left_after, right_after = encrypt((left, right), keys, width)
            left = jnp.where(again, left_after, left)
            right = jnp.where(again, right_after, right)
        return _paired((left, right))

    def turns_of(words):
        return lax.fori_loop(0, turns, lambda _, words: turn(words), words)

    def go_on(words):
        return jnp.sum(outside(words[:, 1], words[:, 0]), dtype=jnp.int32) > few

    words = lax.while_loop(go_on, turns_of if turns > 1 else turn, words)
    if not few:
        return words
    place = _places(outside(words[:, 1], words[:, 0]), few)
    keys = [key[place] if key.ndim else key for key in keys]
    # A place that comes twice is walked to one value twice, and one that is there stays.
    return words.at[place].set(_walk(words[place], keys, width, largest))


def _places(mask, size):
    """Returns the at most `size` places where a mask holds; any others fill up what is left."""

    def add(place, found):
        places, count = found
        places = lax.dynamic_update_index_in_dim(places, place.astype(jnp.int32), count, 0)
        return places, count + mask[place].astype(jnp.int32)

    # One by one: a cumulative sum and a scatter take twice as long for so few.
    places = jnp.zeros(size + 1, jnp.int32)
    return lax.fori_loop(0, mask.size, add, (places, jnp.int32(0)))[0][:size]


def _short(position, keys, num_records):
    """Does what `_records` does, for a very short permutation, of at most `_STOPS` records.

    The few walks would take thousands of steps each. So many walks set out, one from each value
    below `_STOPS`, and end at the first such value; the pieces are joined by doubling their length
    ("pointer jumping": Wyllie, "The complexity of parallel computations", 1979).
    """
    own = jnp.arange(_STOPS, dtype=jnp.uint16)
    following = _records(own, keys, 8, _STOPS)
    ends = jnp.where(own < num_records, own, following)  # a piece ends at a record

    def doubled(_, ends):
        return ends.at[ends].get(mode="promise_in_bounds")

    ends = lax.fori_loop(0, (_STOPS - 1).bit_length(), doubled, ends)
    return ends[following[position]]


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
