"""One encoded sound as samples, read by soundfile: no torch, no torchcodec."""

from io import BytesIO
from math import gcd
from typing import Any

import datasets
import numpy as np

from datarax.hub.private import xopen
from datarax.hub.secrets import raise_from, redacted


class DamagedSound(Exception):
    """A sound that cannot be decoded; says what soundfile found."""


def samples(feature: datasets.Audio, value: dict[str, Any]) -> np.ndarray:
    """Returns the samples of a WAV, FLAC, OGG or MP3 file.

    Args:
        feature: The column's feature: its `sampling_rate` and `num_channels` are those of the
            result, and the file's own where they are None.
        value: `{"bytes": ..., "path": ...}`, one of which may be None.

    Returns:
        `float32` in [-1, 1], of shape `(samples,)`, or `(channels, samples)` if there are several
        channels.

    Raises:
        DamagedSound: The file is no sound, cut off, or missing.
        ImportError: soundfile is not installed.
    """
    return decoded(feature, value)[0]


def soundfile() -> Any:
    """Returns the module `soundfile`; raises `ImportError` that says what to install."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading sounds needs soundfile: pip install datarax[audio]") from error
    return soundfile


def decoded(
    feature: datasets.Audio, value: dict[str, Any], tokens: dict[str, Any] | None = None
) -> tuple[np.ndarray, int]:
    """Returns what `samples` returns, and the sampling rate.

    Args:
        feature: See `samples`.
        value: See `samples`.
        tokens: The Hub's tokens, by repository, for a file behind a URL.
    """
    reader = soundfile()
    from scipy.signal import resample_poly  # JAX depends on SciPy

    encoded, path = value["bytes"], value["path"]
    try:
        opened: Any = BytesIO(encoded)
        if encoded is None:
            token = next((token for repo, token in (tokens or {}).items() if repo in path), None)
            config = datasets.DownloadConfig(token=token)
            opened = xopen(path, "rb", download_config=config)
        with opened as file:
            read, rate = reader.read(file, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:  # soundfile's own are RuntimeErrors
        raise_from(DamagedSound(f"{type(error).__name__}: {redacted(error)}"), error)
    sound = _with_channels(read.T, feature.num_channels)
    wanted = feature.sampling_rate or rate
    if wanted != rate and sound.size:
        common = gcd(wanted, rate)
        sound = resample_poly(sound, wanted // common, rate // common, axis=1)
    sound = np.ascontiguousarray(sound, np.float32)
    return sound[0] if len(sound) == 1 else sound, wanted


def _with_channels(sound: np.ndarray, channels: int | None) -> np.ndarray:
    if channels in (None, len(sound)):
        return sound
    mono = sound.mean(axis=0, keepdims=True)
    return np.repeat(mono, channels, axis=0)
