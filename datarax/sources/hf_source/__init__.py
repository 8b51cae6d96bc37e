"""Hugging Face datasets as sources: a split as arrays on the device, or read on demand."""

from logging import getLogger

from datarax.sources.hf_source.config import HFEagerConfig as HFEagerConfig
from datarax.sources.hf_source.config import HFStreamingConfig as HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource as HFEagerSource
from datarax.sources.hf_source.from_hf import from_hf as from_hf
from datarax.sources.hf_source.streaming import HFStreamingSource as HFStreamingSource
from datarax.sources.streaming import StreamingSourceBase as StreamingSourceBase

logger = getLogger(__name__)
