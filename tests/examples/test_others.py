"""The other examples: their options, and those that run in seconds."""

import importlib.util

import pytest

from tests.support.examples import EXAMPLES, run

SCRIPTS = sorted(
    path.relative_to(EXAMPLES).with_suffix("").as_posix()
    for path in EXAMPLES.rglob("*.py")
    # `local.py` runs another script, `models` has none.
    if path.name != "local.py" and path.parent.name != "models"
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_says_its_command_and_score_and_takes_the_usual_options(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    docstring = text.split('"""')[1]
    assert f"    python examples/{name}.py" in docstring
    assert "on two CPU cores" in " ".join(docstring.split())
    for option in ("--workdir", "--steps", "--seed"):
        assert f'"{option}"' in text


@pytest.mark.slow
def test_a_source_in_a_loop_of_grains_goes_on(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "grain_loop", "--steps", 6)
    whole = capsys.readouterr().out
    run(monkeypatch, "grain_loop", "--steps", 3, "--workdir", tmp_path)
    run(monkeypatch, "grain_loop", "--steps", 6, "--workdir", tmp_path)
    assert capsys.readouterr().out.endswith(whole)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="of the extra benchmarks")
def test_a_source_in_keras_own_fit(monkeypatch, capsys):
    run(monkeypatch, "keras_fit", "--steps", 200)
    accuracy = float(capsys.readouterr().out.rpartition(": ")[2].rstrip("%\n"))
    assert accuracy > 90


@pytest.mark.slow
def test_a_run_that_is_killed_twice_has_the_same_bits(monkeypatch, capfd, tmp_path):
    run(monkeypatch, "resume", "--workdir", tmp_path, "--steps", 1000)
    told = capfd.readouterr().out
    assert "SIGKILL near step" in told
    assert "SIGTERM near step" in told
    assert "0 of 9,610 parameters differ, and 0 of" in told


@pytest.mark.slow
def test_mnist_runs_small(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "mnist", "--workdir", tmp_path, "--steps", 20, "--seed", 1)
    assert "test accuracy: " in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
