"""Image columns: the pixels that Pillow sees, damaged files, and the cache on disk."""

import io
import logging
import os
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Features, Image, List, Value

from datarax.columns.host import HostColumn
from datarax.columns.load import load_columns

_RNG = np.random.default_rng(0)


def _noise(*shape, dtype=np.uint8):
    return _RNG.integers(0, 256, shape).astype(dtype)


def _file(pixels, mode=None, kind="PNG", **options):
    """Encodes an array, or an image, as a file in memory."""
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    if mode and mode != image.mode:
        image = PIL.Image.frombytes(mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _dataset(files, feature=None, **columns):
    values = [None if file is None else {"bytes": file, "path": None} for file in files]
    others = {name: Value("int64") for name in columns}
    features = Features({"image": feature or Image(), **others})
    return datasets.Dataset.from_dict({"image": values, **columns}, features=features)


def _load(files, feature=None, **options):
    return load_columns(_dataset(files, feature), **options).data["image"]


# --- every mode -----------------------------------------------------------------------------------

_MODES = {
    "L": ((6, 5), "uint8", lambda: _file(_noise(6, 5))),
    "LA": ((6, 5, 2), "uint8", lambda: _file(_noise(6, 5, 2))),
    "RGB": ((6, 5, 3), "uint8", lambda: _file(_noise(6, 5, 3))),
    "RGBA": ((6, 5, 4), "uint8", lambda: _file(_noise(6, 5, 4))),
    "L in JPEG": ((6, 5), "uint8", lambda: _file(_noise(6, 5), kind="JPEG")),
    "RGB in JPEG": ((6, 5, 3), "uint8", lambda: _file(_noise(6, 5, 3), kind="JPEG")),
    "RGB in WebP": ((6, 5, 3), "uint8", lambda: _file(_noise(6, 5, 3), kind="WEBP")),
    "CMYK": ((6, 5, 4), "uint8", lambda: _file(_noise(6, 5, 4), "CMYK", "JPEG")),
    "YCbCr": ((6, 5, 3), "uint8", lambda: _file(_noise(6, 5, 3), "YCbCr", "TIFF")),
    "I;16": ((6, 5), "uint16", lambda: _file(_noise(6, 5, dtype=np.uint16) * 257)),
    "I;16B": ((6, 5), "uint16", lambda: _file(_noise(6, 5, dtype=">u2"), "I;16B", "TIFF")),
    "I": ((6, 5), "int32", lambda: _file(_noise(6, 5, dtype=np.int32) - 99, kind="TIFF")),
    "F": ((6, 5), "float32", lambda: _file(_noise(6, 5, dtype=np.float32) / 7, kind="TIFF")),
}


@pytest.mark.parametrize("name", _MODES)
def test_pixels_are_those_of_the_image_that_datasets_yields(name):
    shape, dtype, make = _MODES[name]
    ds = _dataset([make() for _ in range(7)])
    column = load_columns(ds).data["image"]
    assert column.shape == (7, *shape)
    assert column.dtype == dtype
    for pixels, row in zip(column, ds, strict=True):
        assert row["image"].mode == name.split()[0]
        np.testing.assert_array_equal(pixels, np.asarray(row["image"]))


@pytest.mark.parametrize(("transparent", "mode"), [({}, "RGB"), ({"transparency": 0}, "RGBA")])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_become_their_colours(kind, transparent, mode):
    files = [
        _file(PIL.Image.fromarray(_noise(6, 5, 3)).quantize(8), None, kind, **transparent)
        for _ in "ab"
    ]
    ds = _dataset(files)
    column = load_columns(ds).data["image"]
    assert ds[0]["image"].mode == "P"
    for pixels, row in zip(column, ds, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(row["image"].convert(mode)))


def test_single_bits_become_black_and_white():
    ds = _dataset([_file(PIL.Image.fromarray(_noise(6, 5) > 99)) for _ in range(3)])
    column = load_columns(ds).data["image"]
    assert column.dtype == np.uint8
    for pixels, row in zip(column, ds, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(row["image"]) * np.uint8(255))


def test_the_mode_of_the_feature_counts():
    ds = _dataset([_file(_noise(6, 5, 3)), _file(_noise(6, 5, 4))], Image(mode="L"))
    column = load_columns(ds).data["image"]
    assert column.shape == (2, 6, 5)
    np.testing.assert_array_equal(column[1], np.asarray(ds[1]["image"]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_turns_an_image_as_datasets_does(kind):
    turned = PIL.Image.Exif()
    turned[PIL.ExifTags.Base.Orientation] = 6
    ds = _dataset([_file(_noise(6, 5, 3), None, kind, exif=turned), _file(_noise(5, 6, 3))])
    column = load_columns(ds).data["image"]
    assert column.shape == (2, 5, 6, 3)
    for pixels, row in zip(column, ds, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(row["image"]))


@pytest.mark.parametrize(
    ("modes", "common"),
    [
        ("L RGB", "RGB"),
        ("RGB L", "RGB"),
        ("L LA RGB L RGBA", "RGBA"),
        ("LA L", "LA"),
        ("RGB LA", "RGBA"),
    ],
)
def test_mixed_modes_become_the_smallest_that_loses_nothing(modes, common):
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}
    ds = _dataset([_file(_noise(6, 5, *channels[mode])) for mode in modes.split()])
    column = load_columns(ds).data["image"]
    for pixels, row in zip(column, ds, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(row["image"].convert(common)))


# --- what is no array -----------------------------------------------------------------------------


def test_images_of_many_sizes_stay_encoded_until_asked_for():
    ds = _dataset([_file(_noise(6, 5)), _file(_noise(6, 5)), _file(_noise(7, 5, 3)), b"no image"])
    column = load_columns(ds).data["image"]
    assert isinstance(column, HostColumn)
    assert column.first_bad == 2
    words = r"row 2 is 5x7 pixels where row 0 is 5x6 pixels.*row\['image'\].convert\('RGB'\).resize"
    with pytest.raises(TypeError, match=words):
        raise column.error()
    for pixels, row in zip(column[:3], ds.select(range(3)), strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(row["image"]))
    with pytest.raises(ValueError, match="column 'image', row 3: the image cannot be decoded"):
        column[3]


def test_a_size_that_differs_late_is_found():
    files = [_file(_noise(6, 5))] * 2000 + [_file(_noise(5, 5))]
    assert _load(files).first_bad == 2000


def test_modes_without_a_common_one_and_none():
    mixed = _load([_file(_noise(6, 5)), _file(_noise(6, 5, dtype=np.uint16))])
    assert mixed.reason == "row 1 is of mode I;16 where row 0 is of mode L"
    gone = _load([_file(_noise(6, 5)), None])
    assert gone.reason == "row 1 is None"
    assert gone[1] is None


def test_images_in_lists_and_structs():
    files = [{"bytes": _file(_noise(4, 4)), "path": None} for _ in range(4)]
    features = Features({"list": List(Image()), "struct": {"image": Image()}})
    rows = {"list": [files[:2], files[2:]], "struct": [{"image": files[0]}, {"image": files[3]}]}
    ds = datasets.Dataset.from_dict(rows, features=features)
    data = load_columns(ds).data
    assert data["struct"]["image"].shape == (2, 4, 4)
    np.testing.assert_array_equal(data["list"][1][0], np.asarray(ds[1]["list"][0]))


def test_undecoded_images_are_what_datasets_gives():
    ds = _dataset([_file(_noise(4, 4))], Image(decode=False))
    assert load_columns(ds).data["image"][0] == ds[0]["image"]


# --- files, rows, threads -------------------------------------------------------------------------


def test_images_from_a_folder(tmp_path):
    pixels = _noise(5, 4, 4, 3)
    for i, image in enumerate(pixels):
        (tmp_path / f"{i}.png").write_bytes(_file(image))
    (tmp_path / "0.gif").write_bytes(_file(PIL.Image.fromarray(pixels[0]), kind="GIF"))
    ds = datasets.Dataset.from_dict({"image": [str(tmp_path / f"{i}.png") for i in range(5)]})
    ds = ds.cast_column("image", Image())
    np.testing.assert_array_equal(load_columns(ds).data["image"], pixels)
    gif = datasets.Dataset.from_dict({"image": [str(tmp_path / "0.gif")]}).cast_column(
        "image", Image()
    )
    assert load_columns(gif).data["image"].shape == (1, 4, 4, 3)
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match=r"row 3: the image cannot be decoded \(FileNotFoundError"):
        load_columns(ds)


def test_rows_and_selections():
    pixels = _noise(300, 4, 4)
    one = _dataset([_file(image) for image in pixels], number=list(range(300)))
    ds = datasets.concatenate_datasets(
        [one.select(range(100)), one.select(range(100, 300))]
    ).shuffle(seed=3)
    column = load_columns(ds).data["image"]
    np.testing.assert_array_equal(column, pixels[ds["number"][:]])
    some = load_columns(ds, rows=np.array([7, 250, 8])).data
    np.testing.assert_array_equal(some["image"], column[[7, 250, 8]])


def test_large_images_decode_on_many_threads_and_small_ones_on_one(monkeypatch):
    threads = set()

    def opened(*args, open=PIL.Image.open, **options):
        threads.add(threading.current_thread())
        return open(*args, **options)

    monkeypatch.setattr(PIL.Image, "open", opened)
    _load([_file(_noise(8, 8))] * 20, cache=False)
    assert threads == {threading.main_thread()}
    big = _noise(20, 256, 256)
    np.testing.assert_array_equal(_load([_file(image) for image in big], cache=False), big)
    assert len(threads) > 1


# --- damaged files --------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
def test_a_damaged_image_is_named_or_skipped(first):
    pixels = _noise(6, 8, 8, 3)
    files = [_file(image) for image in pixels]
    bad = [0, 4] if first else [2, 4]
    files[bad[0]], files[bad[1]] = files[0][:100], b"no image"
    ds = _dataset(files, label=list(range(6)))
    with pytest.raises(ValueError, match=f"column 'image', row {bad[0]}: .*on_bad_rows='skip'"):
        load_columns(ds)
    with pytest.raises(ValueError, match=f"row {bad[1]}: .*no image of a format"):
        load_columns(ds, rows=np.array([5, bad[1]]))
    columns = load_columns(ds, on_bad_rows="skip")
    kept = [row for row in range(6) if row not in bad]
    assert (columns.length, columns.skipped) == (4, 2)
    np.testing.assert_array_equal(columns.data["image"], pixels[kept])
    assert columns.data["label"].tolist() == kept


def test_damaged_images_of_many_sizes_are_skipped():
    ds = _dataset([_file(_noise(6, 5)), b"no image", _file(_noise(7, 5))], label=[0, 1, 2])
    columns = load_columns(ds, on_bad_rows="skip")
    assert columns.skipped == 1
    assert columns.data["label"].tolist() == [0, 2]
    assert [pixels.shape for pixels in columns.data["image"][:]] == [(6, 5), (7, 5)]


def test_no_whole_image():
    with pytest.raises(ValueError, match=r"column 'image', row 0: .*no image of a format"):
        _load([b"no image"] * 3, on_bad_rows="skip")


# --- the cache ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DATARAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture(scope="module")
def photos():
    pixels = np.random.default_rng(1).integers(0, 8, (40, 128, 128, 3)).astype(np.uint8) * 32
    return pixels, _dataset([_file(image, compress_level=9) for image in pixels])


def _seconds(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def test_a_second_load_reads(cache, photos):
    pixels, ds = photos
    first, slow = _seconds(lambda: load_columns(ds).data["image"])
    second, fast = min(
        (_seconds(lambda: load_columns(ds).data["image"]) for _ in range(3)), key=lambda run: run[1]
    )
    np.testing.assert_array_equal(first, pixels)
    np.testing.assert_array_equal(second, pixels)
    assert len(list(cache.iterdir())) == 1
    assert fast < slow / 2  # about a fifteenth; the machine may be busy
    second[0] = 0  # writing does not reach the file
    np.testing.assert_array_equal(load_columns(ds).data["image"], pixels)


def test_the_key_is_the_content(cache, photos):
    _, ds = photos
    load_columns(ds)
    load_columns(datasets.concatenate_datasets([ds.select(range(25)), ds.select(range(25, 40))]))
    assert len(list(cache.iterdir())) == 1
    for other in (
        ds.shuffle(seed=0),
        ds.select(range(30)),
        ds.cast_column("image", Image(mode="RGBA")),
    ):
        load_columns(other)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "garbage"])
def test_a_damaged_file_is_replaced(cache, photos, damage, caplog):
    pixels, ds = photos
    load_columns(ds)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "emptied": b"",
            "garbage": whole[:-9] + b"\xff" * 9,
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(load_columns(ds).data["image"], pixels)
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole


def test_damaged_images_are_remembered(cache, photos):
    pixels, ds = photos
    files = [row["bytes"] for row in ds.cast_column("image", Image(decode=False))["image"]]
    files[3] = files[3][:500]
    broken = _dataset(files)
    for _ in range(2):
        columns = load_columns(broken, on_bad_rows="skip")
        assert columns.skipped == 1
        np.testing.assert_array_equal(columns.data["image"], np.delete(pixels, 3, axis=0))
        with pytest.raises(ValueError, match="row 3"):
            load_columns(broken)


def test_the_longest_unused_goes_first(cache, photos, monkeypatch):
    pixels, ds = photos
    monkeypatch.setenv("DATARAX_CACHE_BYTES", str(int(2.5 * pixels.nbytes)))
    orders = [ds.shuffle(seed=seed) for seed in range(3)]
    for order in orders[:2]:
        load_columns(order)
    old, new = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime)
    os.utime(new, (1, 1))
    load_columns(orders[2])
    left = set(cache.iterdir())
    assert old in left
    assert new not in left
    assert sum(path.stat().st_size for path in left) <= 2.5 * pixels.nbytes
    monkeypatch.setenv("DATARAX_CACHE_BYTES", "1000")
    load_columns(ds.shuffle(seed=9))
    assert set(cache.iterdir()) == left


def test_the_cache_can_be_declined(cache, photos, monkeypatch):
    _, ds = photos
    load_columns(ds, cache=False)
    monkeypatch.setenv("DATARAX_CACHE", "0")
    load_columns(ds)
    monkeypatch.delenv("DATARAX_CACHE")
    load_columns(ds.select(range(4)))  # too small to be worth a file
    assert not cache.exists()


def test_a_directory_that_cannot_be_written_is_said_once(tmp_path, photos, monkeypatch, caplog):
    pixels, ds = photos
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DATARAX_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(load_columns(ds).data["image"], pixels)
    assert caplog.text.count("DATARAX_CACHE_DIR") == 1


def test_the_cache_lies_beside_that_of_datasets(photos, monkeypatch):
    monkeypatch.delenv("DATARAX_CACHE_DIR", raising=False)
    load_columns(photos[1])
    assert list((Path(datasets.config.HF_CACHE_HOME) / "datarax" / "images").iterdir())
