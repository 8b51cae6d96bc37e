"""Sources: where records come from."""

from datarax.sources.eager import EagerSourceBase
from datarax.sources.hf_source.config import HFEagerConfig, HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource
from datarax.sources.hf_source.from_hf import from_hf
from datarax.sources.hf_source.streaming import HFStreamingSource
from datarax.sources.memory import MemorySource, MemorySourceConfig
from datarax.sources.mixed import MixedSource
from datarax.sources.source import Source, SourceConfigBase
from datarax.sources.streaming import StreamingSourceBase

__all__ = [
    "EagerSourceBase",
    "HFEagerConfig",
    "HFEagerSource",
    "HFStreamingConfig",
    "HFStreamingSource",
    "MemorySource",
    "MemorySourceConfig",
    "MixedSource",
    "Source",
    "SourceConfigBase",
    "StreamingSourceBase",
    "from_hf",
]
