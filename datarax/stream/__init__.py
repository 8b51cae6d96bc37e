"""Streams: rows that come in order, shuffled in windows, resumed exactly."""

from datarax.stream.iterable import IterableShards
from datarax.stream.shards import Shards, TableShards
from datarax.stream.state import merge_states
from datarax.stream.streams import Streams

__all__ = ["IterableShards", "Shards", "Streams", "TableShards", "merge_states"]
