"""Hugging Face datasets as sources: a split as arrays on the device, or read on demand."""

from logging import getLogger

from datarax.sources.hf_source.config import HFEagerConfig, HFStreamingConfig
from datarax.sources.hf_source.eager import HFEagerSource
from datarax.sources.hf_source.from_hf import from_hf
from datarax.sources.hf_source.streaming import HFStreamingSource
from datarax.sources.streaming import StreamingSourceBase

logger = getLogger(__name__)

__all__ = [
    "HFEagerConfig",
    "HFEagerSource",
    "HFStreamingConfig",
    "HFStreamingSource",
    "StreamingSourceBase",
    "from_hf",
    "logger",
]
