"""Memory: what was freed goes back to the system, and garbage is collected again."""

import gc
import sys
from pathlib import Path

import pytest

from tests.support.models import MLP, labelled
from trainers import Trainer, every
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


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_collection_is_as_it_was_before_also_after_an_error(was_on):
    def traced():
        with memory.uncollected():
            assert not gc.isenabled()
            raise ValueError("while tracing")

    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(ValueError, match="while tracing"):
            traced()
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_garbage_collection_goes_on_when_the_first_steps_are_sent_off():
    found = []
    trainer = Trainer(
        MLP(),
        labelled(),
        batch_size=8,
        steps=2,
        callbacks=[every(1, lambda run: found.append(gc.isenabled()))],
    )
    trainer.fit()
    assert found == [True, True]
