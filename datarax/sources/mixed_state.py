"""Where a mixture stands, and the states that it reads."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from datarax.errors import expect_between, expect_dict
from datarax.order.draws import MixtureDraws, Stages, Stop
from datarax.sources.in_order import InOrder
from datarax.sources.module import register_host_state

STATE_VERSION = 3


class MixedPosition(NamedTuple):
    """A place among a mixture's draws, and the positions of its sources there."""

    epoch: int
    index: int
    sources: tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class Place:
    """Where a mixture stands among its draws.

    Args:
        epoch: The epoch, 0 where it never ends.
        index: The number of draws since the epoch began.
        resumes: Whether a `for` goes on here, where `set_state` put it.
    """

    epoch: int = 0
    index: int = 0
    resumes: bool = False

    def roll(self, length: int | None) -> None:
        """Goes from an epoch's end to the start of the next one."""
        if length is not None:
            epochs, self.index = divmod(self.index, length)
            self.epoch += epochs


register_host_state(Place)


class PositionedMixture(InOrder):
    """The state of a mixture: a place among its draws, and the states of its sources.

    Attributes:
        sources: The sources.
        stop: Where an epoch ends.
    """

    sources: nnx.List
    stop: Stop
    _stages: Stages
    _draws: MixtureDraws
    _place: Place

    @property
    def weights(self) -> Any:
        """The proportions, which sum to 1; or pairs of a stage's first draw and its proportions."""
        stages = tuple((start, _shares(weights)) for start, weights in self._stages)
        return stages[0][1] if len(stages) == 1 else stages

    @property
    def is_endless(self) -> bool:
        """Whether it has no epochs and never ends."""
        return self.stop == "never"

    def position(self) -> MixedPosition:
        """Returns the position, of which `state_at` makes a state, also later."""
        sources = tuple(source.position() for source in self.sources)
        return MixedPosition(self._place.epoch, self._place.index, sources)

    def position_at(self, count: int) -> MixedPosition:
        """Returns the position after the first `count` draws; see `Source.position_at`."""
        epoch, index = (0, count) if self.length is None else divmod(count, self.length)
        pairs = zip(self.sources, self._given(epoch, index).tolist(), strict=True)
        sources = tuple(source.position_at(given) for source, given in pairs)
        return MixedPosition(epoch, index, sources)

    def _given(self, epoch: int, index: int) -> np.ndarray:
        """Returns how many records of each source come before a draw."""
        return self._draws.given(index) + epoch * self._draws.counts

    def state_at(self, position: MixedPosition) -> dict[str, Any]:
        """Returns the state of the mixture when it stands at `position`."""
        pairs = zip(self.sources, position.sources, strict=True)
        weights = self.weights
        staged = len(self._stages) > 1
        state = {
            "version": STATE_VERSION,
            "epoch": position.epoch,
            "index": position.index,
            "weights": [[start, list(w)] for start, w in weights] if staged else list(weights),
            "sources": [source.state_at(its) for source, its in pairs],
        }
        return state if self.is_endless else state | {"stop": self.stop}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that `get_state` returned, of a mixture of the same data.

        Stages that the state does not reach may have other weights.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If its structure, its weights or the data of a source differ.
        """
        own = self.get_state()
        expect_state(state, own, self.label, self.length)
        try:
            for source, its in zip(self.sources, state["sources"], strict=True):
                source.set_state(its)
        except BaseException:
            for source, its in zip(self.sources, own["sources"], strict=True):
                source.set_state(its)
            raise
        self._place = Place(int(state["epoch"]), int(state["index"]), resumes=True)

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this mixture; a `for` begins the next epoch, where there is one."""
        self.set_state(state)
        self._place.resumes = False

    def reset(self, seed: int | None = None) -> None:
        """Goes back to the first draw and to the start of each source's epoch 0.

        Args:
            seed: A new seed for every source; None keeps theirs.
        """
        for source in self.sources:
            source.reset(seed)
        self._place = Place()

    def set_random_order(self, enabled: bool) -> None:
        """Sets whether the sources are read in random order."""
        for source in self.sources:
            source.set_random_order(enabled)

    def close(self) -> None:
        """Closes the files that the sources have open."""
        for source in self.sources:
            source.close()


def _shares(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(Fraction(weight) for weight in weights)
    return tuple(float(Fraction(weight) / total) for weight in weights)


def expect_state(state: Any, own: dict[str, Any], label: str, length: int | None) -> None:
    """Raises unless a state is that of a mixture such as the one that has the state `own`.

    Weights of stages that the state does not reach may differ: no record so far depends on them.

    Args:
        state: What is to be restored, perhaps by version 0.1.0.
        own: The state of the mixture now.
        label: The mixture's name.
        length: Draws in its epoch, None where it never ends.

    Raises:
        TypeError: If `state` is no dict.
        ValueError: If its structure, its weights or where it ends differ.
    """
    expect_dict(state)
    version = state.get("version")
    if state.keys() - {"ups"} != own.keys() or version != (2 if "ups" in state else STATE_VERSION):
        raise ValueError(
            f"The state is not that of a mixture like {label}: it has {sorted(state)} of version "
            f"{version}, expected {sorted(own)} of version {STATE_VERSION}."
        )
    for name in ("sources", "weights"):
        if not isinstance(state[name], (list, tuple)):
            raise ValueError(f"The state's {name} are {state[name]!r:.60}: expected a list.")
    if len(state["sources"]) != len(own["sources"]):
        raise ValueError(
            f"The state is that of a mixture of {len(state['sources'])} sources, {label} has "
            f"{len(own['sources'])}."
        )
    expect_between("epoch", state["epoch"], 0, 0 if length is None else 2**31 - 1)
    expect_between("index", state["index"], 0, 2**63 - 1 if length is None else length)
    if state.get("stop") != own.get("stop"):
        raise ValueError(
            f"The state is of a mixture with stop={state.get('stop')!r}, {label} has "
            f"{own.get('stop')!r}."
        )
    reached = math.inf if state["epoch"] else state["index"]
    if not _same(_reached(state["weights"], reached), _reached(own["weights"], reached)):
        raise ValueError(
            f"The state is of a mixture with weights={state['weights']}, {label} has "
            f"{own['weights']}. Restore it with those, or begin anew."
        )


def _reached(weights: Any, draws: float) -> Any:
    """Returns the stages that begin before some number of draws; the first one always."""
    is_staged = all(isinstance(stage, (list, tuple)) for stage in weights)
    stages = weights if is_staged else [[0, weights]]
    return [stage for n, stage in enumerate(stages) if not n or stage[0] < draws]


def _same(first: Any, second: Any) -> bool:
    """Returns whether two nested lists hold the same numbers, to within a few roundings."""
    lists = [isinstance(one, (list, tuple)) for one in (first, second)]
    if not all(lists):
        return not any(lists) and math.isclose(first, second, rel_tol=1e-12)
    return len(first) == len(second) and all(map(_same, first, second))
