"""Data: batch `t` of a source, on the devices that compute it."""

from trainers.data.adapt import as_batches as as_batches
from trainers.data.adapt import as_pipeline as as_pipeline
from trainers.data.batches import Batches as Batches
from trainers.data.batches import Feed as Feed
