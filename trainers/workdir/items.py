"""The items of a checkpoint: a state as named arrays, and what decides a run's batches."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from trainers.devices.arrays import as_carry, without_keys
from trainers.devices.checksum import dotted, kind
from trainers.devices.variables import named, nested, with_leaves
from trainers.loop.plan import Plan
from trainers.step import average
from trainers.step.state import State

_SUMS, AVERAGE = "training.window.", "training.ema."
_LOSS = {f"{_SUMS}loss", f"{_SUMS}weight"}  # of every run, whatever its metrics are
_TREND = "training.trend.", f"{_SUMS}spike."  # which checkpoints up to 0.1.0 lack
_FORMER = "._applied.value", "._skipped.value"  # of stages up to 0.1.0, which count no more


def arrays_of(state: State) -> dict[str, Any]:
    """Returns a state as two dicts: `model`, nested by name, and `training`, the rest by path.

    Arrays without elements are left out, which Orbax refuses.

    Raises:
        ValueError: If two variables have one name once their paths are joined by dots.
    """
    leaves = jax.tree_util.tree_leaves_with_path(_without_model(state))
    model = nnx.merge_state(state.params, state.rest)
    named(model)  # which raises where two have one name
    return {
        "model": nested(model),
        "training": {dotted(path): leaf for path, leaf in leaves if leaf.size},
    }


def with_arrays(state: State, arrays: dict[str, Any], wrt: Any) -> State:
    """Returns a state with the arrays that `arrays_of` gave.

    Args:
        state: A state of the same structure, whose sums stay where `arrays` has none.
        arrays: The dicts; an average that they lack begins with the parameters.
        wrt: Filter of the variables to train.
    """
    given, training = named(arrays["model"]), arrays["training"]
    model = nnx.merge_state(state.params, state.rest)
    model = with_leaves(model, lambda name, own: given.get(name, own))
    params, rest = nnx.split_state(model, wrt, ...)
    if state.ema is not None:
        state = dataclasses.replace(state, ema=average.begun(params, rest))
    other = jax.tree_util.tree_map_with_path(
        lambda path, own: training.get(dotted(path), own).astype(own.dtype), _without_model(state)
    )
    return as_carry(dataclasses.replace(other, params=params, rest=rest))


def model_of(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's variables by name, with the average's values where `arrays` has some.

    Args:
        arrays: What `arrays_of` gave, or its `model` alone.
    """
    model = named(arrays["model"])
    for path, value in arrays.get("training", {}).items():
        if f"training.{path}".startswith(AVERAGE):
            _, *parts = path.split(".")
            # The path of a Variable's content has one part more than its name: `value`.
            names = [".".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]
            name = next(n for n in [*reversed(names), ".".join(parts)] if n in model)
            model[name] = value
    return model


def taken_up(arrays: dict[str, Any], saved: dict[str, str]) -> dict[str, Any]:
    """Returns `arrays` without those that begin anew when a run goes on from a checkpoint.

    Those are an average that the checkpoint lacks, and the metrics' sums since the last log where
    the metrics are not the same: all of them, since they are of the same steps. The loss's go on.

    Args:
        arrays: What `arrays_of` returned of the run's first state.
        saved: Dtype and shape of each array of the checkpoint, by its path.
    """
    own = kinds(arrays)
    begins = {name for name in own.keys() - saved.keys() if name.startswith((AVERAGE, *_TREND))}
    sums = {name: kind for name, kind in _of(own, _SUMS).items() if name not in begins}
    if sums != _of(saved, _SUMS):
        begins |= sums.keys() - _LOSS
    training = {n: x for n, x in arrays["training"].items() if f"training.{n}" not in begins}
    for name in _of(own, AVERAGE).keys() & saved.keys():  # kept in the parameters' dtype once
        path = name.removeprefix("training.")
        training[path] = training[path].astype(saved[name].partition("(")[0])
    return {**arrays, "training": training}


def differing(arrays: dict[str, Any], saved: dict[str, str]) -> list[str]:
    """Returns the paths of arrays that are not alike in `taken_up(...)` and in a checkpoint."""
    own = kinds(arrays)
    return [
        name
        for name in own | saved
        if own.get(name) != saved.get(name)
        and not (name not in own and (name.startswith(_SUMS) or name.endswith(_FORMER)))
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
