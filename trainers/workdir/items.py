"""The items of a checkpoint: a state as named arrays, and what decides a run's batches."""

import collections
import dataclasses
from typing import Any

import jax
from flax import nnx

from trainers.devices.arrays import as_carry, without_keys
from trainers.devices.checksum import dotted, kind
from trainers.loop.plan import Plan
from trainers.step.state import State

_SUMS, _AVERAGE = "training.window.", "training.ema."


def arrays_of(state: State) -> dict[str, Any]:
    """Returns a state as two dicts: `model`, nested by name, and `training`, the rest by path.

    Raises:
        ValueError: If two variables have one name once their paths are joined by dots.
    """
    leaves = jax.tree_util.tree_leaves_with_path(_without_model(state))
    arrays = {
        "model": nnx.to_pure_dict(nnx.merge_state(state.params, state.rest)),
        "training": {dotted(path): leaf for path, leaf in leaves},
    }
    paths = [dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays["model"])]
    twice = [name for name, count in collections.Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(
            f"Two variables of the model are called {twice[0]!r} once their paths are joined by "
            "dots, so a checkpoint cannot tell them apart: use names without dots."
        )
    return arrays


def with_arrays(state: State, arrays: dict[str, Any], wrt: Any) -> State:
    """Returns a state with the arrays that `arrays_of` gave.

    Args:
        state: A state of the same structure, whose sums stay where `arrays` has none.
        arrays: The dicts; an average that they lack begins with the parameters.
        wrt: Filter of the variables to train.
    """
    model = nnx.merge_state(state.params, state.rest)
    nnx.replace_by_pure_dict(model, arrays["model"])
    params, rest = nnx.split_state(model, wrt, ...)
    if state.ema is not None and not any(n.startswith("ema.") for n in arrays["training"]):
        state = dataclasses.replace(state, ema=params)
    training = jax.tree_util.tree_map_with_path(
        lambda path, own: arrays["training"].get(dotted(path), own), _without_model(state)
    )
    return as_carry(dataclasses.replace(training, params=params, rest=rest))


def taken_up(arrays: dict[str, Any], saved: dict[str, str]) -> dict[str, Any]:
    """Returns `arrays` without those that begin anew when a run goes on from a checkpoint.

    Those are an average that the checkpoint lacks, and the sums since the last log where the
    metrics are not the same: all of them, since they are of the same steps.

    Args:
        arrays: What `arrays_of` returned of the run's first state.
        saved: Dtype and shape of each array of the checkpoint, by its path.
    """
    own = kinds(arrays)
    begins = {name for name in own.keys() - saved.keys() if name.startswith(_AVERAGE)}
    if _of(own, _SUMS) != _of(saved, _SUMS):
        begins |= _of(own, _SUMS).keys()
    training = {n: x for n, x in arrays["training"].items() if f"training.{n}" not in begins}
    return {**arrays, "training": training}


def differing(arrays: dict[str, Any], saved: dict[str, str]) -> list[str]:
    """Returns the paths of arrays that are not alike in `taken_up(...)` and in a checkpoint."""
    own = kinds(arrays)
    return [
        name
        for name in own | saved
        if own.get(name) != saved.get(name) and not (name not in own and name.startswith(_SUMS))
    ]


def _of(kinds: dict[str, str], part: str) -> dict[str, str]:
    return {name: kind for name, kind in kinds.items() if name.startswith(part)}


def kinds(tree: Any) -> dict[str, str]:
    """Returns dtype and shape of each array of a pytree, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(without_keys(tree))
    return {dotted(path): kind(leaf) for path, leaf in leaves}


def config_of(plan: Plan) -> dict[str, Any]:
    """Returns what decides the batches, beside the source's state."""
    config: dict[str, Any] = {"batch_size": int(plan.batches.batch_size)}
    # Without stages nothing is drawn from the key, whatever seed it was made of.
    if not plan.pipeline.stages.is_empty:
        config["rngs of the Pipeline"] = jax.random.key_data(plan.batches.key).tolist()
    return config


def _without_model(state: State) -> State:
    return dataclasses.replace(state, params=None, rest=None)
