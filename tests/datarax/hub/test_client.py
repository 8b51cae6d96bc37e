"""Asking the Hub from several threads."""

import json
import time

import pytest

from tests.support.hubserver import HubServer


@pytest.fixture(scope="module")
def server():
    with HubServer() as hub:
        hub.add("me/silent", {"train.jsonl": json.dumps({"x": 1}) + "\n"})
        hub.add("me/slow", {"train.jsonl": json.dumps({"x": 2}) + "\n"})
        yield hub


def test_two_threads_that_load_do_not_bound_each_other(server):
    asked = []

    def fault(request):
        if "me/silent" in request.path:
            return "stall"
        asked.append(request.path)
        # The second answer comes while the other load waits, and later than it would wait.
        time.sleep({1: 0.5, 2: 2.0}.get(len(asked), 0.0))

    server.fault = fault
    with server.process() as process:
        found = process(
            "import threading, time\n"
            "from datarax.hub.load import load_split\n"
            "found = {}\n"
            "def load(name, timeout):\n"
            "    start = time.monotonic()\n"
            "    try:\n"
            "        found[name] = load_split(name, 'train', timeout=timeout).dataset['x'][:]\n"
            "    except Exception as error:\n"
            "        found[name] = type(error).__name__\n"
            "    found[name] = found[name], time.monotonic() - start\n"
            "slow = threading.Thread(target=load, args=('me/slow', 30))\n"
            "slow.start()\n"
            "time.sleep(0.25)\n"
            "load('me/silent', 1.0)\n"
            "slow.join()\n"
            "result = found\n"
        )
    rows, _ = found["me/slow"]
    error, seconds = found["me/silent"]
    assert rows == [2]
    assert error == "ConnectionError"
    assert seconds < 3
    assert len(asked) > 2
