"""Sounds of one length."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from scipy.signal import resample_poly  # JAX depends on SciPy

from datarax.columns.transform import TransformFunction
from datarax.transforms.column import value_of


def audio_window(
    seconds: float, rate: int, *, column: str = "audio", random: bool = False
) -> TransformFunction:
    """Returns a transform that cuts a window out of a sound; silence follows one that is shorter.

    Args:
        seconds: How long the window is.
        rate: Samples a second of the result; a sound of another rate is resampled.
        column: The column of the sound, `{"array": ..., "sampling_rate": ...}`. The result holds
            `float32` of shape `(seconds * rate,)` there.
        random: Whether the window begins anywhere, which takes a generator, or with the sound.

    Raises:
        ValueError: If the window would hold no sample.

    Example:
        >>> sound = {"array": np.ones(16000, np.float32), "sampling_rate": 16000}
        >>> audio_window(0.5, 8000)({"audio": sound})["audio"].shape
        (4000,)
    """
    if rate < 1 or round(seconds * rate) < 1:
        raise ValueError(f"seconds={seconds}, rate={rate}: expected at least one sample.")
    window = _RandomWindow if random else _FirstWindow
    return window(round(seconds * rate), int(rate), column)


@dataclass(frozen=True)
class _Window:
    samples: int
    rate: int
    column: str

    def _cut(self, record: Mapping[str, Any], share: float) -> dict[str, Any]:
        sound = value_of(record, self.column, "audio_window")
        if not isinstance(sound, Mapping) or not {"array", "sampling_rate"} <= sound.keys():
            raise TypeError(
                f"audio_window: column {self.column!r} holds {type(sound).__name__}, expected a "
                "sound, {'array': ..., 'sampling_rate': ...}. Choose another with column=, or "
                "declare it: ds = ds.cast_column(name, datasets.Audio())."
            )
        array = np.asarray(sound["array"], np.float32)
        if sound["sampling_rate"] != self.rate and array.size:
            common = gcd(self.rate, int(sound["sampling_rate"]))
            up, down = self.rate // common, int(sound["sampling_rate"]) // common
            array = resample_poly(array, up, down)
        start = int(share * (max(0, len(array) - self.samples) + 1))
        found = array[start : start + self.samples]
        window = np.zeros(self.samples, np.float32)
        window[: len(found)] = found
        return {**record, self.column: window}


class _FirstWindow(_Window):
    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return self._cut(record, 0.0)


class _RandomWindow(_Window):
    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return self._cut(record, rng.random())
