"""The checkpointer: what a workdir refuses, and how to go on all the same."""

import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from clu import metrics as clu
from flax import nnx

from datarax import Pipeline
from tests.support.models import MLP, Normed, assert_same, memory, points
from tests.support.runs import at, checkpoint, noise, said, trainer
from trainers import Checkpoints, Trainer, every, load

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def eight(tmp_path_factory, compiled_once):
    """The workdir of a run of 8 steps."""
    workdir = tmp_path_factory.mktemp("eight")
    trainer(workdir, callbacks=[at(8)]).fit()
    return workdir


@pytest.fixture
def begun(eight, tmp_path):
    """A copy of that workdir."""
    return shutil.copytree(eight, tmp_path / "begun")


class Wider(Normed):
    """A model of another shape."""

    def __init__(self):
        super().__init__(classes=4)


OTHER = {
    "data": {"source": memory(points(50, seed=9), shuffle=True)},
    "length": {"source": memory(points(51), shuffle=True)},
    "seed": {"source": memory(points(50), shuffle=True, seed=8)},
    "shuffle": {"source": memory(points(50))},
    "batch size": {"batch_size": 16},
}
OFTEN = ("data",)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(given, id=name, marks=[] if name in OFTEN else pytest.mark.slow)
        for name, given in OTHER.items()
    ],
)
def test_other_data_is_refused_and_restart_begins_it_anew(begun, arguments, caplog):
    before = sorted(path.name for path in (begun / "checkpoints").iterdir())
    with pytest.raises(ValueError, match=r'step 8 .* cannot go on.*resume_data="restart"') as error:
        trainer(begun, **arguments).fit()
    if "source" in arguments and "seed" not in str(error.value):
        own = (memory(points(50), shuffle=True), arguments["source"])
        assert all(source.fingerprint in str(error.value) for source in own)
    assert sorted(path.name for path in (begun / "checkpoints").iterdir()) == before

    restarted = trainer(begun, resume_data="restart", callbacks=[at(12)], **arguments)
    assert restarted.fit().step == 12
    assert checkpoint(begun, 12)["first"] == 8
    (warning,) = said(caplog, "trainers.workdir.checkpointer")
    assert "begin anew" in warning
    # With the new data it goes on exactly, whether the override is still written or not.
    ends = [
        trainer(begun, steps=14, resume_data=how, **arguments).fit() for how in ("restart", "exact")
    ]
    assert [end.step for end in ends] == [14, 14]
    assert len(said(caplog, "trainers.workdir.checkpointer")) == 1


def test_a_missing_state_of_the_data_is_refused_and_restart_begins_it_anew(begun):
    shutil.rmtree(begun / "checkpoints" / "8" / "data")
    own = memory(points(50), shuffle=True).fingerprint
    with pytest.raises(ValueError, match=rf'no state of the data.*{own}.*resume_data="restart"'):
        trainer(begun).fit()
    result = trainer(begun, resume_data="restart", callbacks=[at(12)]).fit()
    assert result.step == 12
    assert checkpoint(begun, 12)["first"] == 8


def test_the_key_of_the_stages_is_compared_where_there_are_stages(tmp_path):
    source = memory({name: column for name, column in points(16).items() if name != "id"})

    def run(steps, seed, stages=None):
        given = source
        if stages is not None:
            rngs = nnx.Rngs(seed)
            given = Pipeline(source=source, stages=stages, batch_size=8, rngs=rngs)
        options = {"batch_size": 8, "steps": steps, "seed": seed, "workdir": tmp_path}
        return Trainer(MLP(), given, **options).fit().step

    assert [run(2, seed=0), run(3, seed=1)] == [2, 3]
    assert run(4, seed=2, stages=[noise]) == 4  # of no other key has anything been drawn
    with pytest.raises(ValueError, match=r"It had rngs of the Pipeline .*, this run has"):
        run(5, seed=3, stages=[noise])
    assert run(5, seed=3, stages=[]) == 5  # a checkpoint that holds a key which is not used


@pytest.mark.slow
def test_restarted_data_begins_with_batch_0(begun):
    seen = []

    def note(run):
        seen.append(run.step)

    source = memory(points(50, seed=9), shuffle=True)
    result = trainer(begun, source=source, resume_data="restart", steps=15, callbacks=[note]).fit()
    straight = trainer(
        None, model=load(begun, Normed(), step=8, average=False), source=source, steps=7
    ).fit()
    assert result.step == 15
    # Adam's moments differ, but the same seven batches went by: the statistics are close.
    for name in ("mean", "var"):
        one = getattr(result.model.norm, name)[...]
        np.testing.assert_allclose(one, getattr(straight.model.norm, name)[...], atol=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"model": Wider()},
            r"model.out.bias is float32\(3,\), this run's float32\(4,\)",
            marks=SLOW,
        ),
        ({"model": MLP()}, r"is of another run: .*model.*missing"),
        ({"optimizer": optax.sgd(0.1)}, r"training.optimizer.0.count is int32\(\), this run's mis"),
        pytest.param({"ema": None}, r"training.ema.*this run's missing", marks=SLOW),
    ],
    ids=["shape", "model", "optimizer", "ema"],
)
def test_another_model_or_optimizer_is_refused_by_name(begun, arguments, message):
    for how in ("exact", "restart"):
        with pytest.raises(ValueError, match=message) as error:
            trainer(begun, resume_data=how, **arguments).fit()
        assert "checkpoint of step 8 in" in str(error.value)
        assert "begin anew in another workdir" in str(error.value)


# --- the workdir ---------------------------------------------------------------------------------


def test_a_workdir_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"workdir='.*' cannot be written: .* or workdir=None"):
            trainer(path).fit()


UNPRIVILEGED = """
import os, sys
import tests.support.runs as runs
import jax
jax.devices()
os.setuid(65534)
try:
    runs.trainer(sys.argv[1]).fit()
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.slow
def test_a_read_only_workdir_is_said(tmp_path):
    directory = tmp_path / "read-only"
    directory.mkdir(mode=0o555)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, directory],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "cannot be written: " in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


def test_two_runs_on_one_workdir(tmp_path):
    errors = []

    def second(run):
        try:
            trainer(tmp_path).fit()
        except RuntimeError as error:
            errors.append(str(error))

    assert trainer(tmp_path, callbacks=[every(5, second)]).fit().status == "finished"
    assert len(errors) == 4
    assert f"Another run uses workdir='{tmp_path}' (process {os.getpid()} on" in errors[0]


# --- when and what -------------------------------------------------------------------------------


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(None).fit()
    assert list(tmp_path.iterdir()) == []


def test_every_minutes_saves_by_the_clock(tmp_path):
    names = []

    def look(run):
        names.append(sorted(p.name for p in (tmp_path / "checkpoints").glob("[0-9]*")))

    clock = Checkpoints(every=1000, every_minutes=1e-6, keep=100)
    trainer(tmp_path, checkpoint=clock, callbacks=[every(5, look)]).fit()
    assert any(int(name) < 20 for name in names[-1])


def test_the_best_survives_a_kill_while_it_is_written(tmp_path):
    best = Checkpoints(every=5, best=("eval/loss", "max"))  # the first evaluation is the best
    trainer(tmp_path, checkpoint=best, callbacks=[at(5)]).fit()
    (name,) = (path.name for path in (tmp_path / "best").iterdir())
    assert name == "5"
    (tmp_path / "best" / "5").rename(tmp_path / "best" / "5.orbax-checkpoint-tmp")
    result = trainer(tmp_path, checkpoint=best).fit()
    assert result.best[0] == 5
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["5"]
    assert_same(load(tmp_path, Normed(), step="best"), trainer(None, steps=5).fit().ema)


def test_a_best_of_a_metric_that_no_log_has_is_said_once(tmp_path, caplog):
    def add(run):
        run.history[-1]["own"] = 1.0

    for workdir, best in ((tmp_path, "eval/acc"), (None, "own")):
        options = {"checkpoint": Checkpoints(best=(best, "max")), "callbacks": [add]}
        result = trainer(workdir, **options).fit()
        assert (result.best is None) == (best == "eval/acc")
    (warning,) = said(caplog, "trainers.workdir.checkpointer")
    assert "best=('eval/acc', 'max'), but no log up to step 5 has that metric" in warning
    assert "there are 'eval/loss', 'own', 'train/loss'." in warning


# Of these only step 10 is an evaluation, too.
@pytest.mark.parametrize("step", [pytest.param(9, marks=pytest.mark.slow), 10])
def test_an_exception_of_a_callback_saves_the_step_and_its_report_is_done_by_the_next_start(
    tmp_path, step
):
    def fail(run):
        raise ZeroDivisionError

    failing = trainer(tmp_path, callbacks=[every(step, fail)])
    with pytest.raises(ZeroDivisionError):
        failing.fit()
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == sorted(["4", "8", str(step)])
    assert_same(failing.model, trainer(None, steps=step).fit().model)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    result, expected = trainer(tmp_path).fit(), trainer(None).fit()
    assert result.history == expected.history
    assert_same(result.model, expected.model)


def test_a_workdir_may_be_relative_or_a_file_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = trainer("runs/one").fit()
    assert_same(load("runs/one", Normed()), result.ema)
    assert trainer("runs/one").fit().step == result.step
    assert trainer(f"file://{tmp_path}/runs/one").fit().step == result.step
    assert_same(load(f"file://{tmp_path}/runs/one", Normed()), result.ema)


TWO = clu.Collection.create(mean=clu.Average.from_output("loss"))


@pytest.mark.parametrize(
    "more", [pytest.param({"metrics": TWO}, marks=pytest.mark.slow), {"ema": 0.5}]
)
def test_a_metric_or_an_average_more_begins_where_the_run_goes_on(tmp_path, more):
    trainer(tmp_path, ema=None, callbacks=[at(7)]).fit()
    result = trainer(tmp_path, **{"ema": None, **more}).fit()
    plain = trainer(None, ema=None).fit()
    assert_same(result.model, plain.model)
    assert (result.ema is not None) == ("ema" in more)
    assert ("train/mean" in result.metrics) == ("metrics" in more)


def test_names_that_are_one_once_joined_are_refused_before_the_first_step(tmp_path):
    class Dotted(MLP):
        def __init__(self):
            super().__init__()
            self.more = nnx.Dict(
                {"a.b": nnx.Param(np.ones(2)), "a": nnx.Dict({"b": nnx.Param(np.ones(2))})}
            )

    steps = []
    source = memory({n: c for n, c in points(16).items() if n != "id"})
    options = {"batch_size": 8, "workdir": tmp_path, "callbacks": [every(1, steps.append)]}
    with pytest.raises(ValueError, match=r"'more\.a\.b'"):
        Trainer(Dotted(), source, **options).fit()
    assert steps == []


def test_numpy_integers_are_integers(tmp_path):
    eight = np.int64(8)
    options = {"batch_size": eight, "steps": eight, "log_every": np.int32(2), "ema": None}
    often = Checkpoints(every=np.int16(3), keep=np.uint8(2))
    assert trainer(tmp_path, checkpoint=often, **options).fit().step == 8
    assert trainer(tmp_path, checkpoint=often, **{**options, "steps": np.int64(9)}).fit().step == 9


def test_a_transfer_guard_of_the_caller_does_no_harm(tmp_path):
    one = trainer(tmp_path, steps=4)
    with jax.transfer_guard("disallow"):
        assert one.fit().status == "finished"
