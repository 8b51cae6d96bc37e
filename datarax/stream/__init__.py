"""Streams: rows that come in order, shuffled in windows, resumed exactly."""

from datarax.stream.iterable import IterableShards as IterableShards
from datarax.stream.shards import Shards as Shards
from datarax.stream.shards import TableShards as TableShards
from datarax.stream.state import merge_states as merge_states
from datarax.stream.streams import Streams as Streams
