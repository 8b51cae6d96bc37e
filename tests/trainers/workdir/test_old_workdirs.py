"""Runs that version 0.1.0 saved go on, and end with the numbers that it ended with.

Floats are compared to 1e-5, since another processor rounds otherwise; records exactly.
"""

import functools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import trainers
from tests.support import old_runs
from tests.support.runs import rows

DATA = Path(__file__).parents[2] / "data"


def unpacked(name, tmp_path):
    with tarfile.open(DATA / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Goes on with an old run, once; returns its workdir and its result."""

    @functools.cache
    def go_on(name):
        workdir = unpacked(name, tmp_path_factory.mktemp(name))
        return workdir, old_runs.trainer(name, workdir).fit()

    return go_on


def close(given, expected):
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", old_runs.RUNS)
def test_it_goes_on_with_the_next_batch_and_ends_as_if_undisturbed(name, ended):
    workdir, result = ended(name)
    expected = json.loads((DATA / f"{name}.json").read_text())
    assert (result.status, result.step) == ("finished", old_runs.STEPS)
    given = json.loads(json.dumps(old_runs.outcome(result)))

    assert given["arrays"].keys() == expected["arrays"].keys()
    assert given["arrays"]["records"] == expected["arrays"]["records"]
    for path, array in expected["arrays"].items():
        close(given["arrays"][path], array)
    for path, array in (expected["ema"] or {}).items():
        close(given["ema"][path], array)

    assert [row["step"] for row in given["history"]] == [row["step"] for row in expected["history"]]
    for row, other in zip(given["history"], expected["history"], strict=True):
        for key, value in other.items():
            if key.startswith("train/"):
                close(row[key], value)
            if key.startswith("eval/"):
                # The average that is evaluated holds BatchNorm's statistics since 0.1.0.
                np.testing.assert_allclose(row[key], value, rtol=1e-2)
    assert [row["step"] for row in rows(workdir)] == [row["step"] for row in expected["history"]]
    # An old checkpoint has no count: that of 11 batches is known of data with a length, 82 records.
    begun = 88 if name == "stream" else 82
    assert given["history"][-1]["rows_seen"] == begun + (50 - 32) + 6 * 8


def test_its_best_step_stays_the_best(ended):
    _, result = ended("full")
    expected = json.loads((DATA / "full.json").read_text())
    assert result.best[0] == expected["best"][0] == 5
    close(result.best[1], expected["best"][1])


@pytest.mark.parametrize("step", [None, "best", 11])
def test_it_loads(step, tmp_path):
    workdir = unpacked("full", tmp_path)
    model = old_runs.NormedDiary()
    before = model.hidden.kernel[...]
    trainers.load(workdir, model, **({} if step is None else {"step": step}))
    steps = 5 if step == "best" else old_runs.STOP
    assert int(model.step[...]) == steps
    assert not np.array_equal(model.hidden.kernel[...], before)
