"""Sources: where records come from."""

from datarax.sources.eager import EagerSourceBase
from datarax.sources.grain_source import GrainSource, as_grain
from datarax.sources.hf_source.config import HFEagerConfig, HFIndexedConfig, HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource
from datarax.sources.hf_source.from_hf import from_hf
from datarax.sources.hf_source.indexed import HFIndexedSource
from datarax.sources.hf_source.streaming import HFStreamingSource
from datarax.sources.indexed import IndexedSourceBase
from datarax.sources.iterable_source import IterableSource
from datarax.sources.memory import MemorySource, MemorySourceConfig
from datarax.sources.mixed import MixedSource
from datarax.sources.source import Source, SourceConfigBase
from datarax.sources.streaming import StreamingSourceBase

__all__ = [
    "EagerSourceBase",
    "GrainSource",
    "HFEagerConfig",
    "HFEagerSource",
    "HFIndexedConfig",
    "HFIndexedSource",
    "HFStreamingConfig",
    "HFStreamingSource",
    "IndexedSourceBase",
    "IterableSource",
    "MemorySource",
    "MemorySourceConfig",
    "MixedSource",
    "Source",
    "SourceConfigBase",
    "StreamingSourceBase",
    "as_grain",
    "from_hf",
]
