"""Loading: a model as a run saved it, or as a safetensors file has it."""

import os
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from flax import nnx

from trainers.weights import safetensors
from trainers.weights.fitting import Match, described, fill, fitted, shown, take, variables
from trainers.workdir import items
from trainers.workdir.store import BEST, CHECKPOINTS, DamagedError, Store, absolute

Step = int | Literal["best"] | None
"""A checkpoint: its step, the best, or the newest that is whole."""


def load(
    workdir: epath.PathLike,
    model: nnx.Module | None = None,
    *,
    step: Step = None,
    average: bool = True,
    match: Match | None = None,
) -> Any:
    """Loads the model that a run saved.

    Args:
        workdir: The run's directory, or a safetensors file.
        model: A model of the same structure, or one of `nnx.eval_shape`; its variables are set in
            place. A layer within `nnx.LoRA` gets the weights of the layer by itself.
        step: The checkpoint to load, or `"best"` for the one that `Checkpoints(best=)` kept; None:
            the newest that is whole.
        average: Whether to load the average of a run with `ema=`, which it was evaluated by; False:
            the parameters that the optimizer went on with.
        match: What to take where not all fits: the variables whose names begin with a prefix, as
            `"encoder"`, or with one of several; `""` is all. A dict says what each saved prefix is
            in the model, as `{"": "encoder"}`. What has another shape, or is not there, stays as
            the model has it, and a warning lists it. None: all must fit.

    Returns:
        `model`, or where that is None the variables as a nested dict of NumPy arrays.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the model's variables are not those that were saved.
        RuntimeError: If what was saved is damaged.

    Example:
        >>> model = load("runs/mnist", CNN(28, rngs=nnx.Rngs(0)))  # doctest: +SKIP
        >>> model = load("runs/mnist", Other(rngs=nnx.Rngs(0)), match="encoder")  # doctest: +SKIP
    """
    path = absolute(workdir)
    write = "write load(workdir), with the workdir that the Trainer was given"
    given = read(path, step, average, write)
    if model is None:
        return _nested(given)
    if match is not None:
        take(model, given, path, match)
        return model
    own = variables(model)
    fit = fitted(model, own, given)
    # A safetensors file holds parameters alone: what it lacks stays as it is.
    missing = [] if safetensors.is_safetensors(path) else fit.missing
    if different := {*missing, *fit.unused, *fit.reshaped}:
        raise ValueError(
            f"{os.fspath(path)} is not of this {type(model).__name__}: they differ in "
            f"{shown(different)}. Build the model as the run did, or take what fits with "
            f'load(..., match="").\n{described(fit, own, given, path)}'
        )
    fill(model, {place: given[name] for place, name in fit.taken.items()})
    return model


def read(path: epath.Path, step: Step, average: bool, write: str) -> dict[str, np.ndarray]:
    """Returns what a run or a file holds by name, PRNG keys as the words they are made of.

    Args:
        path: A workdir or a safetensors file.
        step: Which checkpoint.
        average: Whether to read the average of a run that has one.
        write: What to write, for a message where there is nothing.
    """
    if safetensors.is_safetensors(path):
        return {name: tensor.read() for name, tensor in safetensors.tensors(path).items()}
    directory = path / (BEST if step == "best" else CHECKPOINTS)
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

    def read_step(step: int) -> dict[str, Any]:
        run = store.read(step)[1]
        has_average = average and any(name.startswith(items.AVERAGE) for name in run["arrays"])
        wanted = ("model", "training") if has_average else ("model",)
        return items.model_of(store.restore(step, dict.fromkeys(wanted), run))

    try:
        found = store.newest(read_step) if wanted is None else read_step(int(wanted))
        return jax.tree.map(np.asarray, found)
    except DamagedError as error:
        raise RuntimeError(
            f"The checkpoint of step {wanted} in {os.fspath(directory)} is damaged: {error}. Load "
            f"another of its steps, {steps}."
        ) from error
    finally:
        store.close()


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
