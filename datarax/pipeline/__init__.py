"""Pipelines: batches of a source through stages, and batches placed on the device ahead."""

from datarax.pipeline.pipeline import Pipeline as Pipeline
from datarax.pipeline.prefetch import prefetch_to_device as prefetch_to_device
