"""The thread that reads ahead: calls in order, errors where they are asked for, no waiting."""

import gc
import threading
import time
from concurrent.futures import CancelledError

import pytest

from trainers.data.worker import Worker


def threads() -> int:
    return sum(thread.name == "test-worker" for thread in threading.enumerate())


def test_calls_end_in_order_and_errors_are_raised_where_the_value_is_asked_for():
    worker, seen = Worker("test-worker"), []
    futures = [worker.submit(seen.append, number) for number in range(5)]
    failing = worker.submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result()
    assert [future.result() for future in futures] == [None] * 5
    assert seen == list(range(5))
    assert worker.close(1.0)


def test_a_call_that_was_cancelled_is_not_made():
    worker, gate, seen = Worker("test-worker"), threading.Event(), []
    worker.submit(gate.wait)
    late = worker.submit(seen.append, 1)
    assert late.cancel()
    gate.set()
    assert worker.close(1.0)
    assert seen == []
    with pytest.raises(CancelledError):
        late.result()


def test_closing_does_not_wait_for_a_call_that_blocks():
    worker, gate = Worker("test-worker"), threading.Event()
    worker.submit(gate.wait)
    begun = time.perf_counter()
    assert not worker.close(0.1)
    assert time.perf_counter() - begun < 1
    gate.set()
    assert worker.close(1.0)


def test_a_worker_that_is_dropped_ends():
    worker = Worker("test-worker")
    worker.submit(int).result()
    del worker
    gc.collect()
    for _ in range(100):
        if not threads():
            return
        time.sleep(0.01)
    assert threads() == 0
