"""A bad network: which errors pass by themselves, and how long to wait."""

import concurrent.futures
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from datarax.hub.private import httpx
from datarax.hub.secrets import redacted as redacted

T = TypeVar("T")

_BUSY = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 30.0


class Stalled(TimeoutError):
    """Nothing came within the time allowed."""


def is_transient(error: BaseException) -> bool:
    """Returns whether asking again may help: the connection broke, or the server is busy."""
    status = status_of(error)
    if status is not None:
        return status in _BUSY
    if isinstance(error, (HfHubHTTPError, FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, (ConnectionError, TimeoutError, httpx.TransportError)):
        return True
    return _of_aiohttp(error)


def is_refusal(error: BaseException) -> bool:
    """Returns whether the server, or the file system, said no: asking again does not help."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return True
    return status_of(error) is not None and not is_transient(error)


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status that an error is of, or None."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _of_aiohttp(error: BaseException) -> bool:
    # Asked by name: aiohttp takes long to import, and nothing raises its errors before it is.
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    return "aiohttp.client_exceptions.ClientError" in names


def pauses(attempts: int, first: float = 0.5) -> Iterator[float]:
    """Yields the seconds to wait between attempts: doubling, and spread at random.

    Args:
        attempts: How many attempts there are; one pause less is given.
        first: The first pause, in seconds.
    """
    for attempt in range(attempts - 1):
        longest = min(first * 2**attempt, _LONGEST_PAUSE)
        yield longest * random.uniform(0.5, 1.0)


def asked_pause(error: BaseException) -> float:
    """Returns the seconds that a server's `Retry-After` asks for, 0 if it says none.

    It is a number of seconds or a date (RFC 9110, section 10.2.3).
    """
    response = getattr(error, "response", None)
    headers = getattr(error if response is None else response, "headers", None) or {}
    asked = headers.get("Retry-After", "0")
    try:
        if asked.isdecimal():
            return float(asked)
        # By the server's own clock, where it tells it: ours may be an hour off.
        now = (
            parsedate_to_datetime(headers["Date"]).timestamp() if "Date" in headers else time.time()
        )
        return max(0.0, parsedate_to_datetime(asked).timestamp() - now)
    except ValueError:  # neither: the usual pauses will do
        return 0.0


class Worker:
    """A thread that calls functions, each for a limited time.

    The thread starts with the first call that has a limit, and ends with the worker. One whose call
    takes too long is left to end by itself, and the next call gets another.
    """

    def __init__(self):
        self._calls: queue.SimpleQueue | None = None

    def within(self, seconds: float | None, function: Callable[[], T]) -> T:
        """Calls a function and returns its value, if that does not take too long.

        Args:
            seconds: How long it may take; None for ever, on the calling thread.
            function: The function to call.

        Raises:
            Stalled: It took longer.
        """
        if seconds is None:
            return function()
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            weakref.finalize(self, self._calls.put, None)
            threading.Thread(
                target=_serve, args=(self._calls,), daemon=True, name="datarax-read"
            ).start()
        seconds = float(seconds)  # a lock waits for no number of NumPy's
        future: Future[T] = Future()
        self._calls.put((function, future))
        if not concurrent.futures.wait([future], max(0.0, seconds)).done:
            self._calls.put(None)
            self._calls = None
            raise Stalled(f"nothing came for {seconds:.0f} s")
        return future.result()


def _serve(calls: queue.SimpleQueue) -> None:
    while (call := calls.get()) is not None:
        function, future = call
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
        del call, function, future  # they hold a file's rows, and the worker's owner


def deadline(seconds: float | None) -> Callable[[], float | None]:
    """Returns a function that tells how many seconds are left of `seconds`, None for no limit."""
    end = None if seconds is None else time.monotonic() + seconds
    return lambda: None if end is None else end - time.monotonic()


def patiently(function: Callable[[], T], attempts: int = 4) -> T:
    """Calls a function again while what it raises is a connection that broke or a busy server."""
    for pause in pauses(attempts):
        try:
            return function()
        except Exception as error:
            if not is_transient(error) or _nobody_there(error):
                raise
            time.sleep(max(pause, asked_pause(error)))
    return function()


def _nobody_there(error: BaseException | None) -> bool:
    """Returns whether there is no server at all: waiting a few seconds will not bring it."""
    while error is not None:
        if isinstance(error, (httpx.ConnectError, OfflineModeIsEnabled)):
            return True
        error = error.__cause__ or error.__context__
    return False
