"""A source that a compiled function closes over: its data would be part of the program."""

import functools
import logging
from typing import Any

import jax
from jax.core import Tracer

logger = logging.getLogger(__name__)

_MOST = 1_000_000  # bytes that are nothing to speak of


def note_closed_over(label: str, columns: dict[str, Any], *positions: Any) -> None:
    """Logs a warning, once, where `jax.jit` would compile columns into a program as constants.

    Args:
        label: The source's name.
        columns: Nested dict of its array columns.
        positions: What the records depend on; some of it is traced.
    """
    arrays = jax.tree.leaves(columns)
    size = sum(array.nbytes for array in arrays if not isinstance(array, Tracer))
    if size > _MOST and any(is_compiled(position) for position in positions):
        _warn(label, size)


@functools.cache
def _warn(label: str, size: int) -> None:
    logger.warning(
        "%s is closed over by a function under jax.jit, which compiles its %.3g MB into the "
        "program as constants: seconds, and the data once more in memory. Make the source an "
        "argument of the function: jax.jit(lambda source, start: source.get_batch_at(start, 128, "
        "key))(source, 0).",
        label,
        size / 1e6,
    )


def is_compiled(value: Any) -> bool:
    """Returns whether a value is traced for `jax.jit`, perhaps by a loop or `vmap` within it.

    A loop outside of `jax.jit` takes what it closes over as an argument. Traces are private to JAX;
    `tests/datarax/sources/test_closed_over.py` says that they tell it.
    """
    trace = getattr(value, "_trace", None)
    while trace is not None:
        info = getattr(getattr(trace, "frame", None), "debug_info", None)
        if getattr(info, "traced_for", None) == "jit":
            return True
        trace = getattr(trace, "parent_trace", None)
    return False
