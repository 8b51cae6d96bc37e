"""The examples in docstrings run and give what they show."""

import doctest
import importlib
import pkgutil

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import datarax
import trainers


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
