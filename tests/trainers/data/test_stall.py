"""Input stall: how long the devices waited for data, and for what."""

import contextlib
import queue
import threading
import time

import datasets
import jax
import numpy as np
import optax
import pytest

from datarax import HFIndexedSource, HFStreamingSource
from tests.datarax.sources.test_indexed import Rows
from tests.support.models import MLP, memory, points
from trainers import Trainer
from trainers.data.blocks import Blocks
from trainers.loop.progress import told_of_stall
from trainers.run import InputStall

pytestmark = pytest.mark.usefixtures("compiled_once")


def loss(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def run(source, **arguments):
    return Trainer(MLP(), source, loss=loss, batch_size=8, steps=30, **arguments).fit()


class Slow(Rows):
    """Rows from a slow disk."""

    def read_rows(self, indices):
        time.sleep(0.002 * len(indices))
        return super().read_rows(indices)


def late(row):
    time.sleep(0.002)
    return row


def test_eager_data_are_never_waited_for(tmp_path):
    assert run(memory(points(50)), workdir=tmp_path).input_stall == 0
    assert "devices waited for data: 0.0%." in (tmp_path / "report.html").read_text()


def test_a_slow_source_is_waited_for_and_the_run_says_for_what(tmp_path, capsys):
    stall = run(Slow(points(50), shuffle=True), workdir=tmp_path).input_stall
    assert 0.05 < stall < 1
    assert stall == pytest.approx(stall.reading + stall.decoding + stall.transfer)
    assert stall.reading > stall.transfer
    assert stall.decoding == 0  # a subclass's rows are read as they are
    assert "% waiting for data" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "To shorten it: more threads (num_threads=)" in page


def test_a_stream_tells_decoding_from_reading():
    rows = datasets.Dataset.from_dict(points(50)).to_iterable_dataset().map(late)
    stall = run(HFStreamingSource.from_dataset(rows)).input_stall
    assert stall.reading > stall.decoding > 0


@pytest.mark.parametrize("kind", [HFIndexedSource, HFStreamingSource])
def test_a_slow_transform_is_told_from_reading(kind, tmp_path):
    rows = datasets.Dataset.from_dict(points(50))
    source = kind.from_dataset(rows, transform=late, num_threads=2)
    stall = run(source, workdir=tmp_path).input_stall
    assert stall == pytest.approx(stall.reading + stall.decoding + stall.transfer)
    assert stall.decoding > stall.reading > 0
    assert stall.decoding > stall.transfer > 0
    page = (tmp_path / "report.html").read_text()
    told = told_of_stall(stall)
    assert f"decoding and transforming {stall.decoding:.1%}, the transfer" in told
    assert "more threads (num_threads=), a cheaper transform" in told
    assert told in page


def test_the_largest_part_decides_what_to_change():
    assert "a cheaper transform" in told_of_stall(InputStall(0.01, 0.1, 0.02))
    assert "uint8" in told_of_stall(InputStall(0.0, 0.02, 0.1))
    assert "To shorten" not in told_of_stall(InputStall(0.02, 0.02, 0.0))
    assert np.isclose(InputStall(0.02, 0.02, 0.0), 0.04)


@pytest.mark.parametrize("kind", ["indexed", "stream"])
def test_the_next_block_goes_to_the_devices_while_the_loop_runs_through_its_own(kind):
    rows = datasets.Dataset.from_dict(points(50)).to_iterable_dataset()
    source = Rows(points(50)) if kind == "indexed" else HFStreamingSource.from_dataset(rows)
    senders = queue.SimpleQueue()

    def to_devices(*arrays):
        data = jax.device_put(arrays)
        senders.put(threading.current_thread().name)
        return data

    blocks = Blocks(source, 8, 4, 1, to_devices)
    with contextlib.closing(blocks):
        blocks.take()
        # Nobody asks for another block, as in a chunk of steps: two more are sent all the same.
        assert {senders.get(timeout=20) for _ in range(3)} == {"trainers-read"}
