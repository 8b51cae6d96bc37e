"""Weights without a trainer: from a workdir or a safetensors file into a model, and out of it."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from datarax.errors import listed
from trainers.checkpoints import Store, with_keys, without_keys
from trainers.checksum import dotted

CHECKPOINTS = "checkpoints"
"""The directory of the checkpoints within a workdir."""


def load(
    workdir: epath.PathLike, model: nnx.Module | None = None, *, step: int | None = None
) -> Any:
    """Loads the model that a run saved.

    Args:
        workdir: The run's directory, or a safetensors file.
        model: A model of the same structure; its variables are set in place.
        step: The checkpoint to load; None: the newest that is whole.

    Returns:
        `model`, or where that is None the variables as a nested dict of NumPy arrays.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the model's variables are not those that were saved.

    Example:
        >>> model = load("runs/mnist", CNN(28, rngs=nnx.Rngs(0)))  # doctest: +SKIP
    """
    path = epath.Path(workdir)
    found = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path, step)
    if model is None:
        return found
    state = nnx.state(model)
    wanted = without_keys(nnx.to_pure_dict(state))
    shapes, given = _flat(wanted), _flat(found)
    # A safetensors file holds parameters alone: what it lacks stays as it is.
    missing = set() if path.suffix == ".safetensors" else shapes.keys() - given.keys()
    different = missing | (given.keys() - shapes.keys())
    different |= {n for n in shapes.keys() & given.keys() if np.shape(shapes[n]) != given[n].shape}
    if different:
        raise ValueError(
            f"{os.fspath(path)} is not of this {type(model).__name__}: they differ in "
            f"{listed(sorted(different)[:5])}. Build the model as the run did."
        )
    filled = jax.tree_util.tree_map_with_path(
        lambda path, own: jnp.asarray(given.get(dotted(path), own), jnp.asarray(own).dtype), wanted
    )
    nnx.replace_by_pure_dict(state, with_keys(filled, nnx.to_pure_dict(state)))
    nnx.update(model, state)
    return model


def export(model: nnx.Module, path: epath.PathLike) -> None:
    """Writes a model's parameters into a safetensors file.

    Args:
        model: The model.
        path: The file, which ends in `.safetensors`; names in it are such as `linear.kernel`.

    Raises:
        ImportError: If `safetensors` is not installed.
    """
    flat = _flat(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    data = _library().save({name: np.ascontiguousarray(value) for name, value in flat.items()})
    epath.Path(path).write_bytes(data)


def _checkpoint(workdir, step):
    directory = workdir / CHECKPOINTS
    store = Store(directory) if directory.exists() else None
    if store is None or not store.steps():
        raise FileNotFoundError(
            f"There is no checkpoint in {os.fspath(workdir)}: write load(workdir), with the "
            "workdir that the Trainer was given."
        )

    def read(step):
        return store.restore(step, {"model": None}, store.read(step)[1])["model"]

    try:
        return jax.tree.map(np.asarray, read(step) if step is not None else store.newest(read))
    finally:
        store.close()


def _safetensors(path):
    flat = _library().load(path.read_bytes())
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested


def _library():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors files need `pip install datarax[safetensors]`") from error
    return safetensors.numpy


def _flat(tree) -> dict[str, Any]:
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
