"""The graph of a pipeline's stages: a chain, or any directed acyclic graph."""

import graphlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import jax
from flax import nnx

from datarax.errors import closest, listed

Stage = nnx.Module | Callable[..., Any]

Edges = Iterable[tuple[str, str]] | Mapping[str, str | Iterable[str]]

SOURCE = "source"
"""The node that stands for the source's batch."""


class Graph(nnx.Module):
    """Stages and how they feed each other.

    Args:
        nodes: Stages by name.
        edges: Pairs (from, to) of names, or a mapping from a name to those that its result goes
            to; `"source"` is the source's batch.
        sink: The node whose result is the batch.

    Raises:
        TypeError: If a stage cannot be called.
        ValueError: If an edge or `sink` names no node, or the edges go round in a circle.
    """

    def __init__(self, nodes: Mapping[str, Stage], edges: Edges, sink: str):
        for name, stage in nodes.items():
            if not callable(stage):
                raise TypeError(
                    f"stage {name!r} is {stage!r}: expected an nnx.Module or a function from batch "
                    "to batch."
                )
        edges = _pairs(edges)
        for name in [sink, *(name for edge in edges for name in edge)]:
            if name not in nodes and name != SOURCE:
                raise ValueError(
                    f"{name!r} is no node: there are {listed([SOURCE, *nodes])}."
                    f"{closest(str(name), nodes)}"
                )
        inputs = {name: tuple(a for a, b in edges if b == name) or (SOURCE,) for name in nodes}
        try:
            names = tuple(graphlib.TopologicalSorter(inputs).static_order())
        except graphlib.CycleError as error:
            circle = " -> ".join(error.args[1])
            raise ValueError(f"The stages go round in a circle: {circle}.") from error
        self._modules = nnx.data({n: s for n, s in nodes.items() if isinstance(s, nnx.Module)})
        self._functions = tuple((n, s) for n, s in nodes.items() if n not in self._modules)
        self._inputs = tuple((name, inputs[name]) for name in names if name != SOURCE)
        # A stage's keys depend on its number among the nodes, not on the order they run in.
        self._keyed = tuple((name, i) for i, name in enumerate(nodes) if takes_key(nodes[name]))
        self._sink = sink

    @classmethod
    def chain(cls, stages: Sequence[Stage]) -> Self:
        """Makes the graph in which each stage feeds the next.

        Raises:
            TypeError: If `stages` is no sequence.
        """
        if not isinstance(stages, Sequence):
            raise TypeError(
                f"stages is a {type(stages).__name__}: expected a list of modules or functions, "
                "stages=[...], which may be empty."
            )
        names = [str(number) for number in range(len(stages))]
        edges = zip([SOURCE, *names], names, strict=False)
        return cls(dict(zip(names, stages, strict=True)), edges, names[-1] if names else SOURCE)

    @property
    def is_empty(self) -> bool:
        """Whether there is no stage: batches come out as they go in."""
        return not self._inputs

    def __call__(
        self, batch: dict[str, Any], key: jax.Array, epochs: jax.Array, positions: jax.Array
    ) -> Any:
        """Puts a batch through the stages; traceable.

        Args:
            batch: The source's batch, arrays of shape `(size, ...)`.
            key: The pipeline's key.
            epochs: Epoch of each record, `uint32` of shape `(size,)`.
            positions: Position of each record within its epoch, `uint32` of shape `(size,)`.

        Returns:
            The result of the sink.

        Raises:
            TypeError: If a stage returns None.
        """
        functions, keyed = dict(self._functions), dict(self._keyed)
        results = {SOURCE: batch}
        for name, inputs in self._inputs:
            stage = self._modules[name] if name in self._modules else functions[name]
            arguments = [results[i] for i in inputs]
            if name in keyed:
                keys = record_keys(jax.random.fold_in(key, keyed[name]), epochs, positions)
                results[name] = stage(*arguments, key=keys)
            else:
                results[name] = stage(*arguments)
            if results[name] is None:
                raise TypeError(f"stage {name!r}, {stage!r}, returned None: end it with a return.")
        return results[self._sink]


def _pairs(edges: Edges) -> list[tuple[str, str]]:
    given: Iterable[Any] = edges
    if isinstance(edges, Mapping):
        given = [
            (before, after)
            for before, names in edges.items()
            for after in ([names] if isinstance(names, str) else names)
        ]
    pairs: list[Any] = [edge if isinstance(edge, str) else tuple(edge) for edge in given]
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(
                f"The edge {pair!r} is no pair: expected (from, to), as in "
                '[("source", "double"), ("double", "both")], or {"source": ["double"]}.'
            )
    return pairs


def formed(
    definition: Any,
    state: Any,
    stored: dict[str, Any],
    key: jax.Array,
    epochs: jax.Array,
    positions: jax.Array,
) -> tuple[Any, Any]:
    """Returns a batch after the stages, and their variables; traceable.

    Args:
        definition: The definition of a `Graph`, from `nnx.split`.
        state: Its variables.
        stored: The source's batch, arrays of shape `(size, ...)`.
        key: The pipeline's key.
        epochs: Epoch of each record, `uint32` of shape `(size,)`.
        positions: Position of each record within its epoch, `uint32` of shape `(size,)`.
    """
    graph = nnx.merge(definition, state, copy=True)
    return graph(stored, key, epochs, positions), nnx.state(graph)


def record_keys(key: jax.Array, epochs: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns one key a record, which depends on nothing but `key`, its epoch and its position."""

    def fold(epoch, position):
        return jax.random.fold_in(jax.random.fold_in(key, epoch), position)

    return jax.vmap(fold)(epochs, positions)


def takes_key(stage: Stage) -> bool:
    """Returns whether a stage's call has a parameter named `key`."""
    try:
        return "key" in inspect.signature(stage).parameters
    except ValueError:  # a builtin without a signature
        return False
