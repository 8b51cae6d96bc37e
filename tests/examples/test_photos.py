"""Pictures of many sizes: they are drawn, held out by a fifth, and seen again after a resume."""

import re

import pytest

from tests.support.examples import run

FEW = "--pictures", 10, "--size", 16, "--epochs", 3


def test_photos_runs_small(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "photos", *FEW, "--workdir", tmp_path, "--steps", 2, "--seed", 1)
    told = capsys.readouterr().out
    assert "48 pictures to train on, 12 held out" in told
    assert re.search(r"held out: loss [\d.]+, accuracy \d+\.\d\d%", told)
    assert len(list(tmp_path.glob("textures/*/*.jpg"))) == 60


@pytest.mark.slow
def test_photos_goes_on_where_it_was_stopped(monkeypatch, capsys, tmp_path):
    def held_out(workdir, steps):
        run(monkeypatch, "photos", *FEW, "--workdir", tmp_path / workdir, "--steps", steps)
        return capsys.readouterr().out.rpartition("held out: ")[2].partition("  (")[0]

    whole = held_out("whole", 4)
    stopped = held_out("parts", 2)
    assert held_out("parts", 4) == whole != stopped
