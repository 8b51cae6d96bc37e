"""A bad network: calls on a worker's thread."""

import threading
import time

import pytest

from datarax.hub import network


def test_a_worker_calls_on_one_thread_and_passes_on_errors():
    worker, threads = network.Worker(), set()
    for value in range(5):

        def call(value=value):
            threads.add(threading.current_thread())
            return value

        assert worker.within(10.0, call) == value
    assert len(threads) == 1
    assert threading.main_thread() not in threads
    with pytest.raises(ZeroDivisionError):
        network.Worker().within(10.0, lambda: 1 // 0)
    (thread,) = threads
    del worker  # its thread ends with it
    thread.join(10)
    assert not thread.is_alive()


def test_without_a_limit_a_worker_calls_on_the_calling_thread():
    found = network.Worker().within(None, threading.current_thread)
    assert found is threading.main_thread()


def test_a_call_that_stalls_holds_up_no_later_one():
    worker, gone = network.Worker(), threading.Event()
    with pytest.raises(network.Stalled, match="nothing came for"):
        worker.within(0.05, gone.wait)
    start = time.monotonic()
    assert worker.within(10.0, lambda: "next") == "next"
    assert time.monotonic() - start < 5
    gone.set()
