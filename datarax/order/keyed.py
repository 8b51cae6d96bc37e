"""A pseudo-random permutation whose length may be traced, another one for each key.

`index_shuffle` needs its length while it is compiled. A view that draws from classes of different
sizes has another length at every position.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from datarax.order.cipher import avalanche

_ROUNDS = 6  # with 4, a permutation of 4 records is off its share of keys by a seventh, not 2 %
_GOLDEN = 0x9E3779B9  # 2**32 divided by the golden ratio: its multiples are far from each other


def keyed_permutation(index, length, key) -> jax.Array:
    """Returns where each index stands in a permutation; traceable, elementwise.

    A Feistel cipher over two digits of any radix, repeated until its result lies in the range
    ("generalized Feistel" and "cycle walking": Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002). The digits have at most `sqrt(length)` values more than the range, so few
    indices repeat.

    Args:
        index: `uint32` indices, each less than its `length`.
        length: `uint32` lengths from 1 to 2**31, of `index`'s shape.
        key: `uint32` keys, of `index`'s shape.

    Returns:
        `uint32` array of `index`'s shape; for each key a permutation of `range(length)`.
    """
    # One more than the root's floor: float32 has 24 bits, so the root may be one too small.
    high = jnp.sqrt(length.astype(jnp.float32)).astype(jnp.uint32) + np.uint32(1)
    low = (length + high - np.uint32(1)) // high
    keys = [avalanche(key + np.uint32(_GOLDEN * (i + 1) & 0xFFFFFFFF)) for i in range(_ROUNDS)]

    def shifted(digit, by, key, radix):
        # A product of 16-bit words, since a vector of remainders takes 10 times as long.
        digit = digit + ((avalanche(by ^ key) >> np.uint32(16)) * radix >> np.uint32(16))
        return jnp.where(digit >= radix, digit - radix, digit)

    def encrypted(digits):
        a, b = digits
        for a_key, b_key in zip(keys[::2], keys[1::2], strict=True):
            a = shifted(a, b, a_key, high)
            b = shifted(b, a, b_key, low)
        return a, b

    def outside(digits):
        return digits[0] * low + digits[1] >= length

    def turn(digits):
        again = outside(digits)
        return jax.tree.map(lambda new, old: jnp.where(again, new, old), encrypted(digits), digits)

    digits = encrypted((index // low, index % low))
    a, b = lax.while_loop(lambda digits: jnp.any(outside(digits)), turn, digits)
    return a * low + b
