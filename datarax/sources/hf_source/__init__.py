"""Hugging Face datasets as sources: a split as arrays on the device, by number, or on demand."""

from logging import getLogger

from datarax.sources.hf_source.config import HFEagerConfig, HFIndexedConfig, HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource
from datarax.sources.hf_source.from_hf import from_hf
from datarax.sources.hf_source.indexed import HFIndexedSource
from datarax.sources.hf_source.streaming import HFStreamingSource
from datarax.sources.streaming import StreamingSourceBase

logger = getLogger(__name__)

__all__ = [
    "HFEagerConfig",
    "HFEagerSource",
    "HFIndexedConfig",
    "HFIndexedSource",
    "HFStreamingConfig",
    "HFStreamingSource",
    "StreamingSourceBase",
    "from_hf",
    "logger",
]
