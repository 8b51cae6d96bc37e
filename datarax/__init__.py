"""Datarax: Hugging Face datasets as JAX arrays, with any batch by arithmetic.

The one idea: batch `t` is a pure function of (data, seed, `t`).
"""

from datarax.columns.host import HostColumn
from datarax.order.permutation import index_shuffle
from datarax.pipeline.pipeline import Pipeline
from datarax.pipeline.prefetch import prefetch_to_device
from datarax.sources import (
    EagerSourceBase,
    GrainSource,
    HFEagerConfig,
    HFEagerSource,
    HFIndexedConfig,
    HFIndexedSource,
    HFStreamingConfig,
    HFStreamingSource,
    IndexedSourceBase,
    IterableSource,
    MemorySource,
    MemorySourceConfig,
    MixedSource,
    SourceConfigBase,
    StreamingSourceBase,
    as_grain,
)
from datarax.sources.hf_source import from_hf
from datarax.sources.module import DataraxModule, DataraxModuleConfig

__version__ = "0.1.0"

__all__ = [
    "DataraxModule",
    "DataraxModuleConfig",
    "EagerSourceBase",
    "GrainSource",
    "HFEagerConfig",
    "HFEagerSource",
    "HFIndexedConfig",
    "HFIndexedSource",
    "HFStreamingConfig",
    "HFStreamingSource",
    "HostColumn",
    "IndexedSourceBase",
    "IterableSource",
    "MemorySource",
    "MemorySourceConfig",
    "MixedSource",
    "Pipeline",
    "SourceConfigBase",
    "StreamingSourceBase",
    "as_grain",
    "from_hf",
    "index_shuffle",
    "prefetch_to_device",
]
