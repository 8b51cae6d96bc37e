"""The kernel that walks on a GPU does what the loop does elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest

from datarax.order.cipher import encrypt as encrypt_words
from datarax.order.cipher import joined, round_keys, split
from datarax.order.walk import walk
from datarax.order.walk_gpu import walk as kernel_walk


def encrypt(value, largest, key):
    """A permutation of 16 bits."""
    return (value * np.uint32(25173) + key) & np.uint32(0xFFFF)


def outside(value, largest, key):
    """Whether a value is to walk on."""
    return value > largest


@pytest.mark.parametrize("size", [1, 32, 100])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_kernel_walks_as_the_loop_does(size, shape):
    value = jnp.arange(size, dtype=jnp.uint32) * 7
    largest = jnp.full(shape and size, 999, jnp.uint32) + (jnp.arange(size) % 3 if shape else 0)
    largest, key = largest.astype(jnp.uint32), jnp.uint32(13849)
    found = kernel_walk(encrypt, outside, value, largest, key, interpret=True)
    np.testing.assert_array_equal(found, walk(encrypt, outside, value, largest, key))
    assert int(found.max()) <= 1001


@pytest.mark.parametrize("width", [8, 11, 16])
def test_the_cipher_is_the_same_in_words_of_32_bits(width):
    blocks = jnp.arange(1000, dtype=jnp.uint32) * 65
    keys = round_keys(jnp.uint32(7), 8, width)
    wide = [key.astype(jnp.uint32) for key in keys]
    expected = joined(encrypt_words(split(blocks, width), keys, width), width)
    found = joined(encrypt_words(split(blocks, width, jnp.uint32), wide, width), width)
    np.testing.assert_array_equal(found, expected)
