"""Reading ahead: batches are read, decoded and transferred while the ones before are computed."""

import logging
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import jax

from datarax.errors import expect_between
from datarax.pipeline.ahead import Last, Reader, State, nbytes

logger = logging.getLogger(__name__)

_POLL = 0.05  # seconds until a thread that waits looks whether it is still wanted
_LARGE = 1 << 30  # bytes in flight above which no further batch is read
_PATIENCE = 2.0  # seconds that closing waits for a loader that blocks


def prefetch_to_device(
    source_or_iterable: Any,
    size: int = 2,
    *,
    batch_size: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    last: Last | None = None,
) -> "Prefetched":
    """Reads ahead of a loop on a thread: reading, decoding and transfer overlap with computing.

    Until the iterator is closed or at its end, the source is its thread's alone and stands ahead
    of the loop: ask the iterator for the state. An iterator that is dropped ends its thread. Errors
    are raised in their place, after the batches before them.

    Args:
        source_or_iterable: A source, a pipeline, or any iterable of batches, also one that is
            read ahead already.
        size: How many batches are ready at most; fewer where they are larger than a gigabyte.
        batch_size: Records in a batch of a source, to the end of one epoch, the last one short
            where the length asks for it; None: the items that iterating yields.
        sharding: How each array is placed; with many processes a batch is this process's part of
            a global one. None: the default device.
        last: The treatment of a batch that is shorter than the others. `"pad"` fills it up with
            its own first records, and every batch gets a column `valid`, bool of shape
            `(batch_size,)`; `"drop"` leaves it out; `"error"` refuses it. None: it is yielded as it
            is, and refused where `sharding` cannot spread it. Refusing comes before the first batch
            where the length is known.

    Returns:
        An iterator with `get_state()`, `close()` and `with`.

    Raises:
        TypeError: If `batch_size` is given, but no source.
        ValueError: If `size` or `batch_size` is not positive, or a short batch is refused.

    Example:
        >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(5)})
        >>> with prefetch_to_device(source, batch_size=2) as batches:
        ...     print([batch["x"].tolist() for batch in batches])
        [[0, 1], [2, 3], [4]]
    """
    expect_between("size", size, 1, 2**31 - 1)
    return Prefetched(Reader(source_or_iterable, batch_size, sharding, last), size)


class _Item(NamedTuple):
    batch: Any = None
    state: State | None = None  # makes the state after the batch
    bytes: int = 0
    error: BaseException | None = None


class Prefetched:
    """Batches that are ready before they are asked for; see `prefetch_to_device`."""

    def __init__(self, reader: Reader, size: int):
        self._reader = reader
        self._shared = shared = _Shared(size, reader.note())
        # Dropping the iterator ends the thread, so the thread holds no reference to it.
        # A `with jax.default_device` is of one thread.
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
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
            TypeError: If the iterable that is read has no `get_state`.
        """
        if self._shared.consumed is None:
            raise TypeError(
                "The batches come from a plain iterable, which has no state: give a source or a "
                "Pipeline to prefetch_to_device."
            )
        return self.state_at(self._shared.consumed)

    def position(self) -> State | None:
        """Returns the position after the last batch that was taken; see `state_at`."""
        return self._shared.consumed

    def state_at(self, position: State) -> dict[str, Any]:
        """Returns the state of the source at a position."""
        return position()

    def rewind(self, state: dict[str, Any]) -> None:
        """Ends the thread, and takes the source back to a state."""
        self.close()
        self._reader.rewind(state)

    def close(self) -> None:
        """Ends the thread; the source goes back to the last batch that was taken.

        A loader that blocks is waited for two seconds. Then a warning says so, and its thread is
        left to end by itself; the source stands ahead of the loop.
        """
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Shared:
    """A bounded queue that the thread and the iterator share, and whether it is still wanted."""

    def __init__(self, size: int, consumed: "State | None"):
        self.consumed = consumed  # makes the state after the last batch that was taken
        self.stop = threading.Event()
        self.left = False  # whether the thread was left to end by itself
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
        """Drops the batches that are ready."""
        while not self._items.empty():
            self._items.get_nowait()

    def _add(self, count: int) -> None:
        with self._lock:
            self._bytes += count


def _end(shared: _Shared, thread: threading.Thread) -> None:
    shared.stop.set()
    if thread is not threading.current_thread():  # the garbage may be collected in any thread
        thread.join(_PATIENCE)  # so that nothing else reads the source when the next loop begins
        if thread.is_alive():
            shared.left = True
            logger.warning(
                "The loader that is read ahead has given nothing for %g s: its thread is left to "
                "end by itself, and until then the source is not to be used.",
                _PATIENCE,
            )
    shared.drop()


def _run(shared: _Shared, reader: Reader, device: Any) -> None:
    batches = reader.batches()
    try:
        with jax.default_device(device):
            for read in batches:
                state = reader.note()
                batch = reader.finished(read)
                del read
                if batch is None:
                    continue
                item = _Item(reader.placed(batch), state, nbytes(batch))
                del batch
                if not shared.put(item):
                    break
        shared.put(None)
    except BaseException as error:
        shared.put(_Item(error=error))
    batches.close()
    if shared.stop.is_set() and shared.consumed is not None and not shared.left:
        reader.rewind(shared.consumed())
