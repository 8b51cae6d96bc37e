"""Transforms: functions of one record, for `transform=` of a source.

Each takes a record and returns it with a column changed; `random_resized_crop` takes a generator,
too. They can be pickled, and run on several threads at once.
"""

from datarax.transforms.chain import chain
from datarax.transforms.crops import center_crop, random_resized_crop, resize
from datarax.transforms.sounds import audio_window
from datarax.transforms.texts import tokenize

__all__ = [
    "audio_window",
    "center_crop",
    "chain",
    "random_resized_crop",
    "resize",
    "tokenize",
]
