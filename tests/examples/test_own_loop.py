"""The loops by hand: each sees the same batches, and goes on where Orbax says."""

import pytest

from tests.support.examples import run


def lines(capsys):
    return [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]


def test_all_loops_do_the_same(monkeypatch, capsys):
    run(monkeypatch, "own_loop", "--steps", 20)
    told = lines(capsys)
    assert len(told) == 8
    assert told[0].startswith("step 20, loss ")
    assert len(set(told)) == 2  # the loss and the accuracy of all four


@pytest.mark.slow
def test_a_loop_goes_on_where_it_was_saved(monkeypatch, capsys, tmp_path):
    scan = "own_loop", "--loop", "scan", "--seed", 3
    run(monkeypatch, *scan, "--steps", 200)
    whole = lines(capsys)
    run(monkeypatch, *scan, "--workdir", tmp_path, "--steps", 100)
    first = lines(capsys)
    run(monkeypatch, *scan, "--workdir", tmp_path, "--steps", 200)
    second = lines(capsys)
    assert first[0] == whole[0]
    assert second == whole[1:]
