"""Memory: what a run takes of it, and what there is."""

import contextlib
import ctypes
import gc
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from datarax import Pipeline
from datarax.errors import listed
from trainers.devices import private

_UNITS = "B", "kB", "MB", "GB", "TB", "PB"


def size(number: float) -> str:
    """Returns a number of bytes as text: `1.5 GB`."""
    unit = 0
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"


def limit() -> int:
    """Returns the bytes of a device's memory, the machine's where the device reports none."""
    stats = jax.local_devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit") or machine


def give_back() -> None:
    """Gives the system back what was freed and is still held for later.

    glibc keeps the memory that XLA's compiler has freed: 155 MB after a transformer of six layers.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def uncollected() -> Iterator[contextlib.ExitStack]:
    """Puts Python's garbage collection off until the block ends, or the stack is closed.

    Tracing and compiling make many objects that stay, so the collector looks through all of the
    process in vain: four times 0.13 s for a transformer of six layers.
    """
    with contextlib.ExitStack() as until:
        if gc.isenabled():
            gc.disable()
            until.callback(gc.enable)
        yield until


def nbytes(tree) -> int:
    """Returns the bytes that a device holds of all arrays of a pytree."""
    arrays = [x for x in jax.tree.leaves(tree) if not isinstance(x, int | float)]
    return sum(math.prod(_share(x)) * x.dtype.itemsize for x in arrays)


def _share(array) -> tuple[int, ...]:
    sharding = getattr(array, "sharding", None)
    return array.shape if sharding is None else sharding.shard_shape(array.shape)


def expect_data_fits(pipeline: Pipeline, devices: int) -> None:
    """Raises `MemoryError` where a device's rows of an eager source are larger than its memory.

    Args:
        pipeline: The source, and the number of its canonical shards.
        devices: The number of devices that the shards are spread over.
    """
    source, spread = pipeline.source, pipeline.shards > 1
    if not source.is_traceable:
        return
    # With canonical shards a process loads only its own: one row tells how large the others are.
    columns = source.host_rows(np.zeros(1, np.int64)) if spread else source.element_spec()
    rows = {name: _row_bytes(column) for name, column in columns.items()}
    data, there = sum(rows.values()) * len(source) // (devices if spread else 1), limit()
    if data <= there:
        return
    largest = max(rows, key=rows.__getitem__)
    each, more = (f" on each of {devices} devices", " more") if spread else ("", "")
    raise MemoryError(
        f"The data takes {size(data)} as arrays{each}, the memory has {size(there)}. Column "
        f"{largest!r} takes most, {size(rows[largest])} a record, of {listed(rows)}. Read it "
        "from disk, in the same order, with HFIndexedSource instead of HFEagerSource, spread it "
        f"over{more} devices with Trainer(..., shards=), make its records smaller, or leave "
        f"columns out: exclude_keys={{{largest!r}}}."
    )


def _row_bytes(column) -> int:
    arrays = [x for x in jax.tree.leaves(column) if x.dtype != np.dtype(object)]
    return nbytes(arrays)


def expect_state_fits(parts: dict[str, Any], devices: int) -> None:
    """Raises `MemoryError` where what a device holds of a state is larger than its memory.

    Args:
        parts: Pytrees of the state's arrays, or of what describes them, by what they are called.
        devices: The number of devices.
    """
    held = {name: nbytes(tree) for name, tree in parts.items()}
    need, there = sum(held.values()), limit()
    if need <= there:
        return
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(parts))
    each = ", ".join(f"{name} {size(part)}" for name, part in held.items() if part)
    raise MemoryError(
        f"The state takes {size(need)} of each device (number of devices: {devices}), which has "
        f"{size(there)}: {each}. A run goes on with any devices that hold it: write "
        f'sharding="fsdp" and take {-(-whole // there)} devices or more, or take a smaller model '
        "or optimizer, such as optax.adafactor()."
    )


def expect_fits(program: jax.stages.Compiled, state, data) -> None:
    """Raises `MemoryError` where a compiled program takes more memory than there is.

    Args:
        program: The program of a train step.
        state: What it is given of parameters and optimizer.
        data: What it is given of data.
    """
    need, there = private.memory(program), limit()
    if need is None or need <= there:
        return
    parts = {"the state": nbytes(state), "the data": nbytes(data)}
    parts["the computation of a step"] = need - sum(parts.values())
    each = ", ".join(f"{name} {size(part)}" for name, part in parts.items())
    ways = {
        "the state": 'Spread it over more devices with sharding="fsdp", or take a smaller model '
        "or optimizer, such as optax.adafactor()",
        "the data": "Spread it over more devices with shards=, or read it as a stream, "
        "HFEagerConfig(..., streaming=True)",
        "the computation of a step": "Take a smaller batch_size, compute it in slices with "
        "accumulate=8, or with precision=jnp.bfloat16",
    }
    raise MemoryError(
        f"A train step takes {size(need)} of a device's memory, which has {size(there)}: {each}. "
        f"{ways[max(parts, key=parts.__getitem__)]}."
    )
