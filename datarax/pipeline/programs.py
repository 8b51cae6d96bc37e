"""The compiled programs that make batches of columns, with and without stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.rows import gather
from datarax.order import canonical, epochs


@functools.partial(jax.jit, static_argnums=(3, 4))
def window(columns, start, seed, size, num_records):
    """Returns `order.window`'s rows of the columns, and which they are."""
    records = epochs.window(start, size, num_records=num_records, seed=seed)
    return gather(columns, records), records


@functools.partial(jax.jit, static_argnums=(4, 5))
def run_on(columns, epoch, index, seed, size, num_records):
    """Returns `order.run_on`'s rows of the columns, and which they are."""
    records = epochs.run_on(epoch, index, size, num_records=num_records, seed=seed)
    return gather(columns, records), records


@functools.partial(jax.jit, static_argnums=0)
def step(static, state, epoch, index, data):
    """Returns the batch at a position after the stages, their new state, and its records.

    Args:
        static: Batch size, number of records, number of canonical shards, and the stages'
            definition.
        state: The stages' state.
        epoch: The epoch, `int32`.
        index: Position within it, `int32`.
        data: The columns, the order's seed or None, and the stages' key.
    """
    size, length, shards, definition = static
    columns, seed, key = data
    records = canonical.run_on(epoch, index, size, num_records=length, seed=seed, shards=shards)
    position = index.astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)
    epochs = epoch.astype(jnp.uint32) + position // np.uint32(length)
    stages = nnx.merge(definition, state, copy=True)
    batch = stages(gather(columns, records), key, epochs, position % np.uint32(length))
    return batch, nnx.state(stages), records


@functools.partial(jax.jit, static_argnums=0)
def stage(definition, state, batch, key, epoch, places):
    """Returns a batch after the stages, and their new state.

    Args:
        definition: The stages' definition.
        state: Their state.
        batch: Nested dict of arrays of shape `(size, ...)`.
        key: The stages' key.
        epoch: The batch's epoch, `uint32`.
        places: Where its records are in the epoch, `uint32` of shape `(size,)`.
    """
    stages = nnx.merge(definition, state, copy=True)
    batch = stages(batch, key, jnp.full(len(places), epoch), places)
    return batch, nnx.state(stages)


@functools.partial(jax.jit, static_argnums=0)
def scan(static, start, data):
    """Returns where a user's function has come to after some batches, and its stacked results.

    Args:
        static: The function, how many batches, whether it has a carry, `step`'s three sizes, and
            the definition of the stages and the function's modules.
        start: Their state, epoch, index and the carry.
        data: As for `step`.
    """
    step_fn, length, carries, sizes, definition = static
    size, num_records, _ = sizes

    def body(carry, _):
        state, epoch, index, user = carry
        stages, modules = nnx.merge(definition, state, copy=True)
        stages_definition, stages_state = nnx.split(stages)
        batch, stages_state, _ = step((*sizes, stages_definition), stages_state, epoch, index, data)
        nnx.update(stages, stages_state)
        if carries:
            user, out = _pair(step_fn(user, *modules, batch))
        else:
            out = step_fn(*modules, batch)
        state = nnx.state((stages, modules))
        return (state, *advance(epoch, index, size, num_records), user), out

    return jax.lax.scan(body, start, length=length)


def advance(epoch, index, size, length):
    """Returns the position `size` records on, epoch and index `int32`."""
    # The sum may pass 2**31 - 1 near the largest length; as uint32 it does not overflow.
    index = index.astype(jnp.uint32) + np.uint32(size)
    epoch = epoch + (index // np.uint32(length)).astype(jnp.int32)
    return epoch, (index % np.uint32(length)).astype(jnp.int32)


def _pair(result):
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"step_fn returned a {type(result).__name__}: with init_carry it gets the carry and "
            "returns two things, return carry, out."
        )
    return result
