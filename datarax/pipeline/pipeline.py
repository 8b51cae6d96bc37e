"""A pipeline: a source, the stages its batches go through, and a batch size."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from datarax.columns.rows import absent_of, as_columns
from datarax.errors import expect_between, listed
from datarax.order.canonical import expect_multiple, with_shards, without_shards
from datarax.order.epochs import steps_per_epoch
from datarax.order.order import Order
from datarax.order.permutation import MAX_RECORDS
from datarax.pipeline.batches import ReadBatches, TracedBatches, staged
from datarax.pipeline.graph import Edges, Graph, Stage
from datarax.sources.source import Source


class Pipeline(nnx.Module):
    """Batches of a source, put through stages in one compiled step.

    A stage is an `nnx.Module` or a function from batch to batch. One whose call has a `key`
    parameter gets one key a record, of shape `(batch_size,)`, folded from (rngs, epoch, position):
    its draws do not depend on the batch size, the devices or where a run was resumed.

    The position is the source's: it moves with the batches, and `get_state` is the source's.
    `pipeline(batch)` puts a batch of your own through the stages.

    Args:
        source: An eager source, a stream or a mixture.
        stages: Stages, applied in order, or a `Graph` of them.
        batch_size: Records in a batch.
        rngs: Random streams of the stages' keys; None: `nnx.Rngs` of the source's seed.
        drop_remainder: Whether iterating leaves out an epoch's last batch when it is short.
        shards: Number of canonical shards `C`: an order in which the rows of a batch can lie on any
            number of devices that divides `C` (see `datarax.order.canonical`). A stream's files are
            dealt to `C` streams, read in step. `C` belongs to the order and so to the state.

    Raises:
        TypeError: If `source` is no source or a stage cannot be called.
        ValueError: If `batch_size` is not positive or no multiple of `shards`, or there are fewer
            records than `shards`.

    Example:
        >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(5.0)})
        >>> pipeline = Pipeline(source=source, stages=[lambda b: {"x": 2 * b["x"]}], batch_size=2)
        >>> [batch["x"].tolist() for batch in pipeline]
        [[0.0, 2.0], [4.0, 6.0], [8.0]]
    """

    def __init__(
        self,
        *,
        source: Source,
        stages: Sequence[Stage] | Graph,
        batch_size: int,
        rngs: nnx.Rngs | None = None,
        drop_remainder: bool = False,
        shards: int = 1,
    ):
        if not isinstance(source, Source):
            raise TypeError(
                f"source is a {type(source).__name__}: expected a source, such as "
                "HFEagerSource(config) or MemorySource(config, data)."
            )
        expect_between("batch_size", batch_size, 1, MAX_RECORDS)
        expect_between("shards", shards, 1, MAX_RECORDS)
        batch_size, shards = batch_size.__index__(), shards.__index__()  # states hold no NumPy's
        expect_multiple(batch_size, shards)
        source = source if shards == 1 else source.sharded(shards)
        if not isinstance(rngs, nnx.Rngs | None):
            raise TypeError(f"rngs={rngs!r}: expected random streams, rngs=nnx.Rngs(0).")
        if rngs is not None and "default" not in rngs:
            raise ValueError(
                f"rngs has the streams {listed(rngs)}, and stages draw from 'default': write "
                "rngs=nnx.Rngs(0), or nnx.Rngs(default=0, ...)."
            )
        self.source = source
        self.shards = shards
        self.stages = stages if isinstance(stages, Graph) else Graph.chain(stages)
        self.batch_size = batch_size
        self.drop_remainder = drop_remainder
        if rngs is not None:
            key = rngs()
        elif self.stages.is_empty:
            key = _no_key()
        else:
            key = _first_key(np.uint32(source.seed))
        self.key = nnx.Variable(key)

    @classmethod
    def from_dag(
        cls,
        *,
        source: Source,
        nodes: Mapping[str, Stage],
        edges: Edges,
        sink: str,
        batch_size: int,
        rngs: nnx.Rngs | None = None,
    ) -> Self:
        """Makes a pipeline whose stages form a directed acyclic graph.

        Args:
            source: An eager source, a stream or a mixture; its batches are the node `"source"`.
            nodes: Stages by name.
            edges: Pairs (from, to), or a mapping from a node to those that its result goes to. A
                node gets the results of those before it as positional arguments, in the order of
                the edges; one without an edge to it gets the source's batch.
            sink: The node whose result is the batch.
            batch_size: Records in a batch.
            rngs: Random streams of the stages' keys.

        Raises:
            ValueError: If an edge or `sink` names no node, or the edges go round in a circle.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(4.0)})
            >>> pipeline = Pipeline.from_dag(
            ...     source=source,
            ...     nodes={
            ...         "double": lambda b: {"y": 2 * b["x"]},
            ...         "both": lambda a, b: {**a, **b},
            ...     },
            ...     edges=[("source", "double"), ("source", "both"), ("double", "both")],
            ...     sink="both",
            ...     batch_size=2,
            ... )
            >>> sorted(pipeline.step())
            ['x', 'y']
        """
        graph = Graph(nodes, edges, sink)
        return cls(source=source, stages=graph, batch_size=batch_size, rngs=rngs)

    # --- batches ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the batches of one epoch, the last one short where the length asks for it.

        It begins as a `for` over the source does: at epoch 0 first, where `set_state` put it, and
        otherwise at the start of the next epoch.
        """
        return self._batches().epoch(self.drop_remainder)

    def __call__(self, batch: dict[str, Any]) -> Any:
        """Puts a batch through the stages; traceable.

        Its host columns ride along. A stage that draws gets the keys of the records of epoch 0,
        from the first on, so the same batch gives the same result each time.

        Args:
            batch: Nested dict of arrays of shape `(size, ...)`, object arrays, or lists.

        Returns:
            The result of the last stage, and the host columns.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(4.0)})
            >>> double = lambda batch: {"x": 2 * batch["x"]}
            >>> pipeline = Pipeline(source=source, stages=[double], batch_size=2)
            >>> pipeline({"x": np.array([0.5, 3.0])})["x"].tolist()
            [1.0, 6.0]
        """
        batch = {name: as_columns(values) for name, values in batch.items()}
        ranks = np.arange(len(jax.tree.leaves(batch)[0]), dtype=np.uint32)
        absent = absent_of(self.source.host_columns())
        return staged(self.stages, self.key.get_value(), batch, absent, np.uint32(0), ranks)

    def step(self) -> dict[str, Any]:
        """Returns the next batch, always full: it runs on into the next epoch. Traceable.

        A stream's is not traceable, and short at the end of an epoch.

        Returns:
            The result of the last stage, and the source's host columns where nothing is traced.
        """
        return self._batches().step()

    def scan(
        self,
        step_fn: Callable[..., Any],
        *,
        length: int,
        modules: tuple[nnx.Module, ...] = (),
        init_carry: Any = None,
    ) -> Any:
        """Runs `step_fn` over the next `length` batches in one compiled program.

        Args:
            step_fn: `(*modules, batch) -> out`, or `(carry, *modules, batch) -> (carry, out)` where
                `init_carry` is given. Pass the same function again to compile it only once.
            length: Number of batches.
            modules: Modules that `step_fn` may change, such as a model and an `nnx.Optimizer`.
            init_carry: The first carry, a pytree of arrays.

        Returns:
            The results stacked along a new first axis, or `(carry, results)`.

        Example:
            >>> source = MemorySource(MemorySourceConfig(), {"x": np.arange(4.0)})
            >>> pipeline = Pipeline(source=source, stages=[], batch_size=2)
            >>> pipeline.scan(lambda batch: batch["x"].sum(), length=3)
            Array([1., 5., 1.], dtype=float32)

        Raises:
            NotImplementedError: If the source is a stream.
        """
        expect_between("length", length, 1, 2**31 - 1)
        return self._batches().scan(step_fn, length, tuple(modules), init_carry)

    @property
    def is_stream(self) -> bool:
        """Whether the source's batches are read in order, rather than formed by arithmetic."""
        return not all(part.is_traceable for part in self.source.parts)

    @property
    def order(self) -> Order:
        """The order of a source whose batches are formed by arithmetic, with canonical shards."""
        source: Any = self.source
        return dataclasses.replace(source.order, shards=self.shards)

    def _batches(self) -> TracedBatches | ReadBatches:
        source: Any = self.source  # of the kind that it says
        given = source, self.stages, self.key.get_value(), self.batch_size
        return (
            TracedBatches(*given, self.order) if self.source.is_traceable else ReadBatches(*given)
        )

    # --- state -----------------------------------------------------------------------------------

    def position(self) -> Any:
        """Returns the position, of which `state_at` makes a state, also later."""
        return self.source.position()

    def state_at(self, position: Any) -> dict[str, Any]:
        """Returns the state of the source when it stands at `position`."""
        return with_shards(self.source.state_at(position), self.shards)

    def get_state(self) -> dict[str, Any]:
        """Returns the source's state: position, order and fingerprint."""
        return self.state_at(self.position())

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the position; see the source's `set_state`.

        Raises:
            TypeError: If `state` is no dict.
            ValueError: If it is of other data, another structure or another number of shards.
        """
        self.source.set_state(without_shards(state, self.shards))

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes to a state of this pipeline; a `for` begins the next epoch, as after a `break`."""
        self.source.rewind(without_shards(state, self.shards))

    def __len__(self) -> int:
        """Number of batches that iterating one epoch gives."""
        if self.source.length is None:
            raise TypeError("The source is a stream of unknown length: so is the pipeline.")
        return steps_per_epoch(
            self.source.length, self.batch_size, drop_remainder=self.drop_remainder
        )


@jax.jit  # one program for all seeds; operation by operation it is eight
def _first_key(seed: Any) -> jax.Array:
    """Returns the first key of `nnx.Rngs(seed)`, of a seed below 2**32."""
    return nnx.Rngs(jax.random.key(seed))()


def _no_key() -> jax.Array:
    """Returns a key of zeros, from which nothing is drawn; a drawn one takes 0.06 s to compile."""
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return jax.random.wrap_key_data(jax.device_put(np.zeros(words.shape, words.dtype)))
