"""Checkpoints: what is saved is what is read, whatever happens to the files."""

import concurrent.futures
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support.models import assert_same
from tests.support.runs import at, ruin, said, trainer
from trainers import Checkpoints, load
from trainers.workdir import store as stores
from trainers.workdir.store import DamagedError, Store

pytestmark = pytest.mark.usefixtures("compiled_once")


def _arrays(seed, size=50):
    keys = jax.random.split(jax.random.key(seed), 3)
    model = {"kernel": jax.random.normal(keys[0], (size, 4)), "key": keys[1]}
    return {"model": model, "training": {"mu": jax.random.normal(keys[2], (size, 4))}}


def _saved(directory, steps, keep=9):
    store = Store(directory, keep=keep)
    for step in steps:
        store.save(step, _arrays(step), {"index": step}, {"step": step})
    store.wait()
    return store


def _read(store, step, like):
    data, run = store.read(step)
    return data, run["step"], store.restore(step, like, run)


# --- a store -------------------------------------------------------------------------------------


def test_what_was_saved_comes_back(tmp_path):
    with_like = _arrays(0)
    store = _saved(tmp_path, [3, 5])
    assert store.steps() == [3, 5]
    data, step, arrays = _read(store, 5, with_like)
    assert (data, step) == ({"index": 5}, 5)
    assert_same(arrays, _arrays(5))
    store.close()

    reader = Store(tmp_path)
    _, _, arrays = _read(reader, 3, {"model": None})
    np.testing.assert_array_equal(arrays["model"]["kernel"], _arrays(3)["model"]["kernel"])
    reader.close()


def test_only_the_newest_are_kept(tmp_path):
    store = _saved(tmp_path, [1, 2, 3, 4], keep=2)
    assert store.steps() == [3, 4]
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    arrays = {"model": {"x": jnp.zeros(300_000)}, "training": {"y": jnp.zeros(300_000)}}
    store = Store(tmp_path, keep=9)
    for step in range(5):
        store.save(step, arrays, {}, {"step": step})
        for _ in range(3):
            arrays = bump(arrays)
    store.wait()
    for step in range(5):
        _, _, found = _read(store, step, {"model": None, "training": None})
        assert (
            set(found["model"]["x"].tolist()) == set(found["training"]["y"].tolist()) == {3 * step}
        )
    store.close()


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    _saved(tmp_path, [1]).close()
    (tmp_path / "2.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    reader = Store(tmp_path)
    assert reader.steps() == [1]
    reader.close()
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists()  # it may be another process's
    store = _saved(tmp_path, [2])
    assert store.steps() == [1, 2]
    store.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_step_saved_again_replaces_what_was_there(tmp_path, killed):
    store = _saved(tmp_path, [1, 2])
    if killed:  # between moving the old one away and the new one being whole
        store.close()
        (tmp_path / "2").rename(tmp_path / "replaced-2")
        store = Store(tmp_path, keep=9)
        assert store.steps() == [1, 2]
    store.save(2, _arrays(7), {}, {"step": 2})
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    reader = Store(tmp_path)
    assert_same(_read(reader, 2, _arrays(0))[2], _arrays(7))
    reader.close()


def test_stores_on_several_threads_save_at_once(tmp_path):
    def save(name):
        store = _saved(tmp_path / name, range(6), keep=2)
        store.close()
        return store.steps()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(save, "abcd")) == [[4, 5]] * 4


@pytest.mark.parametrize(
    "name",
    [
        "run[lr=0.1] größe 50%",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("a b", "x*?", "#1")),
    ],
)
def test_a_path_of_any_characters(tmp_path, name):
    store = _saved(tmp_path / name, [1, 2], keep=1)
    assert store.steps() == [2]
    assert_same(_read(store, 2, _arrays(0))[2], _arrays(2))
    store.close()
    assert [path.name for path in (tmp_path / name).iterdir()] == ["2"]


def test_home_is_a_workdir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(stores.absolute("~/runs")) == f"{tmp_path}/runs"


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.slow  # single damages are tried below
def test_no_damage_of_a_file_goes_unnoticed():
    """The short form of the benchmark: every block and every file in turn."""
    # In a process of its own: where reading fails, Orbax leaves tasks whose errors nobody asks for.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.damage", "--size", "1024"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = int(re.search(r"(\d+) cases, 0 wrong", done.stdout).group(1))
    assert cases > 150


def test_a_damaged_newest_is_set_aside_and_its_step_saved_again(tmp_path, caplog):
    expected = trainer(tmp_path / "whole").fit()
    cut = tmp_path / "cut"
    trainer(cut, callbacks=[at(9)]).fit()
    ruin(cut / "checkpoints" / "9")
    result = trainer(cut, checkpoint=Checkpoints(every=3)).fit()
    (warning,) = said(caplog, "trainers.workdir.store")
    assert "checkpoints/9 is damaged" in warning
    assert "It is set aside as damaged-9-" in warning
    assert "Step 8 before it is taken" in warning
    assert result.history == expected.history
    assert_same(result.model, expected.model)
    names = sorted(path.name for path in (cut / "checkpoints").iterdir())
    assert names[:3] == ["15", "18", "20"]
    assert names[3].startswith("damaged-9-")


def test_all_damaged_is_an_error_that_names_each_and_nothing_is_touched(tmp_path):
    trainer(tmp_path, steps=8).fit()
    for step in ("4", "8"):
        ruin(tmp_path / "checkpoints" / step)
    message = r"Every checkpoint in .* is damaged \(step 8: .*; step 4: .*begin anew in another"
    for attempt in (trainer(tmp_path).fit, trainer(tmp_path).fit, lambda: load(tmp_path)):
        with pytest.raises(RuntimeError, match=message):
            attempt()


def test_loading_never_moves_what_is_damaged(tmp_path, caplog):
    trainer(tmp_path, steps=8).fit()
    ruin(tmp_path / "checkpoints" / "8")
    load(tmp_path)
    (warning,) = said(caplog, "trainers.workdir.store")
    assert "set aside" not in warning
    assert (tmp_path / "checkpoints" / "8").exists()
    with pytest.raises(RuntimeError, match=r"step 8 .* is damaged: .* its steps, \[4, 8\]"):
        load(tmp_path, step=8)


def test_a_changed_data_or_run_item_is_damage(tmp_path):
    for item, old, new in [("data", '"index": 1', '"index": 2'), ("run", '"step": 1', '"step": 2')]:
        directory = tmp_path / item
        store = _saved(directory, [1])
        path = directory / "1" / item / "metadata"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(DamagedError, match="its run or data item is not what was saved"):
            store.read(1)
        store.close()


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(stores, "FORMAT", stores.FORMAT + 1)
        trainer(tmp_path, steps=4).fit()
    with pytest.raises(
        ValueError, match=r"has format 2, this version reads up to 1: update datarax"
    ):
        trainer(tmp_path).fit()


# --- a full disk ---------------------------------------------------------------------------------

FULL = """
import logging, pathlib, resource, signal, sys, time
from tests.support.models import MLP
from tests.support.runs import trainer
from trainers import Checkpoints, every

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's own tracebacks

def limit(bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))

def full(run):
    if run.step == 6:
        while not pathlib.Path(sys.argv[1], "checkpoints", "5").exists():
            time.sleep(0.01)
        limit(2000)
    if run.step == int(sys.argv[2]):
        limit(resource.RLIM_INFINITY)

try:
    result = trainer(
        sys.argv[1], callbacks=[every(1, full)], checkpoint=Checkpoints(every=5, keep=1)
    ).fit()
    print(result.status, result.step)
except OSError as error:
    print("OSError:", error)
"""


def _full(workdir, until):
    done = subprocess.run(
        [sys.executable, "-c", FULL, workdir, str(until)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.slow  # the disk that is full to the end is tried by the next
def test_a_full_disk_is_said_and_training_goes_on(tmp_path):
    end, output = _full(tmp_path, until=17)
    assert end == "finished 20"
    assert "Step 10 could not be saved: " in output
    assert "Training goes on; the checkpoints before it are whole." in output
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["20"]  # and nothing half written
    result = trainer(tmp_path, steps=20).fit()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [row["step"] for row in result.history]


def test_a_disk_that_is_full_to_the_end_keeps_the_checkpoint_before(tmp_path):
    end, _ = _full(tmp_path, until=-1)
    assert end.startswith("OSError: Step 20 could not be saved")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]
    expected = trainer(None).fit()
    assert_same(trainer(tmp_path).fit().model, expected.model)


# --- size, and others' tools ---------------------------------------------------------------------


def test_a_checkpoint_is_hardly_larger_than_its_arrays(tmp_path):
    trainer(tmp_path, steps=20).fit()
    directory = tmp_path / "checkpoints" / "20"
    store = Store(tmp_path / "checkpoints")
    _, run = store.read(20)
    arrays = jax.tree.leaves(store.restore(20, {"model": None, "training": None}, run))
    store.close()
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert size <= sum(x.nbytes for x in arrays) + 32 * 1024 + 1024 * len(arrays)
    assert sum(path.stat().st_size for path in (directory / "data").iterdir()) <= 1024


def test_parameters_open_with_plain_orbax(tmp_path):
    result = trainer(tmp_path, steps=4).fit()
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "checkpoints" / "4" / "model")
    np.testing.assert_array_equal(found["out"]["kernel"], result.model.out.kernel[...])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every=0: expected an integer from 1"),
        ({"keep": 0}, "keep=0"),
        ({"best": "eval/loss"}, r"best='eval/loss': expected a pair"),
        ({"best": ("eval/loss", "least")}, "expected a pair"),
        ({"every_minutes": 0}, "every_minutes=0: expected a positive number"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(**arguments)
