"""A pseudo-random permutation evaluated at any position: Grain's `index_shuffle` in `jax.numpy`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax.errors import expect_between
from datarax.order.cipher import encrypt, joined, round_keys, split
from datarax.order.walk import walk

ROUNDS = 8
"""Cipher rounds of an epoch's order. At 4, Grain's usual number, neighbours stay together."""

MAX_RECORDS = 2**31
"""Positions are `int32`, as everywhere in JAX without x64."""

_STOPS = 512  # values that cut the walks of a very short permutation into pieces
_FEW = 224  # records up to which that pays


def index_shuffle(index: Any, *, num_records: int, seed: Any, rounds: int = ROUNDS) -> jax.Array:
    """Returns the record at each position of a pseudo-random permutation of `num_records` records.

    Equal to `grain.experimental.index_shuffle(index, max_index=num_records - 1, seed=seed,
    rounds=rounds)` bit for bit, and a permutation also where Grain's is not (`2**even + 1` records:
    its block is one bit short there). Nothing of length `num_records` is ever formed.

    Positions are encrypted (`datarax.order.cipher`). Values outside the range are encrypted again
    until they fall inside (`datarax.order.walk`).

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
    return _index_shuffle(integers("index", index), seed, num_records, rounds)


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
    # As one array behind a barrier: XLA would compute each key anew from the seed, 1,000 operations
    # instead of 200 in the compiled program, and 0.1 s more of compiling it.
    keys = jnp.stack(round_keys(seed.reshape(-1) if seed.ndim else seed, rounds, width))
    keys = lax.optimization_barrier(keys)
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
    block = jnp.uint16 if width == 8 else jnp.uint32

    def encrypted(value, *keys):
        return joined(encrypt(split(value, width, jnp.uint32), keys, width), width)

    def outside(value, *_):
        return value > np.uint32(num_records - 1)

    def loop(value, *_):
        words = encrypt(split(value.astype(block), width), keys, width)
        words = _walk(_paired(words), keys, width, num_records - 1)
        return joined((words[:, 1], words[:, 0]), width).astype(jnp.uint32)

    wide = keys.astype(jnp.uint32)
    return walk(encrypted, outside, position.astype(jnp.uint32), *wide, loop=loop).astype(block)


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
    rest = _indices(outside(words[:, 1], words[:, 0]), few)
    keys = keys[:, rest] if keys.ndim == 2 else keys
    # `_indices` pads with any indices. That is safe: equal inputs walk to equal values, and a value
    # inside the range is a fixed point.
    return words.at[rest].set(_walk(words[rest], keys, width, largest))


def _indices(mask, size):
    """Returns the at most `size` indices where a mask holds, padded with any others."""

    def add(index, found):
        indices, count = found
        indices = lax.dynamic_update_index_in_dim(indices, index.astype(jnp.int32), count, 0)
        return indices, count + mask[index].astype(jnp.int32)

    # One by one: a cumulative sum and a scatter take twice as long for so few.
    indices = jnp.zeros(size + 1, jnp.int32)
    return lax.fori_loop(0, mask.size, add, (indices, jnp.int32(0)))[0][:size]


def integers(name: str, value: Any) -> jax.Array:
    """Returns `value` as a JAX array, or raises `TypeError` where it holds no integers."""
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, np.integer):
        raise TypeError(f"{name}={value}: expected an integer, found {value.dtype}.")
    return value


def _short(position, keys, num_records):
    """Does what `_records` does, for at most `_FEW` records.

    Their walks take thousands of steps each: 1.6 ms a batch of 10 records. So a walk sets out from
    each value below `_STOPS` and ends at the first such value; the pieces are joined by doubling
    their length ("pointer jumping": Wyllie, "The complexity of parallel computations", 1979).
    """
    own = jnp.arange(_STOPS, dtype=jnp.uint16)
    following = _records(own, keys, 8, _STOPS)
    ends = jnp.where(own < num_records, own, following)  # a piece ends at a record

    def doubled(_, ends):
        return ends.at[ends].get(mode="promise_in_bounds")

    ends = lax.fori_loop(0, (_STOPS - 1).bit_length(), doubled, ends)
    return ends[following[position]]
