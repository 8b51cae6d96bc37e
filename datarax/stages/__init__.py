"""Ready stages: the usual steps between a source and a model.

Each is a function from batch to batch in pure JAX, usable under `jit`, in a `Pipeline` or alone.
One that draws takes `key`, a key a record.
"""

from datarax.stages.columns import Map, Normalize, OneHot, Scale
from datarax.stages.images import ColorJitter, Cutout, RandomCrop, RandomFlip, RandomTranslate
from datarax.stages.mixing import CutMix, MixUp

__all__ = [
    "ColorJitter",
    "CutMix",
    "Cutout",
    "Map",
    "MixUp",
    "Normalize",
    "OneHot",
    "RandomCrop",
    "RandomFlip",
    "RandomTranslate",
    "Scale",
]
