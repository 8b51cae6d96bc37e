"""A pipeline: a source, the stages its batches go through, and a batch size."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.columns.rows import has_host, merged, parted, with_host_rows
from datarax.errors import expect_between, listed
from datarax.order.canonical import Deal, expect_multiple, with_shards, without_shards
from datarax.order.epochs import steps_per_epoch
from datarax.order.permutation import MAX_RECORDS
from datarax.pipeline import programs
from datarax.pipeline.graph import Graph, Stage
from datarax.sources.eager import EagerSourceBase
from datarax.sources.mixed import MixedSource
from datarax.sources.streaming import StreamingSourceBase

Source = EagerSourceBase | StreamingSourceBase | MixedSource


class Pipeline(nnx.Module):
    """Batches of a source, put through stages in one compiled step.

    A stage is an `nnx.Module` or a function from batch to batch. One whose call has a `key`
    parameter gets one key a record, of shape `(batch_size,)`, folded from (rngs, epoch, position):
    what it draws does not depend on the batch size, the devices or where a run was resumed.

    The position is the source's: it moves with the batches, and `get_state` is the source's.

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
        expect_multiple(batch_size, shards)
        self.is_stream = not isinstance(source, EagerSourceBase)
        if shards > 1:
            if self.is_stream:
                source = _split(source, shards)
            else:
                Deal(source.length, shards)  # raises where there are too few records
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
        self._host = nnx.static(source.host_columns() if self.is_stream else ())
        self.key = nnx.Variable((nnx.Rngs(source.seed) if rngs is None else rngs)())

    @classmethod
    def from_dag(
        cls,
        *,
        source: Source,
        nodes: Mapping[str, Stage],
        edges: Iterable[tuple[str, str]],
        sink: str,
        batch_size: int,
        rngs: nnx.Rngs | None = None,
    ) -> Self:
        """Makes a pipeline whose stages form a directed acyclic graph.

        Args:
            source: An eager source, a stream or a mixture; its batches are the node `"source"`.
            nodes: Stages by name.
            edges: Pairs (from, to). A node gets the results of those before it as positional
                arguments, in the order of the edges; one without an edge to it gets the source's
                batch.
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
        return self._stream_epoch() if self.is_stream else self._epoch()

    def _epoch(self):
        length = self.source.length
        epoch, index = self.source.begin_epoch()
        while index < length:
            size = min(self.batch_size, length - index)
            if size < self.batch_size and self.drop_remainder:
                self.source.move(epoch + 1, 0)
                return
            batch = self._batch(np.int32(epoch), np.int32(index))
            index += size
            self.source.move(*((epoch, index) if index < length else (epoch + 1, 0)))
            yield batch if size == self.batch_size else _first(size, batch)

    def _stream_epoch(self):
        for block in self.source.epoch_blocks(self.batch_size):
            if block.valid.all() or not self.drop_remainder:
                yield self._of_block(block)

    def step(self) -> dict[str, Any]:
        """Returns the next batch, always full: it runs on into the next epoch. Traceable.

        A stream's is not traceable, and short at the end of an epoch.

        Returns:
            What the last stage returned, and the source's host columns where nothing is traced.
        """
        if self.is_stream:
            block = self.source.read_batches(1, self.batch_size)
            if not block.filled:
                self.source.next_epoch()
                block = self.source.read_batches(1, self.batch_size)
            return self._of_block(block)
        epoch, index = self._position()
        batch = self._batch(epoch, index)
        self.source.move(*programs.advance(epoch, index, self.batch_size, self.source.length))
        return batch

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
        if self.is_stream:
            raise NotImplementedError(
                f"{type(self.source).__name__} is a stream, which a compiled loop cannot index: "
                "call step() in a loop of your own, or train with trainers.Trainer."
            )
        expect_between("length", length, 1, 2**31 - 1)
        definition, state = nnx.split((self.stages, tuple(modules)))
        epoch, index = self._position()
        (state, epoch, index, carry), out = programs.scan(
            (step_fn, length, init_carry is not None, self._static(), definition),
            (state, epoch, index, init_carry),
            (self.source.data, self.source.order_seed(), self.key.get_value()),
        )
        nnx.update((self.stages, tuple(modules)), state)
        self.source.move(epoch, index)
        return out if init_carry is None else (carry, out)

    def _position(self):
        # As int32 arrays, whether ints or traced: one dtype means one trace.
        position = self.source.epoch.get_value(), self.source.index.get_value()
        return tuple(jnp.asarray(x, jnp.int32) for x in position)

    def _batch(self, epoch, index):
        definition, state = nnx.split(self.stages)
        data = (self.source.data, self.source.order_seed(), self.key.get_value())
        batch, state, records = programs.step(
            (*self._static(), definition), state, epoch, index, data
        )
        nnx.update(self.stages, state)
        columns = self.source.data
        if not has_host(columns) or isinstance(records, jax.core.Tracer):
            return batch
        if not isinstance(batch, dict):  # without names there is no place for host columns
            return batch
        records = np.asarray(records)
        rest = {k: v for k, v in columns.items() if k in batch or has_host({k: v})}
        return {**with_host_rows({**batch}, rest, records), **batch}

    def _of_block(self, block):
        """Returns a block's only batch after the stages, the records that count."""
        columns = jax.tree.map(lambda column: column[0], block.columns)
        arrays, host = parted(columns, self._host)
        definition, state = nnx.split(self.stages)
        batch, state = programs.stage(
            definition, state, arrays, self.key.get_value(), np.uint32(block.epoch), block.ranks[0]
        )
        nnx.update(self.stages, state)
        batch = merged(host, batch) if isinstance(batch, dict) else batch
        if block.valid.all():
            return batch
        # Of canonical streams, one may have ended before another: they are not the first ones.
        records = np.flatnonzero(block.valid[0])
        return jax.tree.map(lambda x: x[records], batch)

    def _static(self):
        return self.batch_size, self.source.length, self.shards

    # --- state -----------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Returns the source's state: position, order and fingerprint."""
        return with_shards(self.source.get_state(), self.shards)

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
        if self.drop_remainder:
            return self.source.length // self.batch_size
        return steps_per_epoch(self.source.length, self.batch_size)


def _split(source, shards):
    if not isinstance(source, StreamingSourceBase):
        raise ValueError(
            f"shards={shards}, but a {type(source).__name__} has no files to deal out: write "
            "shards=1."
        )
    return source.split(shards)


def _first(size, batch):
    return jax.tree.map(lambda x: x[:size], batch)
