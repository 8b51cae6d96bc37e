"""Pipelines: batches of a source through stages, and batches placed on the device ahead."""

from datarax.pipeline.pipeline import Pipeline
from datarax.pipeline.prefetch import prefetch_to_device

__all__ = ["Pipeline", "prefetch_to_device"]
