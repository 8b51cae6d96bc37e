"""Faces: a star import and `help` give a folder's public names, and no modules."""

import inspect
import pkgutil

import pytest

import datarax
import trainers

FACES = [datarax, trainers] + [
    __import__(found.name, fromlist=["_"])
    for package in (datarax, trainers)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if found.ispkg
]


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_a_star_import_gives_the_public_names_and_no_modules(face):
    found: dict = {}
    exec(f"from {face.__name__} import *", found)
    found.pop("__builtins__")
    assert sorted(found) == sorted(set(face.__all__))
    assert not any(inspect.ismodule(value) for value in found.values())
    ours = {
        name
        for name, value in vars(face).items()
        if getattr(value, "__module__", "").split(".")[0] in ("datarax", "trainers")
    }
    assert ours <= set(face.__all__)
