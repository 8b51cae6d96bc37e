"""Datarax: Hugging Face datasets as JAX arrays, with any batch by arithmetic.

The one idea: batch `t` is a pure function of (data, seed, `t`).
"""

from datarax.columns.host import HostColumn as HostColumn
from datarax.module import DataraxModule as DataraxModule
from datarax.module import DataraxModuleConfig as DataraxModuleConfig
from datarax.order.permutation import index_shuffle as index_shuffle
from datarax.pipeline.pipeline import Pipeline as Pipeline
from datarax.pipeline.prefetch import prefetch_to_device as prefetch_to_device
from datarax.sources import EagerSourceBase as EagerSourceBase
from datarax.sources import HFEagerConfig as HFEagerConfig
from datarax.sources import HFEagerSource as HFEagerSource
from datarax.sources import HFStreamingConfig as HFStreamingConfig
from datarax.sources import HFStreamingSource as HFStreamingSource
from datarax.sources import MemorySource as MemorySource
from datarax.sources import MemorySourceConfig as MemorySourceConfig
from datarax.sources import MixedSource as MixedSource
from datarax.sources import SourceConfigBase as SourceConfigBase
from datarax.sources import StreamingSourceBase as StreamingSourceBase
from datarax.sources.hf_source import from_hf as from_hf

__version__ = "0.1.0"
