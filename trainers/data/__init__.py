"""Data: batch `t` of a source, on the devices that compute it."""

from trainers.data.adapt import as_batches, as_pipeline
from trainers.data.batches import Batches, Feed

__all__ = ["Batches", "Feed", "as_batches", "as_pipeline"]
