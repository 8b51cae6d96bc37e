"""Threads that call a function for many items, each for a limited time."""

import queue
import threading
import time
import weakref
from collections.abc import Callable

_LONG = 60.0  # seconds after which a call without a limit is spoken of
_GRAIN = 16  # items that a thread takes at once, at most: of small ones, each costs a lock
_PARTS = 8  # of a thread's share of what is left, it takes one: all end at about the same time


class Late(TimeoutError):
    """A call that took longer than it may.

    Args:
        item: The item that it was for.
        seconds: How long it may take.
    """

    def __init__(self, item: int, seconds: float):
        super().__init__(item, seconds)
        self.item, self.seconds = item, seconds


class Threads:
    """Daemon threads, started by the first call: no call that blocks keeps Python from ending.

    `concurrent.futures` waits for its threads when Python ends, also for one that never does.

    Args:
        count: How many threads.
    """

    def __init__(self, count: int):
        self.count = count
        self._jobs: queue.SimpleQueue[_Job | None] | None = None
        self._lock = threading.Lock()

    def __reduce__(self):
        return Threads, (self.count,)

    def each(
        self,
        function: Callable[[int], None],
        items: int,
        timeout: float | None,
        slow: Callable[[int, float], None],
    ) -> dict[int, Exception]:
        """Calls `function` for the items `0 ... items - 1`, in any order.

        Args:
            function: What is called; it must be safe to call from several threads at once.
            items: How many items.
            timeout: Seconds that one call may take; None for no limit.
            slow: Told once of an item without a limit, and the seconds that it has taken: a minute.

        Returns:
            What was raised, by item.

        Raises:
            Late: A call took longer. Its thread is left to end by itself.
        """
        job = _Job(function, items, self.count)
        if timeout is None and min(self.count, items) <= 1:
            job.work()
            return job.errors
        jobs = self._started()
        for _ in range(self.count):
            jobs.put(job)
        try:
            self._wait(job, timeout, slow)
        except BaseException:
            job.end()
            raise
        if job.fatal is not None:
            raise job.fatal
        return job.errors

    def _started(self) -> "queue.SimpleQueue[_Job | None]":
        with self._lock:
            if self._jobs is None:
                self._jobs = queue.SimpleQueue()
                self._stop = weakref.finalize(self, _stop, self._jobs, self.count)
                for _ in range(self.count):
                    threading.Thread(
                        target=_serve, args=(self._jobs,), daemon=True, name="datarax-transform"
                    ).start()
            return self._jobs

    def _wait(self, job: "_Job", timeout: float | None, slow: Callable[[int, float], None]) -> None:
        limit, told = _LONG if timeout is None else float(timeout), False
        pause = limit
        while not job.done.wait(max(pause, 0.01)):
            item, seconds = job.longest()
            pause = limit - seconds
            if pause > 0:
                continue
            if timeout is not None:
                with self._lock:
                    self._stop()
                    self._jobs = None
                raise Late(item, limit)
            pause = limit
            if not told:
                told = True
                slow(item, seconds)


class _Job:
    """One call of `Threads.each`."""

    def __init__(self, function: Callable[[int], None], items: int, threads: int):
        self.errors: dict[int, Exception] = {}
        self.fatal: BaseException | None = None
        self.done = threading.Event()
        self._function, self._items, self._threads = function, items, threads
        self._next, self._left = 0, items
        self._running: dict[int, tuple[int, float]] = {}  # by thread: the item, and since when
        self._lock = threading.Lock()
        if not items:
            self.done.set()

    def work(self) -> None:
        """Takes items as long as there are some."""
        me = threading.get_ident()
        while some := self._take():
            for item in some:
                self._running[me] = item, time.monotonic()
                try:
                    self._function(item)
                except Exception as error:
                    self.errors[item] = error
                except BaseException as error:  # such as SystemExit: for the caller's thread
                    self.fatal = error
            self._running.pop(me, None)
            with self._lock:
                self._left -= len(some)
                if not self._left:
                    self.done.set()

    def _take(self) -> range:
        with self._lock:
            start = self._next
            most = (self._items - start) // (_PARTS * self._threads)
            self._next = min(start + max(1, min(_GRAIN, most)), max(start, self._items))
            return range(start, self._next)

    def longest(self) -> tuple[int, float]:
        """Returns the item that has been worked on longest, and for how many seconds."""
        running = list(self._running.values())
        item, since = min(running, key=lambda one: one[1], default=(0, time.monotonic()))
        return item, time.monotonic() - since

    def end(self) -> None:
        """Lets no thread take another item."""
        self._items = 0


def _serve(jobs: "queue.SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job.work()
        del job  # it holds a batch, and the owner of these threads


def _stop(jobs: "queue.SimpleQueue[_Job | None]", count: int) -> None:
    for _ in range(count):
        jobs.put(None)
