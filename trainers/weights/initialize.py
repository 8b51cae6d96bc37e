"""Beginning a run with the weights of another, whole or in part."""

import dataclasses
import logging
import os
from typing import Any

from etils import epath
from flax import nnx

from datarax.errors import listed
from trainers.devices.variables import without_value
from trainers.weights.fitting import Match, described, expect_match, fill, fitted, variables
from trainers.weights.load import Step, read
from trainers.workdir.store import absolute

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of another run's weights that a run begins with, as in `init_from=Part(...)`.

    Args:
        path: A workdir or a safetensors file.
        match: Which variables to take, as in `load`: those with a prefix that have the same shape.
            What does not fit stays as the model has it, and a warning lists it. None: shapes must
            be the same where both have a variable, as for `init_from=path`.
        step: Which checkpoint, as in `load`.
        average: Whether to take the average of a run with `ema=`.

    Example:
        >>> Part("runs/base", match="encoder").match
        'encoder'
    """

    path: epath.PathLike
    match: Match | None = ""
    step: Step = None
    average: bool = True

    def __post_init__(self):
        expect_match(self.match)
        object.__setattr__(self, "path", absolute(self.path))


def part_of(start: epath.PathLike | Part | None) -> Part | None:
    """Returns what `init_from=` is given as a `Part`, of a path all; None stays None."""
    return start if start is None or isinstance(start, Part) else Part(start, match=None)


def initialize(model: nnx.Module, start: epath.PathLike | Part) -> None:
    """Sets a model's variables to those of another run, as far as both have them.

    The model keeps its own random streams. A layer within `nnx.LoRA` gets the weights of the layer
    by itself. What only one of the two has is said.

    Args:
        model: The model; its variables are set in place.
        start: A workdir or a safetensors file, or a `Part` of what is in it.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If they share no variable, or, without a `Part`, a shared one has another shape.
    """
    part: Any = part_of(start)
    path, told = part.path, f"init_from={os.fspath(part.path)!r}"
    write = "write init_from=workdir, with the workdir that the other run's Trainer was given"
    given = read(path, part.step, part.average, write)
    empty = without_value(nnx.state(model))  # such a random stream begins where the other ended
    streams = variables(model).keys() - (own := variables(model, streams=False)).keys()
    fit = fitted(model, own, {n: x for n, x in given.items() if n not in streams}, part.match)
    lines = described(fit, own, given, path)
    if (fit.reshaped and part.match is None) or not fit.taken:
        name = min(fit.reshaped, default="")
        shapes = f"{given[fit.reshaped[name]].shape} and {own[name].shape} here" if name else ""
        why = f"{name} has {shapes}" if name else "its names all differ"
        write = f'init_from=trainers.weights.Part({os.fspath(path)!r}, match="")'
        raise ValueError(
            f"{told} does not fit this {type(model).__name__}: {why}. Build the model as that run "
            f"did, or take what fits: {write}.\n{lines}"
        )
    if lines:
        logger.warning("%s fits in part.\n%s", told, lines)
    taken = {place: given[name] for place, name in fit.taken.items()}
    fill(model, {name: given[name] for name in empty if name in given} | taken)
    if empty := without_value(nnx.state(model)):
        raise ValueError(
            f"{listed(empty[:5])} of the model have no value, as nnx.eval_shape makes them, and "
            f"{told} has none: build the model itself."
        )
