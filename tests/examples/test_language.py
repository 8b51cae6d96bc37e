"""The examples of language models: a few steps of each, and a run that goes on in mid-epoch."""

import datasets
import numpy as np
import pytest

from tests.support.examples import run

pytest.importorskip("tokenizers")


@pytest.fixture
def texts(tmp_path):
    """A folder of 400 documents of a few words."""
    rng, words = (
        np.random.default_rng(0),
        ["the", "film", "was", "good", "not", "bad", "so", "long"],
    )
    said = [" ".join(rng.choice(words, n)) for n in rng.integers(3, 60, 400)]
    folder = tmp_path / "texts"
    datasets.Dataset.from_dict({"text": said}).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.slow
def test_the_language_model_validates_samples_and_goes_on(monkeypatch, capsys, tmp_path, texts):
    arguments = "--dataset", texts, "--seed", 1, "--workdir", tmp_path / "run"
    run(monkeypatch, "lm", *arguments, "--steps", 2)
    told = capsys.readouterr().out
    assert "finished after 2 of 2 steps" in told
    assert "perplexity of a document's rows" in told
    assert "bits a byte" in told
    run(monkeypatch, "lm", *arguments, "--steps", 3)
    told = capsys.readouterr().out
    assert "step 2" in told
    assert "finished after 3 of 3 steps" in told


@pytest.mark.slow
def test_the_chat_learns_the_answers_only(monkeypatch, capsys, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    run(monkeypatch, "chat", "--steps", 2, "--workdir", tmp_path, "--seed", 1)
    told = capsys.readouterr().out
    bracket = told.index("<|assistant|>[")
    assert told[told.index("brackets") : bracket].count("[") == 0  # nothing of the question
    assert "tuned: finished after 2 of 2 steps" in told
    assert "the rest: loss" in told


@pytest.mark.parametrize("name", ["lm", "chat"])
def test_they_say_how_they_are_called(monkeypatch, capsys, name):
    with pytest.raises(SystemExit):
        run(monkeypatch, name, "--help")
    told = capsys.readouterr().out
    assert all(option in told for option in ("--workdir", "--steps", "--seed"))
