"""The compiled programs that make a pipeline's batches."""

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax.columns.rows import explained, gather
from datarax.pipeline.graph import formed


@partial(jax.jit, static_argnums=0)
def step(static: Any, state: Any, epoch: jax.Array, index: jax.Array, data: Any):
    """Returns the batch at a position after the stages, their new state, and its records.

    Args:
        static: The batch size, the absent host columns, and the stages' definition.
        state: The stages' state.
        epoch: The epoch, `int32`.
        index: Position within it, `int32`.
        data: The array columns, their `Order`, and the stages' key.
    """
    size, absent, definition = static
    columns, order, key = data
    epochs, positions = order.positions(epoch, index, size)
    records = order.records(epochs, positions)
    stored = gather(columns, records, absent)
    return *formed(definition, state, stored, key, epochs, positions), records


@partial(jax.jit, static_argnums=0)
def stage(static: Any, state: Any, batch: Any, key: jax.Array, epoch: Any, ranks: Any):
    """Returns a batch after the stages, and their new state.

    Args:
        static: The absent host columns, and the stages' definition.
        state: Their state.
        batch: Nested dict of arrays of shape `(size, ...)`.
        key: The stages' key.
        epoch: The batch's epoch, `uint32`; or that of each record, of shape `(size,)`.
        ranks: Position of each record in the epoch, `uint32` of shape `(size,)`.
    """
    absent, definition = static
    epochs = jax.numpy.broadcast_to(epoch, np.shape(ranks))
    return formed(definition, state, explained(batch, absent), key, epochs, ranks)


@partial(jax.jit, static_argnums=0)
def scan(static: Any, start: Any, data: Any):
    """Returns where a user's function has come to after some batches, and its stacked results.

    Args:
        static: The function, the number of batches, whether it has a carry, the batch size, the
            absent host columns, and the definition of the stages and the function's modules.
        start: Their state, epoch, index and the carry.
        data: As for `step`.
    """
    step_fn, length, carries, size, absent, definition = static
    order = data[1]

    def body(carry, _):
        state, epoch, index, user = carry
        stages, modules = nnx.merge(definition, state, copy=True)
        stages_definition, stages_state = nnx.split(stages)
        static = size, absent, stages_definition
        batch, stages_state, _ = step(static, stages_state, epoch, index, data)
        nnx.update(stages, stages_state)
        if carries:
            user, out = _pair(step_fn(user, *modules, batch))
        else:
            out = step_fn(*modules, batch)
        state = nnx.state((stages, modules))
        return (state, *order.advanced(epoch, index, size), user), out

    return jax.lax.scan(body, start, length=length)


def _pair(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"step_fn returned a {type(result).__name__}: with init_carry it gets the carry and "
            "returns two things, return carry, out."
        )
    return result
