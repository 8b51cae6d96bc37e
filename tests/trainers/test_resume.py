"""An interrupted run ends where an uninterrupted one does, bit for bit."""

import itertools
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from datarax import Pipeline
from tests.support.models import assert_same, memory, points
from tests.support.runs import at, checkpoint, rows, trainer, without_id
from trainers import Checkpoints, every
from trainers.callbacks import best_so_far, early_stopping, log_learning_rate

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    """An uninterrupted run of 20 steps, and its workdir."""
    workdir = tmp_path_factory.mktemp("whole")
    return trainer(workdir).fit(), workdir


def _assert_whole(result, workdir, whole):
    expected, other = whole
    assert result.status == "finished"
    assert result.history == expected.history
    assert result.metrics == expected.metrics
    assert_same(result.model, expected.model)
    assert_same(result.ema, expected.ema)
    assert rows(workdir) == rows(other)
    assert checkpoint(workdir, 20) == checkpoint(other, 20)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["eager", "transformed", "grain"])
def test_killed_processes_end_as_an_undisturbed_one(data):
    """The short form of the benchmark: SIGKILL and SIGTERM at random moments."""
    command = "benchmarks.kill", "--kills", "2", "--steps", "16", "--data", data
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 differences" in done.stdout


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([1], marks=pytest.mark.slow),
        pytest.param([4], marks=pytest.mark.slow),
        pytest.param([7, 8, 9], marks=pytest.mark.slow),
        pytest.param([3, 5], marks=pytest.mark.slow),
        [5, 19],
    ],
)
def test_sigterm_at_any_step_any_number_of_times(tmp_path, whole, steps):
    for step in steps:
        result = trainer(tmp_path, callbacks=[at(step)]).fit()
        assert (result.status, result.step) == ("preempted", step)
    _assert_whole(trainer(tmp_path).fit(), tmp_path, whole)


KILLED = """
import signal, sys
from tests.support.runs import at, trainer
trainer(sys.argv[1], callbacks=[at(11, signal.SIGKILL)]).fit()
"""


def test_a_killed_process_ends_as_an_undisturbed_one(tmp_path, whole):
    path = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "checkpoints" / "12").exists()
    _assert_whole(trainer(tmp_path).fit(), tmp_path, whole)


@pytest.mark.slow
def test_resuming_from_an_older_checkpoint_writes_every_row_once(tmp_path, whole):
    def fail(run):
        raise SystemExit  # ends the run as a kill does: nothing is saved first

    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[every(11, fail)]).fit()
    assert rows(tmp_path)[-1]["step"] == 10  # past the checkpoint of step 8
    _assert_whole(trainer(tmp_path).fit(), tmp_path, whole)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (15, signal.SIGINT),
        pytest.param(5, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(20, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_mid_evaluation_leaves_the_report_to_the_next_start(tmp_path, step, number):
    calls = []
    long = Pipeline(source=memory(points(80, seed=1)), stages=[without_id], batch_size=2)
    expected = trainer(tmp_path / "whole", eval_source=long).fit()
    strike = _striking(step // 5, number)
    result = trainer(tmp_path / "cut", eval_source=strike, callbacks=[calls.append]).fit()
    status = "preempted" if number == signal.SIGTERM else "stopped"
    assert (result.status, result.step) == (status, step)
    assert result.history == [row for row in expected.history if row["step"] < step]
    assert len(calls) == len(result.history)  # no callback at a step that is not reported
    result = trainer(tmp_path / "cut", eval_source=long).fit()
    assert result.status == "finished"
    assert result.history == expected.history
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert_same(result.model, expected.model)
    assert checkpoint(tmp_path / "cut", 20) == checkpoint(tmp_path / "whole", 20)


def _striking(evaluation, number=signal.SIGTERM):
    """An evaluation pipeline of 40 batches that sends a signal in its `evaluation`-th pass."""
    count = itertools.count(1)

    def strike(_):
        if next(count) == 40 * (evaluation - 1) + 3:
            os.kill(os.getpid(), number)

    def stage(batch):
        jax.debug.callback(strike, batch["label"])
        return without_id(batch)

    return Pipeline(source=memory(points(80, seed=1)), stages=[stage], batch_size=2)


def test_a_finished_run_is_not_run_again(tmp_path, whole):
    trainer(tmp_path).fit()
    saved = (tmp_path / "checkpoints" / "20").stat()
    calls = []
    result = trainer(tmp_path, callbacks=[calls.append]).fit()
    _assert_whole(result, tmp_path, whole)
    assert calls == []
    trainer(tmp_path, steps=21, checkpoint=Checkpoints(every=4, keep=9)).fit()
    assert (tmp_path / "checkpoints" / "20").stat().st_ino == saved.st_ino  # nor saved again


def test_what_may_change_freely(tmp_path, whole):
    calls = []
    first = trainer(
        tmp_path,
        steps=8,
        log_every=4,
        eval_every=100,
        callbacks=[calls.append],
        checkpoint=Checkpoints(every=3, keep=1, every_minutes=10),
    ).fit()
    assert (first.status, first.step) == ("finished", 8)
    result = trainer(tmp_path).fit()
    assert_same(result.model, whole[0].model)
    assert_same(result.ema, whole[0].ema)
    assert result.metrics["eval/loss"] == whole[0].metrics["eval/loss"]


@pytest.mark.slow
def test_epochs_may_grow(tmp_path, whole):
    first = trainer(tmp_path, steps=None, epochs=1).fit()
    assert first.step == 7
    result = trainer(tmp_path, steps=None, epochs=2).fit()
    assert result.step == 14
    straight = trainer(None, steps=14).fit()
    assert_same(result.model, straight.model)


# --- callbacks -----------------------------------------------------------------------------------


def _rate(step):
    return 1 / (1 + step)


def _with_callbacks(workdir, *more, **arguments):
    callbacks = [
        log_learning_rate(_rate),
        best_so_far("eval/loss", mode="min"),
        early_stopping("eval/loss", patience=2, least=10.0),
        *more,
    ]
    return trainer(workdir, steps=40, callbacks=callbacks, **arguments)


def test_a_resumed_run_stops_where_an_uninterrupted_one_does(tmp_path):
    expected = _with_callbacks(tmp_path / "whole").fit()
    assert expected.status == "stopped"
    assert expected.step < 40
    for step in (4, 8, 11):  # 4 and 8 are checkpoints that are no log
        _with_callbacks(tmp_path / "cut", at(step)).fit()
    result = _with_callbacks(tmp_path / "cut").fit()
    assert (result.status, result.step) == ("stopped", expected.step)
    assert result.history == expected.history
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert_same(result.model, expected.model)

    again = _with_callbacks(tmp_path / "cut").fit()  # what stopped it still does
    assert (again.status, again.step, again.history) == ("stopped", expected.step, expected.history)
    further = trainer(tmp_path / "cut", steps=expected.step + 5).fit()  # nothing stops it now
    assert (further.status, further.step) == ("finished", expected.step + 5)


@pytest.mark.parametrize("cuts", [(3, 8), pytest.param((3, 6, 8), marks=pytest.mark.slow)])
def test_a_callback_is_called_once_a_step_however_often_the_run_is_cut(tmp_path, cuts):
    calls = []

    def note(run):
        calls.append(run.step)

    for step in cuts:
        trainer(tmp_path, callbacks=[note, at(step)]).fit()
    trainer(tmp_path, callbacks=[note]).fit()
    assert calls == sorted(set(calls))


def test_numbers_of_jax_and_nan_in_the_history_come_back(tmp_path):
    def note(run):
        run.history[-1] |= {"jax": jax.numpy.float32(0.1), "nan": np.nan}

    trainer(tmp_path, callbacks=[note, at(6)]).fit()
    history = trainer(tmp_path, callbacks=[note]).fit().history
    assert [row["jax"] for row in history] == [np.float32(0.1)] * len(history)
    assert all(np.isnan(row["nan"]) for row in history)


def test_an_object_in_the_history_is_refused(tmp_path):
    def note(run):
        run.history[-1]["model"] = run.model()

    with pytest.raises(TypeError, match=r"a Normed into run.history.*write float"):
        trainer(tmp_path, callbacks=[note]).fit()
