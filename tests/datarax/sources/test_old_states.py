"""States that version 0.1.0 took go on with the batches that it went on with."""

import json
from pathlib import Path

import pytest

from tests.support import old_runs

SAVED = json.loads((Path(__file__).parents[2] / "data" / "states.json").read_text())


@pytest.mark.parametrize("name", old_runs.SOURCES)
def test_the_same_batches_follow(name, tmp_path):
    source = old_runs.SOURCES[name](tmp_path)
    source.set_state(SAVED[name]["state"])
    assert old_runs.following(source) == SAVED[name]["next"]


@pytest.mark.parametrize("name", old_runs.SOURCES)
def test_the_same_batches_come_from_the_start(name, tmp_path):
    source = old_runs.SOURCES[name](tmp_path)
    assert old_runs.stateful(source)["next"] == SAVED[name]["next"]
