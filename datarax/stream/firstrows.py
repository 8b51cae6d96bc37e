"""The first rows of a stream: they decide its columns, and it is recognised by them."""

from typing import NamedTuple

import datasets
import pyarrow as pa

from datarax.columns.fingerprint import Digest
from datarax.stream.reader import Care, OpenShard
from datarax.stream.shards import Shards

_FINGERPRINTED = 64


class FirstRows(NamedTuple):
    """The first table that has rows, and the features of all."""

    table: pa.Table
    features: datasets.Features


def first_rows(shards: Shards, care: Care, *, keep: bool) -> tuple[FirstRows, dict[int, OpenShard]]:
    """Returns the first rows, and the shards opened for them: reading begins with these again."""
    opened = {}
    for number in range(shards.num_shards):
        shard = OpenShard(shards, number, care)
        table = shard.peek()
        if keep:
            opened[number] = shard
        else:
            shard.close()
        if table is not None:
            features = shards.features or datasets.Features.from_arrow_schema(table.schema)
            return FirstRows(table, features), opened
    raise ValueError("The stream is empty: there is no row in any of its shards.")


def fingerprint(shards: Shards, first: FirstRows) -> str:
    """Returns a fingerprint of a stream's content, as far as it is known before it is read."""
    digest = Digest("stream", shards.num_shards, shards.length)
    for name in sorted(first.features):
        digest.note(name, first.features[name])
        column = first.table.column(name).slice(0, _FINGERPRINTED)
        digest.arrow(pa.concat_arrays(column.chunks))
    return digest.hex()
