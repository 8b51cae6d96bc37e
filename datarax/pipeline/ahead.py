"""The reader of a prefetching thread: batches, the state after each, and their placing."""

from collections.abc import Callable, Generator, Iterable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np

from datarax.columns.rows import is_array
from datarax.errors import expect_between
from datarax.pipeline.pipeline import Pipeline
from datarax.sources.source import Source

Last = Literal["pad", "drop", "error"]

State = Callable[[], dict[str, Any]]
"""Makes the state after a batch, when it is asked for."""


@runtime_checkable
class Positioned(Protocol):
    """A `Source`, a `Pipeline` or a `Prefetched`: its state is made of a position, also later."""

    def position(self) -> Any: ...

    def state_at(self, position: Any) -> dict[str, Any]: ...

    def rewind(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Stateful(Protocol):
    """An iterable of others, such as Grain's iterators, that has a state."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> Any: ...


class Reader:
    """Reads batches of anything iterable, and places them.

    Args:
        source: A source, a pipeline, or any iterable of batches.
        batch_size: Records in a batch of a source; None: those that iterating yields.
        sharding: How each array is placed; None: on the default device.
        last: The treatment of a batch that is shorter than the others.

    Raises:
        TypeError: If `batch_size` is given, but no source.
        ValueError: If `batch_size` or `last` is out of range, or the last batch cannot be placed.
    """

    def __init__(
        self,
        source: Iterable[Any],
        batch_size: int | None,
        sharding: jax.sharding.Sharding | None,
        last: Last | None,
    ):
        if batch_size is not None:
            expect_between("batch_size", batch_size, 1, 2**31 - 1)
            if not isinstance(source, Source):
                raise TypeError(
                    f"batch_size={batch_size}, but a {type(source).__name__} is no source: leave "
                    "batch_size out, and its own items are read ahead."
                )
        if last not in (None, "pad", "drop", "error"):
            raise ValueError(f'last={last!r}: expected "pad", "drop", "error" or None.')
        if last is not None and batch_size is None and isinstance(source, Source):
            raise ValueError(f"last={last!r} is for batches: give a batch_size, too.")
        self._source, self._batch_size = source, batch_size
        self._sharding, self._last = sharding, last
        self._size = batch_size  # records in a full batch, where it is known
        if isinstance(source, Pipeline):
            self._size = source.batch_size
        self._expect_last_fits()

    def batches(self) -> Generator[Any, None, None]:
        """Yields batches, which may be in host memory."""
        if self._batch_size is None:
            yield from self._source
        else:
            assert isinstance(self._source, Source)
            yield from self._source.epoch_batches(self._batch_size)

    def note(self) -> State | None:
        """Returns a function that makes the state of this position; None of a plain iterable."""
        source = self._source
        if isinstance(source, Positioned):
            position = source.position()
            return None if position is None else lambda: source.state_at(position)
        if isinstance(source, Stateful):
            state = source.get_state()
            return lambda: state
        return None

    def rewind(self, state: dict[str, Any]) -> None:
        """Takes the source back to where the loop stopped."""
        if isinstance(self._source, Positioned):
            self._source.rewind(state)
        elif isinstance(self._source, Stateful):
            self._source.set_state(state)

    # --- the last batch --------------------------------------------------------------------------

    def finished(self, batch: Any) -> Any | None:
        """Returns a batch as `last` asks for it, None where it is left out.

        Raises:
            ValueError: If it is shorter than the others and that is refused.
        """
        if self._last is None and self._sharding is None:
            return batch
        leaves = jax.tree.leaves(batch)
        length = np.shape(leaves[0])[0] if leaves and np.ndim(leaves[0]) else 0
        self._size = self._size or length
        is_short = length < self._size
        if is_short and self._last == "drop":
            return None
        if self._last == "pad":
            return _padded(batch, length, self._size)
        if is_short and (self._last == "error" or not self._fits(batch)):
            raise ValueError(_refusal(length, self._size, self._sharding))
        return batch

    def _expect_last_fits(self) -> None:
        """Raises before anything is read where it is known that the last batch is refused."""
        source: Any = self._source
        size = self._size
        drops = isinstance(source, Pipeline) and source.drop_remainder
        if size is None or drops or self._last in ("pad", "drop"):
            return
        of = source.source if isinstance(source, Pipeline) else source
        assert isinstance(of, Source)
        # In the midst of an epoch it depends on where the loop begins.
        begins = source.get_state()["index"] == 0
        rest = of.length % size if begins and of.length is not None else 0
        rows = jax.tree.map(
            lambda spec: jax.ShapeDtypeStruct((rest, *spec.shape), spec.dtype), of.element_spec()
        )
        if rest and (self._last == "error" or not self._fits(rows)):
            raise ValueError(_refusal(rest, size, self._sharding))

    def _fits(self, batch: Any) -> bool:
        """Returns whether the sharding spreads a batch's arrays evenly."""
        if self._sharding is None or jax.process_count() > 1:
            return True
        try:
            for leaf in filter(is_array, jax.tree.leaves(batch)):
                self._sharding.shard_shape(np.shape(leaf))
        except ValueError:
            return False
        return True

    # --- placing ---------------------------------------------------------------------------------

    def placed(self, batch: Any) -> Any:
        """Returns a batch with its arrays on the device; host columns stay."""
        is_ours = isinstance(self._source, Positioned)

        def one(value: Any) -> Any:
            if not is_array(value):
                return value
            if isinstance(value, np.ndarray) and not is_ours:
                # A loader that fills one buffer again and again would change the batch: the CPU
                # backend takes an aligned buffer as it is, whatever `may_alias` says.
                value = value.copy()
            if self._sharding is None:
                return jax.device_put(value)
            if jax.process_count() > 1:
                local = np.asarray(value)
                return jax.make_array_from_process_local_data(self._sharding, local)
            return jax.device_put(value, self._sharding)

        return jax.block_until_ready(jax.tree.map(one, batch))


def nbytes(batch: Any) -> int:
    """Returns the bytes of a batch's arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch) if hasattr(leaf, "nbytes"))


def _padded(batch: Any, length: int, size: int) -> dict[str, Any]:
    if not isinstance(batch, dict) or "valid" in batch:
        found = (
            "has a column 'valid'" if isinstance(batch, dict) else f"is a {type(batch).__name__}"
        )
        raise ValueError(
            f"The batch {found}: last='pad' adds such a column to a dict of columns. Rename it, or "
            "write last='drop'."
        )
    # Real records: zeros would bend the statistics of a batch.
    rows = np.arange(size) % length
    filled = batch if length == size else jax.tree.map(lambda x: np.asarray(x)[rows], batch)
    return {**filled, "valid": np.arange(size) < length}


def _refusal(length: int, size: int, sharding: Any) -> str:
    spread = "" if sharding is None else f", which {sharding} does not spread evenly"
    return (
        f"The last batch of an epoch has {length} records, the others {size}{spread}: write "
        "last='pad' to fill it up with records that its column 'valid' marks, last='drop' to leave "
        "it out (as Pipeline(drop_remainder=True) does), or a batch_size that divides the length."
    )
