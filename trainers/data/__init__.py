"""Data: batch `t` of a source, on the devices that compute it."""

from trainers.data.eager import as_pipeline as as_pipeline
from trainers.data.stream import as_batches as as_batches
