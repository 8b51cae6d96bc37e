"""The example of a sweep."""

import pytest

from tests.support.examples import run


@pytest.mark.slow  # tests/trainers/sweeps has smaller ones
def test_the_sweep_shows_a_table_and_exports_the_best(monkeypatch, capsys, tmp_path):
    result = run(monkeypatch, "sweep", "--workdir", tmp_path, "--steps", 60)
    assert len(result.results) == 8
    assert result.results[result.best].metrics["eval/accuracy"] > 0.6
    assert "best: learning_rate" in capsys.readouterr().out
    assert (tmp_path / "best.safetensors").exists()
