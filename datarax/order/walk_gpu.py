"""Cycle walking (`datarax.order.walk`) in one kernel of a GPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_WARP = 32  # values that walk together, until the slowest one is inside


def walk(
    encrypt: Callable, outside: Callable, value: jax.Array, *operands: jax.Array, interpret=False
) -> jax.Array:
    """Encrypts each value at least once, and again until it is inside the range.

    Args:
        encrypt: `(value, *operands) -> value`, elementwise.
        outside: `(value, *operands) -> bool`, elementwise.
        value: `uint32` of shape `(size,)`.
        *operands: `uint32` of the same shape, or scalars.
        interpret: Whether to run it without a GPU, to test it.

    Returns:
        `uint32` array of shape `(size,)`.
    """

    def kernel(value, *rest):
        *operands, out = rest
        operands = [
            ref[0] if x.ndim == 0 else ref[...] for ref, x in zip(operands, given, strict=True)
        ]

        def go_on(value):
            return jnp.where(outside(value, *operands), encrypt(value, *operands), value)

        def is_outside(value):
            return jnp.max(outside(value, *operands).astype(jnp.int32)) > 0

        out[...] = lax.while_loop(is_outside, go_on, encrypt(value[...], *operands))

    given, warps = operands, -(-value.size // _WARP)
    each, one = pl.BlockSpec((_WARP,), lambda i: (i,)), pl.BlockSpec((1,), lambda i: (0,))

    def padded(x):
        more = warps * _WARP - value.size
        return jnp.pad(x, (0, more), mode="edge") if x.ndim else x[None]

    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((warps * _WARP,), jnp.uint32),
        grid=(warps,),
        in_specs=[each, *(each if x.ndim else one for x in operands)],
        out_specs=each,
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=interpret,
    )
    return call(padded(value), *map(padded, operands))[: value.size]
