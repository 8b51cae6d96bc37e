"""Sources: where records come from."""

from datarax.sources.eager import EagerSourceBase as EagerSourceBase
from datarax.sources.hf_source.config import HFEagerConfig as HFEagerConfig
from datarax.sources.hf_source.config import HFStreamingConfig as HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource as HFEagerSource
from datarax.sources.hf_source.from_hf import from_hf as from_hf
from datarax.sources.hf_source.streaming import HFStreamingSource as HFStreamingSource
from datarax.sources.memory import MemorySource as MemorySource
from datarax.sources.memory import MemorySourceConfig as MemorySourceConfig
from datarax.sources.mixed import MixedSource as MixedSource
from datarax.sources.source import Source as Source
from datarax.sources.source import SourceConfigBase as SourceConfigBase
from datarax.sources.streaming import StreamingSourceBase as StreamingSourceBase
