"""A thread that reads ahead, and that nobody has to wait for."""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Worker:
    """A daemon thread that calls functions, one after the other.

    Python waits at its end for the threads of a `ThreadPoolExecutor`, for ever if one blocks in a
    socket; a daemon thread is left behind.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str):
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        # The thread holds the queue alone, so that it ends where the worker is dropped.
        self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True, name=name)
        self._finalizer = weakref.finalize(self, self._calls.put, None)
        self._thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Returns the future value of a call, which begins when those before it have ended."""
        future: Future = Future()
        self._calls.put((future, function, arguments))
        return future

    def close(self, patience: float) -> bool:
        """Ends the thread after its calls; returns whether it ended within `patience` seconds."""
        self._finalizer()
        self._thread.join(patience)
        return not self._thread.is_alive()


def _serve(calls: queue.SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        future, function, arguments = call
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)
        del call, future, function, arguments  # they hold a block, and the worker's owner
