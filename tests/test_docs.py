"""The examples in docstrings and in the guide run and give what they show."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import datarax
import trainers

ROOT = Path(__file__).parents[1]


def modules():
    for package in (datarax, trainers):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name):
    module = importlib.import_module(name)
    # Docstrings may use what a reader has imported anyway.
    names = {"datasets": datasets, "jax": jax, "jnp": jnp, "np": np, "nnx": nnx}
    public = {k: v for k, v in vars(datarax).items() if not k.startswith("_")}
    public |= {k: v for k, v in vars(trainers).items() if not k.startswith("_")}
    result = doctest.testmod(module, extraglobs=names | public | vars(module), verbose=False)
    assert result.failed == 0


def test_the_guides_examples_run_one_after_the_other():
    text = (ROOT / "docs" / "guide.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "guide.md", "exec"), names)


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "howto").glob("*.md")), ids=lambda page: page.stem
)
def test_the_examples_of_a_how_to_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)
