"""Agreement between the processes of a run: what a clock, a signal or a file decides, all decide.

Two processes that run one compiled program with different arguments wait for each other for ever.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trainers.devices.private import all_gather


def is_first() -> bool:
    """Returns whether this is the process that writes."""
    return jax.process_index() == 0


def gathered(values: Any) -> np.ndarray:
    """Returns an array of each process, stacked in their order; all must call it together.

    Args:
        values: int32 numbers, of the same shape on all processes.
    """
    values = np.asarray(values, np.int32)
    if jax.process_count() == 1:
        return values[None]
    return all_gather(values)


def least(*values: int) -> tuple[int, ...]:
    """Returns the least of each value over all processes; all must call it together."""
    if jax.process_count() == 1:
        return values
    return tuple(gathered(values).min(axis=0).tolist())


def collected(value: Any) -> list[Any]:
    """Returns a JSON-able value of each process, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    longest = int(gathered([len(text)]).max())
    words = np.frombuffer(text.ljust(-(-longest // 4) * 4), np.int32)
    return [json.loads(row.tobytes()) for row in gathered(words)]


def of_first(value: Callable[[], Any]) -> Any:
    """Returns on every process the JSON-able value that the first computes."""
    return collected(together(value) if is_first() else together(lambda: None))[0]


def together(do: Callable[[], Any]) -> Any:
    """Calls a function on every process; where it raises on one, it raises on all.

    Raises:
        RuntimeError: If another process raised; it says which and what.
    """
    if jax.process_count() == 1:
        return do()
    try:
        result, error = do(), None
    except Exception as caught:  # raised again below, when the others know
        result, error = None, caught
    texts = collected(None if error is None else f"{type(error).__name__}: {error}"[:2000])
    if error is not None:
        raise error
    failed = [(index, text) for index, text in enumerate(texts) if text is not None]
    if failed:
        raise RuntimeError(f"Process {failed[0][0]} of {len(texts)} failed: {failed[0][1]}")
    return result


def expect_same_program(lower: Callable[[], jax.stages.Lowered], name: str) -> None:
    """Raises on every process where a program is not the same on all, or cannot be traced on one.

    Args:
        lower: Traces and lowers it; several processes do, so that it is no cost on one.
        name: What it is called.
    """
    if jax.process_count() > 1:
        digest = hashlib.sha256(together(lower).as_text().encode()).hexdigest()
        expect_same({f"{name}: the code of the model, the loss or a stage": digest})


def expect_same(values: dict[str, Any]) -> None:
    """Raises `ValueError` on every process where a value is not the same on all.

    Args:
        values: JSON-able values by what they are called, such as `"batch_size"`.
    """
    found = collected(values)
    for name in values:
        given = [json.dumps(one.get(name)) for one in found]
        if len(set(given)) > 1:
            other = next(i for i, text in enumerate(given) if text != given[0])
            raise ValueError(
                f"The processes disagree on {name}: process 0 has {given[0]:.200}, process {other} "
                f"has {given[other]:.200}. Start the same script with the same data on each."
            )
