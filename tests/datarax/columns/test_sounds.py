"""Sounds as samples: every format, rate and number of channels, and what is no sound."""

import io
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from datarax import HFEagerSource, HFStreamingSource
from datarax.columns.host import HostColumn
from datarax.columns.load import load_columns


def tone(rate=8000, seconds=0.5, channels=1, pitch=440.0):
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * pitch * (c + 1) * time) for c in range(channels)], 1)


def encoded(samples, rate=8000, kind="WAV", **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def dataset(values, feature=None):
    features = datasets.Features({"audio": feature or datasets.Audio()})
    stored = features.arrow_schema.field("audio").type
    return datasets.Dataset(pa.table({"audio": pa.array(values, stored)}, features.arrow_schema))


@pytest.mark.parametrize(
    ("kind", "error"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.05)]
)
def test_a_sound_of_any_format_is_its_samples(kind, error):
    wave = tone(rate=16000)
    column = load_columns(dataset([encoded(wave, 16000, kind)])).data["audio"]
    assert isinstance(column, HostColumn)
    (found,) = column[:]
    assert found.dtype == np.float32
    assert found.shape == (8000,)
    # Compressed formats begin and end softly.
    np.testing.assert_allclose(found[1000:-1000], wave[1000:-1000, 0], atol=error)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (16000, 8000)])
def test_a_sound_is_resampled_to_the_rate_of_the_feature(rate, wanted):
    feature = datasets.Audio(sampling_rate=wanted)
    found = load_columns(dataset([encoded(tone(rate), rate)], feature)).data["audio"][0]
    expected = tone(wanted)[:, 0]
    assert len(found) == len(expected)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=2e-3)


def test_channels_are_those_of_the_feature():
    stereo = tone(channels=2)
    found = load_columns(dataset([encoded(stereo)])).data["audio"][0]
    np.testing.assert_allclose(found, stereo.T, atol=1e-4)
    mono = load_columns(dataset([encoded(stereo)], datasets.Audio(num_channels=1))).data["audio"][0]
    np.testing.assert_allclose(mono, stereo.mean(1), atol=1e-4)
    both = load_columns(dataset([encoded(tone())], datasets.Audio(num_channels=2))).data["audio"][0]
    assert both.shape == (2, 4000)


@pytest.mark.parametrize("source", [HFEagerSource, HFStreamingSource])
def test_sources_give_samples_and_none(source, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(seconds=0.25))["bytes"])
    rows = [encoded(tone()), None, {"bytes": None, "path": str(path)}]
    batch = source.from_dataset(dataset(rows)).get_batch(3)["audio"]
    assert [None if sound is None else sound.shape for sound in batch] == [(4000,), None, (2000,)]


def test_a_damaged_sound_is_named():
    ds = dataset([encoded(tone()), {"bytes": b"no sound", "path": None}])
    column = load_columns(ds).data["audio"]
    assert column[0].shape == (4000,)
    with pytest.raises(ValueError, match=r"column 'audio', row 1: the sound cannot be decoded"):
        column[1]
    gone = load_columns(dataset([{"bytes": None, "path": "/nowhere/a.wav"}])).data["audio"]
    with pytest.raises(ValueError, match=r"row 0: .*FileNotFoundError"):
        gone[0]
    assert "Cut the sounds to one length" in str(column.error())


def test_without_soundfile_the_error_names_the_extra(monkeypatch):
    column = load_columns(dataset([encoded(tone())])).data["audio"]
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install datarax\[audio\]"):
        column[0]


# --- mapped and filtered rows ---------------------------------------------------------------------


def sounds(feature=None):
    """Four sounds of 2,000, 3,000, ... samples, as a stream of rows."""
    values = [encoded(tone(seconds=seconds)) for seconds in (0.25, 0.375, 0.5, 0.625)]
    return dataset(values, feature).add_column("y", [0, 1, 2, 3]).to_iterable_dataset()


LENGTH = {"n": datasets.Value("int64")}


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.map(lambda row: {"n": len(row["audio"]["array"])}),
        lambda s: s.map(lambda row: {"n": row["y"]}).map(
            lambda row: {"n": row["audio"]["array"].size}
        ),
        lambda s: s.map(lambda row: {"n": [len(a["array"]) for a in row["audio"]]}, batched=True),
        lambda s: s.map(
            lambda row: {"n": len(row["audio"]["array"])},
            features=datasets.Features({**s.features, **LENGTH}),
        ),
        lambda s: s.map(lambda audio: {"n": len(audio["array"])}, input_columns="audio"),
        lambda s: s.filter(lambda row: row["audio"]["sampling_rate"] == 8000).map(
            lambda row: {"n": len(row["audio"]["array"])}
        ),
    ],
)
def test_functions_see_sounds_and_rows_keep_them(change):
    batch = HFStreamingSource.from_dataset(change(sounds())).get_batch(4)
    assert batch["n"].tolist() == [2000, 3000, 4000, 5000]
    expected = HFStreamingSource.from_dataset(sounds()).get_batch(4)["audio"]
    for found, sound in zip(batch["audio"], expected, strict=True):
        np.testing.assert_array_equal(found, sound)


def test_a_function_that_does_not_look_at_a_sound_decodes_none(monkeypatch):
    stream = sounds().map(lambda row: {"z": row["y"] + 1}).filter(lambda row: row["z"] > 2)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    source = HFStreamingSource.from_dataset(stream, exclude_keys={"audio"})
    assert source.get_batch(4)["z"].tolist() == [3, 4]


def test_a_sound_in_a_row_is_what_datasets_gives():
    stereo = encoded(tone(channels=2))
    seen = []
    stream = dataset([stereo], datasets.Audio(sampling_rate=16000)).to_iterable_dataset()
    HFStreamingSource.from_dataset(stream.map(lambda row: seen.append(row["audio"]) or {"y": 1}))
    (sound, *_) = seen
    assert set(sound) == {"array", "path", "sampling_rate"}
    assert len(sound) == 3
    assert (sound["sampling_rate"], sound["path"]) == (16000, None)
    assert (sound["array"].shape, sound["array"].dtype) == ((8000,), np.float32)
    assert repr(sound) == "Sound(path='None')"
    with pytest.raises(KeyError):
        sound["samples"]
    with pytest.raises(AttributeError, match="has the keys 'path', 'array', 'sampling_rate'"):
        sound.samples  # noqa: B018
    if not datasets.config.TORCHCODEC_AVAILABLE:
        with pytest.raises(ImportError, match=r"pip install torchcodec; sound\['array'\]"):
            sound.get_all_samples()


def test_samples_that_a_function_returns_are_kept_exactly():
    def halved(row):
        return {"audio": {"array": row["audio"]["array"][::2] / 2, "sampling_rate": 4000}}

    stream = sounds()
    batch = HFStreamingSource.from_dataset(stream.map(halved, features=stream.features)).get_batch(
        4
    )
    for found, sound in zip(
        batch["audio"], HFStreamingSource.from_dataset(stream).get_batch(4)["audio"], strict=True
    ):
        np.testing.assert_array_equal(found, sound[::2] / 2)


def test_sounds_under_another_name_and_in_lists():
    stream = sounds().map(
        lambda row: {"b": row["audio"], "c": [row["audio"]] * 2}, remove_columns="audio"
    )
    source = HFStreamingSource.from_dataset(stream)
    assert source.features["b"] == datasets.Audio()
    assert source.features["c"] == datasets.List(datasets.Audio())
    batch = source.get_batch(2)
    assert [len(sound) for sound in batch["b"]] == [2000, 3000]
    assert [[len(sound) for sound in both] for both in batch["c"]] == [[2000] * 2, [3000] * 2]


def test_without_soundfile_a_mapped_row_names_the_extra(monkeypatch):
    stream = sounds().map(lambda row: {"n": len(row["audio"]["array"])})
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for on_bad_rows in ("raise", "skip"):
        with pytest.raises(ImportError, match=r"pip install datarax\[audio\]"):
            HFStreamingSource.from_dataset(stream, on_bad_rows=on_bad_rows)
