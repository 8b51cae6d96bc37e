"""The block cipher behind the order of records: Grain's, in `jax.numpy`, or NumPy where given that.

Simon's round function (Beaulieu et al., "The SIMON and SPECK families of lightweight block
ciphers", 2013) in a Feistel network of two words, with the round keys of C++'s `std::seed_seq`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

Words = tuple[Any, Any]
"""Left and right words of blocks, of `jax.numpy` or of NumPy."""


def word_type(width: int) -> type:
    """Returns the narrowest dtype of words that holds `width` bits, from 8 to 16.

    A vector register holds most words of the narrowest dtype.
    """
    return jnp.uint8 if width == 8 else jnp.uint16


def split(block: Any, width: int, word: type | None = None) -> Words:
    """Returns the left and the right word of blocks of `2 * width` bits.

    Args:
        block: The blocks.
        width: Bits of a word.
        word: Dtype of the words; None: the narrowest.
    """
    word = word or word_type(width)
    mask = np.asarray((1 << width) - 1, word)
    return (block >> np.asarray(width, block.dtype)).astype(word), block.astype(word) & mask


def joined(words: Words, width: int) -> Any:
    """Returns the blocks that two words make: `uint16` of 8-bit words, else `uint32`."""
    block = jnp.uint16 if words[0].dtype == jnp.uint8 else jnp.uint32
    left, right = (word.astype(block) for word in words)
    return (left << np.asarray(width, block)) | right


def encrypt(words: Words, keys: Any, width: int) -> Words:
    """Encrypts blocks given as their two words.

    Args:
        words: Left and right words, of one shape, below `2**width`.
        keys: Round keys, an even number of them along the first axis; scalars, or of the words'
            shape.
        width: Bits of a word.
    """
    word = words[0].dtype
    mask = np.asarray((1 << width) - 1, word)

    def rotate(x, by):  # bits above the word's are left over, for `mix` to mask
        by %= width
        return (x << np.asarray(by, word)) | (x >> np.asarray(width - by, word)) if by else x

    def mix(x):
        return ((rotate(x, 1) & rotate(x, 8)) ^ rotate(x, 2)) & mask

    left, right = words
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ mix(right) ^ even
        right = right ^ mix(left) ^ odd
    return left, right


def round_keys(seed: Any, rounds: int, width: int) -> list[Any]:
    """Draws `rounds` keys from `std::seed_seq{seed}`, as the C++ standard ([rand.util.seedseq])."""
    n = rounds
    lag = 11 if n >= 623 else 7 if n >= 68 else 5 if n >= 39 else 3 if n >= 7 else (n - 1) // 2
    first = (n - lag) // 2
    second = first + lag
    words = [seed * np.uint32(0) + np.uint32(0x8B8B8B8B)] * n

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
    return [(word & mask).astype(word_type(width)) for word in words]


def avalanche(x):
    """MurmurHash3's 32-bit finalizer (Appleby, 2011): every bit spreads over all; 0 stays 0."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
