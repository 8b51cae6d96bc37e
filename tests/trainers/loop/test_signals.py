"""Signals: SIGTERM saves and gives the process back, Ctrl-C stops after the chunk."""

import os
import signal
import threading

import jax
import pytest

from tests.support.models import MLP, assert_same, labelled
from tests.support.runs import at, said, trainer
from trainers import Trainer, every

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def received():
    """SIGTERMs that reached a handler of the caller's own, which is there before and after."""
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_returns_and_gives_the_handler_back(tmp_path, received):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    result = trainer(tmp_path, callbacks=[at(7)]).fit()
    assert (result.status, result.step) == ("preempted", 7)
    assert (tmp_path / "checkpoints" / "7").exists()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert received == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]  # the process goes on by itself


def test_at_most_the_chunk_in_flight_passes(tmp_path):
    """A signal from within the compiled steps."""
    count = []

    def strike(_):
        count.append(1)
        if len(count) == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    def loss(model, batch):
        jax.debug.callback(strike, batch["x"])
        return model(batch["x"])[:, 0] ** 2

    result = Trainer(
        MLP(), labelled(50), loss=loss, batch_size=10, steps=5000, workdir=tmp_path
    ).fit()
    assert result.status == "preempted"
    assert 30 <= result.step < 600  # a chunk is at most eight times the one before
    assert len(count) >= result.step
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == result.step


_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # reported before XLA compiles


@pytest.mark.parametrize(("step", "program"), [(0, 1), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_sigterm_while_compiling(tmp_path, step, program):
    """Before the first step, and before the first evaluation."""
    count = []

    def strike(name, _, *, fun_name="", **__):
        if name == _LOWERED and "chunk" in fun_name:
            count.append(fun_name)
            if len(count) == program:
                os.kill(os.getpid(), signal.SIGTERM)

    jax.monitoring.register_event_duration_secs_listener(strike)
    result = trainer(tmp_path).fit()
    assert len(count) == program
    assert (result.status, result.step) == ("preempted", step)
    assert all("eval/loss" not in row for row in result.history)
    expected = trainer(None).fit()
    result = trainer(tmp_path).fit()
    assert result.history == expected.history
    assert_same(result.model, expected.model)


@pytest.mark.slow
def test_sigterm_after_the_last_report_is_no_preemption(tmp_path):
    result = trainer(tmp_path, callbacks=[at(20)]).fit()
    assert (result.status, result.step) == ("finished", 20)


def test_without_a_workdir_sigterm_ends_the_run_too():
    result = trainer(None, callbacks=[at(6)]).fit()
    assert (result.status, result.step) == ("preempted", 6)


def test_ctrl_c_stops_at_the_chunks_end_and_the_next_start_goes_on(tmp_path):
    expected = trainer(tmp_path / "whole").fit()
    stopped = trainer(tmp_path / "cut", callbacks=[at(7, signal.SIGINT)])
    result = stopped.fit()
    assert (result.status, result.step) == ("stopped", 7)
    assert result.model is stopped.model
    assert stopped.evaluate()["loss"] > 0
    assert (tmp_path / "cut" / "checkpoints" / "7").exists()
    again = trainer(tmp_path / "cut").fit()
    assert again.history == expected.history
    assert_same(again.model, expected.model)


def test_a_second_ctrl_c_raises_and_the_model_is_usable(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def twice(run):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    interrupted = trainer(tmp_path, callbacks=[every(7, twice)])
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert interrupted.evaluate()["loss"] > 0
    assert_same(interrupted.model, trainer(None, steps=7).fit().model)
    assert trainer(tmp_path).fit().status == "finished"


def test_outside_the_main_thread_that_is_said_once_and_training_works(tmp_path, caplog):
    results = []
    thread = threading.Thread(target=lambda: results.append(trainer(tmp_path, steps=4).fit()))
    thread.start()
    thread.join()
    assert results[0].status == "finished"
    (warning,) = said(caplog, "trainers.loop.signals")
    assert "outside the main thread" in warning
