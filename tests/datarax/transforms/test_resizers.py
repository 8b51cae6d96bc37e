"""Images resized by cykooz.resizer: as Pillow resizes them, to within 1 of 255."""

import sys

import datasets
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax import HFIndexedSource
from datarax.transforms import center_crop, random_resized_crop, resize
from datarax.transforms.pictures import cut

SIDES = st.integers(1, 400)


@pytest.fixture(scope="module")
def cykooz():
    return pytest.importorskip("cykooz_resizer")


def noise(width, height, seed, values=256):
    pixels = np.random.default_rng(seed).integers(0, values, (height, width, 3))
    return PIL.Image.fromarray((pixels * (255 // (values - 1))).astype(np.uint8))


def differences(one, other):
    return np.abs(one.astype(int) - other)


@given(SIDES, SIDES, SIDES, SIDES, st.data())
@settings(max_examples=80, deadline=None)
def test_a_part_is_resized_as_pillow_does(cykooz, width, height, rows, columns, data):
    share = st.floats(0, 1)
    x, y, w, h = (data.draw(share) for _ in range(4))
    w, h = 1 + w * (width - 1), 1 + h * (height - 1)
    left, top = x * (width - w), y * (height - h)
    box = left, top, min(left + w, width), min(top + h, height)
    mode, seed = data.draw(st.sampled_from(["RGB", "L"])), data.draw(st.integers(0, 2**32 - 1))
    image = noise(width, height, seed, data.draw(st.sampled_from([2, 256]))).convert(mode)
    made = cut(image, box, (rows, columns), mode, resizer="cykooz")
    expected = np.asarray(image.resize((columns, rows), PIL.Image.Resampling.BILINEAR, box=box))
    assert (made.shape, made.dtype) == (expected.shape, np.uint8)
    assert differences(made, expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_transforms_differ_by_one_between_the_libraries(cykooz, mode):
    image = noise(320, 240, 0)
    for kind in (resize, center_crop):
        by_pillow, by_cykooz = (
            kind((96, 128), mode=mode, resizer=resizer)({"image": image})["image"]
            for resizer in ("pillow", "cykooz")
        )
        assert differences(by_pillow, by_cykooz).max() == 1  # 0 would be Pillow twice
    for seed in range(20):
        by_pillow, by_cykooz = (
            random_resized_crop(96, flip=0.5, mode=mode, resizer=resizer)(
                {"image": image}, np.random.default_rng(seed)
            )["image"]
            for resizer in ("pillow", "cykooz")
        )
        assert differences(by_pillow, by_cykooz).max() <= 1


def test_all_numbers_of_threads_give_the_same_pixels(cykooz):
    images = [noise(60 + row % 7, 50 + row % 5, row) for row in range(48)]
    features = datasets.Features({"image": datasets.Image()})
    ds = datasets.Dataset.from_dict({"image": images}, features=features)
    crop = random_resized_crop(32, flip=0.5, resizer="cykooz")
    made = [
        HFIndexedSource.from_dataset(ds, transform=crop, num_threads=threads)[:]["image"]
        for threads in (1, 2, 16)
    ]
    assert all((pixels == made[0]).all() for pixels in made)


def test_a_missing_library_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    with pytest.raises(ImportError, match=r"pip install datarax\[cykooz\]"):
        random_resized_crop(8, resizer="cykooz")


def test_a_pillow_whose_memory_it_does_not_know_is_refused(monkeypatch):
    monkeypatch.setattr(PIL, "__version__", "99.0.0")
    with pytest.raises(ImportError, match=r"up to version 13, and this is 99.0.0"):
        resize(8, resizer="cykooz")
