"""Sounds in a stream's rows: decoded by soundfile when somebody looks, never encoded again."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import datasets
import numpy as np

from datarax.columns.sounds import decoded, soundfile
from datarax.errors import listed
from datarax.hub.secrets import redacted
from datarax.stream.pictures import Stored

_KEYS = ("path", "array", "sampling_rate")
_TORCHCODECS = ("get_all_samples", "get_samples_played_in_range", "metadata")


class Sound(Mapping[str, Any]):
    """A sound in a row that a function of `map` or `filter` sees: nothing is decoded before.

    `sound["array"]` is the samples as `datasets` gives them, `float32` of shape `(samples,)`, the
    mean of several channels; `sound["sampling_rate"]` and `sound["path"]` are there, too. Where
    torchcodec is installed, so are the methods of its decoder, which `datasets` gives.

    Args:
        feature: The column's feature.
        stored: The file, `{"bytes": ..., "path": ...}`.
        tokens: The Hub's tokens, by repository, for a file behind a URL.
    """

    def __init__(self, feature: datasets.Audio, stored: Stored, tokens: dict[str, Any]):
        self.feature, self.stored = feature, stored
        self._tokens = tokens
        self._decoded: tuple[np.ndarray, int] | None = None

    def __getitem__(self, key: str) -> Any:
        if key not in _KEYS:
            raise KeyError(key)
        if key == "path":
            return self.stored["path"]
        if self._decoded is None:
            samples, rate = decoded(self.feature, self.stored, self._tokens)
            self._decoded = samples.mean(axis=0) if samples.ndim > 1 else samples, rate
        return self._decoded[key == "sampling_rate"]

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS)

    def __len__(self) -> int:
        return len(_KEYS)

    def __getattr__(self, name: str) -> Any:
        if name not in _TORCHCODECS:
            raise AttributeError(f"A sound has no {name!r}: it has the keys {listed(_KEYS)}.")
        try:
            return getattr(self.feature.decode_example(self.stored, self._tokens), name)
        except ImportError as error:
            raise ImportError(
                f"{name!r} of a sound needs torchcodec, pip install torchcodec; sound['array'] and "
                "sound['sampling_rate'] do not."
            ) from error

    def __eq__(self, other: object) -> bool:
        return self is other  # a comparison of arrays has no one answer

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Sound(path={redacted(self.stored['path'])!r})"


def stored_samples(sound: Mapping[str, Any]) -> Stored:
    """Returns samples as a file that holds exactly them.

    Args:
        sound: `{"array": ..., "sampling_rate": ...}`, of shape `(samples,)` or `(channels,
            samples)`.
    """
    file = BytesIO()
    samples = np.asarray(sound["array"], np.float32).T
    soundfile().write(file, samples, sound["sampling_rate"], format="WAV", subtype="FLOAT")
    return {"bytes": file.getvalue(), "path": None}
