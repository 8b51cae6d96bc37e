"""Rows of a stream as a transform makes them, when they are handed out."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from datarax.columns.records import Records
from datarax.columns.transform import TransformFunction
from datarax.columns.transformer import Transformer
from datarax.stream.decoder import Decoder, Part, Places
from datarax.stream.faults import Faults, Raised
from datarax.stream.open_shard import ReadPolicy
from datarax.stream.schema import ColumnSpec, FirstRows, column_specs
from datarax.stream.shards import row_label
from datarax.stream.timed import timed

_SHOWN = 64  # of the first rows, which decide the columns that a transform makes


def decoder_of(
    first: FirstRows,
    transform: TransformFunction | None,
    policy: ReadPolicy,
    num_threads: int | None = None,
) -> Decoder:
    """Returns what makes columns of a stream's rows.

    Args:
        first: The first rows, at least one.
        transform: `(record) -> record` or `(record, rng) -> record`; None for the rows as stored.
        policy: How long a record may take, and whether a bad one is skipped.
        num_threads: How many threads decode and transform; None for one a core.
    """
    if transform is None:
        return Decoder(first, column_specs(first.features, first.table), num_threads)
    transformer = Transformer(
        transform,
        first.features,
        on_bad_rows=policy.on_bad_rows,
        num_threads=num_threads,
        timeout=policy.timeout,
    )
    return TransformedDecoder(first, transformer)


class TransformedDecoder(Decoder):
    """Makes columns of a stream's rows by a transform, on threads.

    A window keeps the rows as they are stored until they are handed out, so that it stays small.
    Its check is that of a stream without a transform: a state of one serves the other.

    Args:
        first: The first rows, at least one.
        transformer: The transform of such rows.

    Raises:
        Exception: What the transform raises for the first row, which decides the columns.
    """

    def __init__(self, first: FirstRows, transformer: Transformer):
        super().__init__(first, _stored_specs(first))
        self.transformer = transformer
        shown = self.with_all_columns(first.table.slice(0, _SHOWN))
        records = Records(shown, self.stored)
        transformer.learn(records, lambda row: row_label(row, first.shard))

    @property
    def features(self) -> datasets.Features:
        """The features of the columns that the transform makes, of those that have one."""
        return self.transformer.outputs.features

    @property
    def transform(self) -> TransformFunction:
        """The transform that makes the columns."""
        return self.transformer.transform.function

    @property
    def kept_names(self) -> list[str]:
        """All columns: a transform is given records as they are stored."""
        return list(self.stored)

    @property
    def first_record(self) -> Part:
        """The first record, of arrays of shape `(1, ...)`."""
        return self.transformer.first

    def buffers(self, rows: int) -> Part:
        """Returns arrays of shape `(rows, ...)` to write records to."""
        return self.transformer.outputs.buffers(rows)

    def spec(self) -> dict[str, Any]:
        """Returns shape and dtype of one record: nested dict of `jax.ShapeDtypeStruct`."""
        return self.transformer.outputs.spec()

    def host_errors(self) -> dict[str, str]:
        """Returns why each host column is no array, by its name."""
        return {".".join(p): why for p, why in self.transformer.outputs.why_host().items()}

    def numbers(self, table: pa.Table) -> tuple[Part, Faults]:
        """Returns no columns, and the rows of a table with a column that the first rows lack."""
        return {}, self.unknown(table)

    @timed
    def rest(self, table: pa.Table, rows: np.ndarray, places: Places) -> tuple[Part, Faults]:
        """Returns what the transform makes of rows; see `Decoder.rest`."""
        out = self.buffers(len(table))
        errors = self.transformer.apply(
            Records(table, self.stored),
            places.records(rows),
            places.seed,
            out,
            lambda row: places.label(int(rows[row])),
        )
        must_raise = self.transformer.must_raise
        return out, {row: Raised(error, not must_raise(error)) for row, error in errors.items()}


def _stored_specs(first: FirstRows) -> Sequence[ColumnSpec]:
    """Returns what the columns are without the transform, for the check of a window."""
    try:
        return column_specs(first.features, first.table)
    except ValueError:
        return []  # an integer beyond 32 bits: without a transform there is no such stream
