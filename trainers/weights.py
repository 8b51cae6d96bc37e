"""Weights without a trainer: from a workdir or a safetensors file into a model, and out of it."""

import logging
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from datarax.errors import listed
from trainers.devices import agreement
from trainers.devices.arrays import is_key, without_keys
from trainers.devices.private import all_gather
from trainers.devices.variables import named, with_leaves, without_value
from trainers.workdir import items
from trainers.workdir.store import BEST, CHECKPOINTS, DamagedError, Store, absolute

logger = logging.getLogger(__name__)


def load(
    workdir: epath.PathLike,
    model: nnx.Module | None = None,
    *,
    step: int | Literal["best"] | None = None,
    average: bool = True,
) -> Any:
    """Loads the model that a run saved.

    Args:
        workdir: The run's directory, or a safetensors file.
        model: A model of the same structure, or one of `nnx.eval_shape`; its variables are set in
            place.
        step: The checkpoint to load, or `"best"` for the one that `Checkpoints(best=)` kept; None:
            the newest that is whole.
        average: Whether to load the average of a run with `ema=`, which it was evaluated by; False:
            the parameters that the optimizer went on with.

    Returns:
        `model`, or where that is None the variables as a nested dict of NumPy arrays.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the model's variables are not those that were saved.
        RuntimeError: If what was saved is damaged.

    Example:
        >>> model = load("runs/mnist", CNN(28, rngs=nnx.Rngs(0)))  # doctest: +SKIP
    """
    path = absolute(workdir)
    write = "write load(workdir), with the workdir that the Trainer was given"
    given = _read(path, step, average, write)
    if model is None:
        return _nested(given)
    own = named(without_keys(nnx.state(model)))
    # A safetensors file holds parameters alone: what it lacks stays as it is.
    missing = set() if _is_safetensors(path) else own.keys() - given.keys()
    missing = {name for name in missing if np.size(own[name]) > 0}  # no file holds nothing
    different = missing | (given.keys() - own.keys()) | _reshaped(own, given)
    if different:
        raise ValueError(
            f"{os.fspath(path)} is not of this {type(model).__name__}: they differ in "
            f"{listed(sorted(different)[:5])}. Build the model as the run did."
        )
    _fill(model, given)
    return model


def initialize(model: nnx.Module, path: epath.PathLike) -> None:
    """Sets a model's variables to those of another run, as far as both have them.

    The model keeps its own random streams. What only one of the two has is said.

    Args:
        model: The model; its variables are set in place.
        path: A workdir or a safetensors file.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If they share no variable, or a shared one has another shape.
    """
    path = absolute(path)
    write = "write init_from=workdir, with the workdir that the other run's Trainer was given"
    given = _read(path, None, True, write)
    own = named(without_keys(nnx.state(model, nnx.Not(nnx.RngState))))
    streams = named(without_keys(nnx.state(model, nnx.RngState)))
    reshaped = _reshaped(own, given)
    if reshaped or not own.keys() & given.keys():
        name = min(reshaped, default="its names")
        shapes = f"{given[name].shape} and {np.shape(own[name])} here" if reshaped else "all differ"
        raise ValueError(
            f"init_from={os.fspath(path)!r} does not fit this {type(model).__name__}: {name} has "
            f"{shapes}. Build the model as that run did, or take what fits from the dict that "
            "load(path) returns."
        )
    left = {"init_from lacks": own.keys() - given.keys()}
    left["the model lacks"] = given.keys() - own.keys() - streams.keys()
    for what, names in left.items():
        if names:
            logger.warning("%s: %s %s.", os.fspath(path), what, listed(sorted(names)[:5]))
    empty = without_value(nnx.state(model))  # such a random stream begins where the other ended
    _fill(model, {name: x for name, x in given.items() if name in own or name in empty})
    if empty := without_value(nnx.state(model)):
        raise ValueError(
            f"{listed(empty[:5])} of the model have no value, as nnx.eval_shape makes them, and "
            f"init_from={os.fspath(path)!r} has none: build the model itself."
        )


def export(model: nnx.Module, path: epath.PathLike) -> None:
    """Writes a model's parameters into a safetensors file.

    Where they are spread over processes, all call it together, and the first writes.

    Args:
        model: The model.
        path: The file, which ends in `.safetensors`; names in it are such as `linear.kernel`.

    Raises:
        ImportError: If `safetensors` is not installed.
    """
    library, flat = _library(), named(nnx.state(model, nnx.Param))
    gathered = {name: np.ascontiguousarray(_gathered(value)) for name, value in flat.items()}

    def write() -> None:
        if agreement.is_first():
            absolute(path).write_bytes(library.numpy.save(gathered))

    if any(map(_is_spread, flat.values())):
        agreement.together(write)  # so that each may read it afterwards
    else:  # which the first process may do alone
        write()


def _gathered(array) -> np.ndarray:
    return all_gather(array, tiled=True) if _is_spread(array) else array


def _is_spread(array) -> bool:
    """Returns whether no process has all of an array."""
    is_jax = isinstance(array, jax.Array)
    return is_jax and not (array.is_fully_addressable or array.is_fully_replicated)


def _read(
    path: epath.Path, step: int | str | None, average: bool, write: str
) -> dict[str, np.ndarray]:
    """Returns variables by name, PRNG keys as the words they are made of."""
    return _safetensors(path) if _is_safetensors(path) else _checkpoint(path, step, average, write)


def _checkpoint(
    workdir: epath.Path, step: int | str | None, average: bool, write: str
) -> dict[str, np.ndarray]:
    directory = workdir / (BEST if step == "best" else CHECKPOINTS)
    store = Store(directory) if directory.exists() else None
    steps = store.steps() if store is not None else []
    wanted = steps[-1] if step == "best" and steps else step
    if store is None or not steps or wanted not in (None, *steps):
        which = "checkpoint" if step in (None, "best") else f"checkpoint of step {step}"
        if steps:
            write = f"write load(workdir, step={steps[-1]})"
        raise FileNotFoundError(
            f"There is no {which} in {os.fspath(directory)}, which has the steps {steps}: {write}."
        )

    def read(step: int) -> dict[str, Any]:
        run = store.read(step)[1]
        has_average = average and any(name.startswith(items.AVERAGE) for name in run["arrays"])
        wanted = ("model", "training") if has_average else ("model",)
        return items.model_of(store.restore(step, dict.fromkeys(wanted), run))

    try:
        found = store.newest(read) if wanted is None else read(int(wanted))
        return jax.tree.map(np.asarray, found)
    except DamagedError as error:
        raise RuntimeError(
            f"The checkpoint of step {wanted} in {os.fspath(directory)} is damaged: {error}. Load "
            f"another of its steps, {steps}."
        ) from error
    finally:
        store.close()


def _fill(model: nnx.Module, given: dict[str, np.ndarray]) -> None:
    """Sets a model's variables to those that are given by name; the others stay."""

    def one(name: str, own: Any) -> Any:
        if name not in given:
            return own
        if is_key(own):
            return jax.random.wrap_key_data(jnp.asarray(given[name]), impl=own.dtype)
        return jnp.asarray(given[name], jnp.result_type(own))

    nnx.update(model, with_leaves(nnx.state(model), one))


def _reshaped(own: dict[str, Any], given: dict[str, np.ndarray]) -> set[str]:
    return {n for n in own.keys() & given.keys() if np.shape(own[n]) != given[n].shape}


def _nested(given: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns variables by the parts of their names."""
    whole: dict[str, Any] = {}
    for name, value in given.items():
        *parents, last = name.split(".")
        inner = whole
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return whole


def _is_safetensors(path: epath.Path) -> bool:
    return path.suffix == ".safetensors"


def _safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(tensor["data"], _dtype(tensor["dtype"])).reshape(tensor["shape"])
        for name, tensor in _library().deserialize(path.read_bytes())
    }


def _dtype(name: str) -> np.dtype:
    """Returns the dtype that safetensors calls `F32`, `BF16`, `F8_E4M3`, `I64`, `BOOL`..."""
    special = {"BOOL": "bool", "C64": "complex64", "BF16": "bfloat16"}
    special |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    kinds = {"F": "float", "I": "int", "U": "uint"}
    return jnp.dtype(special.get(name) or kinds[name[0]] + name[1:])


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors files need `pip install datarax[safetensors]`") from error
    return safetensors
