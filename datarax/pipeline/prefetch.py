"""Reading ahead: batches are read, decoded and transferred while the ones before are computed."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from datarax.columns.rows import is_array
from datarax.errors import expect_between
from datarax.sources.eager import EagerSourceBase
from datarax.sources.mixed import MixedSource
from datarax.sources.streaming import StreamingSourceBase

_POLL = 0.05  # seconds until a thread that waits looks whether it is still wanted
_LARGE = 1 << 30  # bytes in flight above which no further batch is read


def prefetch_to_device(
    source_or_iterable: Any,
    size: int = 2,
    *,
    batch_size: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> "Prefetched":
    """Reads ahead of a loop on a thread: reading, decoding and transfer overlap with computing.

    Until the iterator is closed or at its end, the source is its thread's alone and stands ahead
    of the loop: ask the iterator for the state. An iterator that is dropped ends its thread. Errors
    are raised in their place, after the batches before them.

    Args:
        source_or_iterable: A source, a pipeline, or any iterable of batches.
        size: How many batches are ready at most; fewer where they are larger than a gigabyte.
        batch_size: Records in a batch of a source, to the end of one epoch, the last one short
            where the length asks for it; None: what iterating yields.
        sharding: How each array is placed; with many processes a batch is this process's part of
            a global one. None: the default device.

    Returns:
        An iterator with `get_state()`, `close()` and `with`.

    Raises:
        TypeError: If `batch_size` is given for what has no `get_batch`.
        ValueError: If `size` or `batch_size` is not positive.

    Example:
        >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(5)})
        >>> with prefetch_to_device(source, batch_size=2) as batches:
        ...     print([batch["x"].tolist() for batch in batches])
        [[0, 1], [2, 3], [4]]
    """
    expect_between("size", size, 1, 2**31 - 1)
    return Prefetched(source_or_iterable, size, batch_size, sharding)


State = Callable[[], dict[str, Any]]


class _Item(NamedTuple):
    batch: Any = None
    state: State | None = None  # makes the state after the batch
    bytes: int = 0
    error: BaseException | None = None


class Prefetched:
    """Batches that are ready before they are asked for; see `prefetch_to_device`."""

    def __init__(
        self,
        source: Any,
        size: int,
        batch_size: int | None,
        sharding: jax.sharding.Sharding | None,
    ):
        reader = _Reader(source, batch_size, sharding)
        self._shared = shared = _Shared(size, reader.note())
        # Only what is shared: the thread must not keep alive the iterator that ends it.
        device = jax.config.jax_default_device  # a `with jax.default_device` is of one thread
        self._thread = threading.Thread(
            target=_run, args=(shared, reader, device), daemon=True, name="datarax-prefetch"
        )
        self._finalizer = weakref.finalize(self, _end, shared, self._thread)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = self._shared.get()
        if item is None:
            self.close()
            raise StopIteration
        if item.error is not None:
            self.close()
            raise item.error
        self._shared.consumed = item.state
        return item.batch

    def get_state(self) -> dict[str, Any]:
        """Returns the source's state after the last batch that was taken, whatever was read ahead.

        Raises:
            TypeError: If what is iterated over has no `get_state`.
        """
        if self._shared.consumed is None:
            raise TypeError(
                "What is read ahead is a plain iterable, which has no state: give a source or a "
                "Pipeline to prefetch_to_device."
            )
        return self._shared.consumed()

    def close(self) -> None:
        """Ends the thread; the source goes back to the last batch that was taken."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Shared:
    """What the thread and the iterator share: a bounded queue, and whether it is still wanted."""

    def __init__(self, size: int, consumed: "State | None"):
        self.consumed = consumed  # makes the state after the last batch that was taken
        self.stop = threading.Event()
        self._items = queue.Queue(size)
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, item: _Item | None) -> bool:
        """Adds an item when there is room; False where it is not wanted any more."""
        while not self.stop.is_set():
            if item is not None and self._bytes and self._bytes + item.bytes > _LARGE:
                self.stop.wait(_POLL)
                continue
            try:
                self._items.put(item, timeout=_POLL)
            except queue.Full:
                continue
            if item is not None:
                self._add(item.bytes)
            return True
        return False

    def get(self) -> _Item | None:
        """Returns the next item, None at the end or after `stop`."""
        while not self.stop.is_set():
            try:
                item = self._items.get(timeout=_POLL)
            except queue.Empty:
                continue
            if item is not None:
                self._add(-item.bytes)
            return item
        return None

    def drop(self) -> None:
        """Forgets what is ready."""
        while not self._items.empty():
            self._items.get_nowait()

    def _add(self, count: int) -> None:
        with self._lock:
            self._bytes += count


def _end(shared: _Shared, thread: threading.Thread) -> None:
    shared.stop.set()
    if thread is not threading.current_thread():  # the garbage may be collected in any thread
        thread.join()  # so that nothing else reads the source when the next loop begins
    shared.drop()


def _run(shared: _Shared, reader: "_Reader", device: Any) -> None:
    batches = reader.batches()
    try:
        with jax.default_device(device):
            for batch in batches:
                state = reader.note()
                item = _Item(reader.placed(batch), state, _bytes(batch))
                del batch
                if not shared.put(item):
                    break
        shared.put(None)
    except BaseException as error:
        shared.put(_Item(error=error))
    batches.close()
    if shared.stop.is_set() and shared.consumed is not None:
        reader.rewind(shared.consumed())


class _Reader:
    """What the thread reads: batches, the state after each, and where they go."""

    def __init__(self, source: Any, batch_size: int | None, sharding: Any):
        self._stream = isinstance(source, (StreamingSourceBase, MixedSource))
        self._eager = isinstance(source, EagerSourceBase)
        if batch_size is not None:
            expect_between("batch_size", batch_size, 1, 2**31 - 1)
            if not (self._stream or self._eager):
                raise TypeError(
                    f"batch_size={batch_size}, but a {type(source).__name__} is no source: leave "
                    "batch_size out, and its own items are read ahead."
                )
        self._source, self._batch_size, self._sharding = source, batch_size, sharding

    def batches(self) -> Iterator[Any]:
        """Yields batches, those of a stream in host memory."""
        source, batch_size = self._source, self._batch_size
        if batch_size is None:
            yield from source
        elif self._stream:
            yield from source.epoch_batches(batch_size)
        else:
            epoch, index = source.begin_epoch()
            source.move(epoch, index)
            while index < source.length:
                size = min(batch_size, source.length - index)
                yield source.get_batch(size)
                index += size

    def note(self) -> State | None:
        """Returns what makes the state of the present position, None of a plain iterable."""
        if self._stream:
            position = self._source.position()
            return lambda: self._source.state_at(position)
        if not hasattr(self._source, "get_state"):
            return None
        state = self._source.get_state()
        return lambda: state

    def rewind(self, state: dict[str, Any]) -> None:
        """Takes the source back to where the loop stopped."""
        if hasattr(self._source, "rewind"):
            self._source.rewind(state)
        elif hasattr(self._source, "set_state"):
            self._source.set_state(state)

    def placed(self, batch: Any) -> Any:
        """Returns a batch with its arrays on the device; what is no array stays."""

        def place(value: Any) -> Any:
            if not is_array(value):
                return value
            if isinstance(value, np.ndarray) and not self._stream:
                # Who fills one buffer again and again would change the batch: on the CPU it is
                # taken as it is where it is aligned, whatever `may_alias` says.
                value = value.copy()
            if self._sharding is None:
                return jax.device_put(value)
            if jax.process_count() > 1:
                local = np.asarray(value)
                return jax.make_array_from_process_local_data(self._sharding, local)
            return jax.device_put(value, self._sharding)

        return jax.block_until_ready(jax.tree.map(place, batch))


def _bytes(batch: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch) if hasattr(leaf, "nbytes"))
