"""Streams: rows that come in order, shuffled in windows, resumed exactly."""

from datarax.stream.streams import Streams as Streams
from datarax.stream.streamstate import merge_states as merge_states
