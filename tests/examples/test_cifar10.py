"""The example of photographs: a recipe on the device, on images that the test draws."""

import datasets
import numpy as np
import pytest

from tests.support.examples import run


def drawn(count, seed):
    """Returns 32 x 32 images of bars, upright or lying, on noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 100, (count, 32, 32, 3))
    for image, label, place in zip(images, labels, rng.integers(4, 24, count), strict=True):
        bar = (slice(None), slice(place, place + 5))
        image[bar[:: 1 if label else -1]] += 120
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["lying", "upright"])}
    )
    columns = {"image": list(images.astype(np.uint8)), "label": labels}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bars")
    for seed, (split, count) in enumerate({"train": 256, "test": 64}.items()):
        drawn(count, seed).to_parquet(folder / f"{split}.parquet")
    return folder


SMALL = "--batch-size", 32, "--widths", 24, 24


def test_the_recipe_runs_and_goes_on(monkeypatch, capsys, tmp_path, folder):
    arguments = "--dataset", folder, *SMALL, "--workdir", tmp_path, "--seed", 1
    run(monkeypatch, "cifar10", *arguments, "--steps", 2)
    run(monkeypatch, "cifar10", *arguments, "--steps", 2)
    told = capsys.readouterr().out
    assert "softmax cross-entropy of label" in told
    assert told.count("with mirror images") == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--bfloat16",)])
def test_the_recipe_learns(monkeypatch, folder, options):
    assert run(monkeypatch, "cifar10", "--dataset", folder, *SMALL, "--epochs", 6, *options) > 0.95


def test_images_that_are_not_there_are_said(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="--dataset FOLDER"):
        run(monkeypatch, "cifar10", "--dataset", tmp_path / "none")
