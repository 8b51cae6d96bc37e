"""The logits of a language model: what they take of memory, and in how many slices."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from trainers.devices import memory
from trainers.step.objective import Objective
from trainers.step.precision import lower, lower_params

LARGEST = 2**27
"""Bytes of logits, as float32, above which a device computes its rows in slices: 128 MiB."""

MOST = 8
"""Slices at most: with an eighth of the logits it is other things that fill the memory, and a slice
must keep the device busy."""


@dataclasses.dataclass(frozen=True)
class Logits:
    """What the logits of the rows that a device computes together take.

    Args:
        nbytes: Bytes of them all, as float32.
        rows: Number of rows.
        slices: Into how many slices the rows are divided, one computed after the other.
    """

    nbytes: int
    rows: int
    slices: int

    def __str__(self) -> str:
        whole, part = memory.size(self.nbytes), memory.size(self.nbytes / self.slices)
        if self.slices == 1:
            return f"{whole} for {self.rows} rows at once"
        return f"{whole} for {self.rows} rows, {part} at once: computed in {self.slices} slices"


def _may_be_large(params: Any, spec: dict[str, Any], rows: int) -> bool:
    """Returns whether the logits of `rows` rows can take more than `LARGEST`.

    They are as wide as some parameter, and a row has at most as many tokens as its longest column:
    without a large one there is no need to trace the model for their shape.
    """
    width = max((max(np.shape(x), default=1) for x in jax.tree.leaves(params)), default=1)
    tokens = max((column.shape[0] for column in spec.values() if column.shape), default=1)
    return 4 * rows * tokens * width > LARGEST


def measured(
    objective: Objective,
    model: tuple[nnx.GraphDef, Any, Any],
    spec: dict[str, Any],
    rows: int,
    *,
    gradient: bool,
    if_large: bool = False,
) -> Logits | None:
    """Returns what the logits take, None where the loss is of no language model.

    With `if_large` it is None for small logits, too, of which there is nothing to decide.

    Rows are computed in slices where their logits take more than `LARGEST` and than the gradient
    that is held twice then, and where slices give what the whole gives, but for rounding: the model
    is given no random streams, and its call changes none of its variables, as BatchNorm does and
    Dropout, whose random streams are counted.

    Args:
        objective: The loss.
        model: The model's graph, its trained and its other variables, or their shapes.
        spec: Shape and dtype of one record of each column.
        rows: Number of rows that a device computes together.
        gradient: Whether there is a gradient, which slices hold twice.
        if_large: Whether small logits do not matter.
    """
    if not objective.by_token:
        return None
    if if_large and not _may_be_large(model[1:], spec, rows):
        return None
    definition, params, rest = model
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct((rows, *s.shape), s.dtype), spec)
    key = objective.key(0)
    unchanged = True

    def logits(params: Any, rest: Any, batch: Any) -> jax.Array:
        nonlocal unchanged
        lowered = lower(params, objective.precision), lower_params(rest, objective.precision)
        called = nnx.merge(definition, *lowered, copy=True)
        before = _values(called)
        _, outputs = objective.outputs(called, batch, key)
        after = _values(called)
        unchanged = all(after[path] is value for path, value in before.items())
        return outputs["logits"]

    shape = jax.eval_shape(logits, params, rest, batch).shape
    nbytes = 4 * int(np.prod(shape))
    held = memory.nbytes(params) if gradient else 0
    if key is not None or not unchanged or nbytes <= max(LARGEST, held):
        return Logits(nbytes, rows, 1)
    divisors = [n for n in range(1, MOST + 1) if rows % n == 0]
    enough = [n for n in divisors if nbytes / n <= LARGEST]
    return Logits(nbytes, rows, min(enough, default=divisors[-1]))


def _values(model: nnx.Module) -> dict[Any, Any]:
    """Returns a model's variables by path, but for what `sow` leaves."""
    state = nnx.state(model, nnx.Not(nnx.Intermediate))
    return dict(jax.tree.leaves_with_path(state))
