"""Memory: what was freed goes back to the system."""

import sys
from pathlib import Path

import pytest

from trainers.devices import memory


def held() -> int:
    """Returns the megabytes that this process holds."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps what is freed")
def test_what_was_freed_is_given_back():
    pieces = [bytearray(4000) for _ in range(40_000)]  # 160 MB in pieces that glibc keeps
    last = [bytearray(4000) for _ in range(10)]  # and the end of its heap in use
    pieces.clear()
    before = held()
    memory.give_back()
    assert before - held() > 80
    assert len(last) == 10
