"""Cycle walking: values are encrypted again until they fall inside a range that is no power of two.

Black and Rogaway, "Ciphers with arbitrary finite domains", 2002.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def walk(
    encrypt: Callable,
    outside: Callable,
    value: jax.Array,
    *operands: jax.Array,
    loop: Callable | None = None,
) -> jax.Array:
    """Encrypts each value at least once, and again until it is inside the range; traceable.

    Args:
        encrypt: `(value, *operands) -> value`, elementwise.
        outside: `(value, *operands) -> bool`, elementwise.
        value: `uint32` of shape `(size,)`.
        *operands: `uint32` of the same shape, or scalars.
        loop: `(value, *operands) -> value` that does the same, and faster where it is no GPU.

    Returns:
        `uint32` array of shape `(size,)`.
    """

    def plain(value, *operands):
        def is_outside(value):
            return jnp.any(outside(value, *operands))

        def go_on(value):
            return jnp.where(outside(value, *operands), encrypt(value, *operands), value)

        return lax.while_loop(is_outside, go_on, encrypt(value, *operands))

    loop = loop or plain
    if jax.default_backend() != "gpu":
        return loop(value, *operands)
    # A loop of XLA's asks the host at every turn there, which takes longer than the turn.
    from datarax.order import walk_gpu  # of use nowhere else, and slow to import

    def kerneled(value, *operands):
        return walk_gpu.walk(encrypt, outside, value, *operands)

    return lax.platform_dependent(value, *operands, cuda=kerneled, default=loop)
