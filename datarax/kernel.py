"""The walk of the order in one kernel: on a GPU, a loop of XLA's asks the host at every turn."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from datarax.cipher import encrypt, joined, split

_WARP = 32  # positions that walk together: as long as the slowest of them


def records(
    position: jax.Array, *keys: jax.Array, width: int, largest: int, interpret: bool = False
) -> jax.Array:
    """Encrypts positions until each is at most `largest`.

    Args:
        position: `uint32` of shape `(size,)`.
        *keys: Round keys, scalars.
        width: Bits of a word of the cipher.
        largest: The last record.
        interpret: Whether to run it without a GPU, to test it.

    Returns:
        `uint32` array of shape `(size,)`.
    """

    def kernel(position, keys, record):
        rounds = [keys[i] for i in range(keys.shape[0])]

        def encrypted(value):
            return joined(encrypt(split(value, width, jnp.uint32), rounds, width), width)

        def walk(value):
            return jnp.where(value > np.uint32(largest), encrypted(value), value)

        def goes_on(value):
            return jnp.max(value) > np.uint32(largest)

        record[...] = lax.while_loop(goes_on, walk, encrypted(position[...]))

    size = position.size
    warps = -(-size // _WARP)
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((warps * _WARP,), jnp.uint32),
        grid=(warps,),
        in_specs=[
            pl.BlockSpec((_WARP,), lambda i: (i,)),
            pl.BlockSpec((len(keys),), lambda i: (0,)),
        ],
        out_specs=pl.BlockSpec((_WARP,), lambda i: (i,)),
        compiler_params=triton.CompilerParams(num_warps=1),
        interpret=interpret,
    )
    padded = jnp.pad(position.astype(jnp.uint32), (0, warps * _WARP - size))
    return call(padded, jnp.stack(keys).astype(jnp.uint32))[:size]
