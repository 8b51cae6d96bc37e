"""`datarax.transforms`: crops of images of any mode and size, tokens, windows of sound, chains."""

import io
import pickle

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax.transforms import (
    audio_window,
    center_crop,
    chain,
    random_resized_crop,
    resize,
    tokenize,
)
from datarax.transforms.pictures import cut


def photo(width=500, height=375, mode="RGB"):
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 127 + 128
    return PIL.Image.fromarray(waves.astype(np.uint8)).convert(mode)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    return PIL.Image.open(io.BytesIO(file.getvalue()))


def rng(seed=0):
    return np.random.default_rng(seed)


@given(
    st.integers(1, 700), st.integers(1, 700), st.integers(1, 60), st.integers(1, 60), st.integers(0)
)
@settings(max_examples=60, deadline=None)
def test_an_image_of_any_size_becomes_one_of_the_wanted_size(width, height, rows, columns, seed):
    image = PIL.Image.new("RGB", (width, height), (10, 20, 30))
    for transform in (resize((rows, columns)), center_crop((rows, columns))):
        assert (
            transform({"image": image})["image"] == np.full((rows, columns, 3), (10, 20, 30))
        ).all()
    made = random_resized_crop((rows, columns), flip=0.5)({"image": image}, rng(seed))["image"]
    assert (made.shape, made.dtype) == ((rows, columns, 3), np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_an_image_of_any_mode_becomes_rgb_or_grey(mode):
    grey = np.asarray(photo(64, 48, "L")).astype(np.uint16)
    stored = PIL.Image.fromarray(grey << 8) if mode.startswith("I") else photo(64, 48, mode)
    stored = stored.convert("I") if mode == "I" else stored
    assert stored.mode == mode
    colours = resize((48, 64))({"image": stored})["image"].astype(int)
    assert colours.shape == (48, 64, 3)
    shades = resize((48, 64), mode="L")({"image": stored})["image"].astype(int)
    assert shades.shape == (48, 64)
    if mode not in ("1", "P"):  # few colours
        assert np.abs(shades - grey).mean() < 3


@pytest.mark.parametrize("side", [1800, 900, 500, 250, 150])
def test_a_jpeg_decoded_at_a_smaller_scale_is_the_image_decoded_whole(side):
    file, whole = jpeg(photo(1801, 1203)), jpeg(photo(1801, 1203))
    whole.load()
    box = 0, 2, min(side, 1801), min(2 + side, 1203)
    small, large = (cut(image, box, (100, 100), "RGB").astype(int) for image in (file, whole))
    assert np.abs(small - large).mean() < 0.5
    assert np.abs(small - large).max() <= 4
    assert file.width == {1800: 226, 900: 226, 500: 451, 250: 901, 150: 1801}[side]


def test_a_crop_is_where_and_as_large_as_it_says():
    x, y = np.meshgrid(np.arange(256), np.arange(128))
    image = PIL.Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    crop = random_resized_crop(32, scale=(0.25, 0.5), ratio=(0.5, 2.0))
    edges = []
    for seed in range(100):
        made = crop({"image": image}, rng(seed))["image"].astype(float)
        width = (made[0, -1, 0] - made[0, 0, 0]) * 32 / 31
        height = (made[-1, 0, 1] - made[0, 0, 1]) * 32 / 31
        assert 0.25 * 0.85 < width * height / 256 / 128 < 0.5 * 1.15
        assert 0.5 * 0.9 < width / height < 2 * 1.1
        edges.append(made[0, 0, :2])
    assert np.ptp(edges, axis=0).min() > 30


def test_half_of_the_crops_are_flipped():
    image = PIL.Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (64, 1)))
    crop = random_resized_crop(16, flip=0.5, mode="L")
    made = [crop({"image": image}, rng(seed))["image"] for seed in range(200)]
    flipped = sum(int(one[0, 0]) > int(one[0, -1]) for one in made)
    assert 70 < flipped < 130


def test_an_image_of_extreme_proportions_is_cut_in_its_middle():
    image = PIL.Image.new("RGB", (1000, 10))
    image.paste((255, 255, 255), (490, 0, 510, 10))
    made = random_resized_crop(8, scale=(1.0, 1.0))({"image": image}, rng())["image"]
    assert made[4, 4, 0] == 255


def test_a_center_crop_keeps_its_fraction():
    x = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    made = center_crop(50, fraction=0.5, mode="L")({"image": PIL.Image.fromarray(x)})["image"]
    assert made[0].tolist() == list(range(75, 125))


def test_transforms_can_be_pickled():
    crop, record = random_resized_crop(8, flip=0.5), {"image": photo(30, 20)}
    again = pickle.loads(pickle.dumps(chain(crop)))
    assert (crop(record, rng())["image"] == again(record, rng())["image"]).all()


def test_texts_become_tokens_of_one_length():
    made = tokenize(lambda text: [len(word) for word in text.split()], 4)(
        {"text": "to be or not to be", "label": 1}
    )
    assert {name: np.asarray(value).tolist() for name, value in made.items()} == {
        "label": 1,
        "input_ids": [2, 2, 2, 3],
        "attention_mask": [1, 1, 1, 1],
    }


def test_a_fast_tokenizer_is_copied_with_its_padding():
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "to": 1, "be": 2, "[PAD]": 7}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.enable_padding(pad_id=7, pad_token="[PAD]", length=20)
    made = pickle.loads(pickle.dumps(tokenize(words, 4)))({"text": "to be so"})
    assert made["input_ids"].tolist() == [1, 2, 0, 7]
    assert made["attention_mask"].tolist() == [1, 1, 1, 0]
    assert (words.truncation, len(words.encode("to").ids)) == (None, 20)


def test_a_window_of_sound_is_cut_padded_and_resampled():
    tone = np.sin(2 * np.pi * 100 * np.arange(8000) / 8000).astype(np.float32)
    record = {"audio": {"array": tone, "sampling_rate": 8000}, "label": 0}
    assert (audio_window(0.5, 8000)(record)["audio"] == tone[:4000]).all()
    padded = audio_window(1.5, 8000)(record)["audio"]
    assert (padded == np.r_[tone, np.zeros(4000)]).all()
    slower = audio_window(1.0, 4000)(record)["audio"]
    assert np.abs(slower - tone[::2])[100:-100].max() < 0.01
    starts = audio_window(0.5, 8000, random=True)
    drawn = [starts(record, rng(seed))["audio"] for seed in range(5)]
    assert len({part.tobytes() for part in drawn}) == 5
    assert all(any((part == tone[i : i + 4000]).all() for i in range(4001)) for part in drawn)


def test_a_chain_gives_its_generator_to_those_that_take_one():
    def noise(record, rng):
        return record | {"x": record["x"] + rng.random()}

    def double(record):
        return record | {"x": 2 * record["x"]}

    both = rng().random(2)
    made = chain(noise, double, noise)({"x": 1.0}, rng())
    assert made["x"] == 2 * (1 + both[0]) + both[1]
    assert chain(double, double)({"x": 1}) == {"x": 4}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: resize(0), ValueError, "size=0: expected an integer from 1"),
        (lambda: resize((1, 2, 3)), ValueError, "(height, width)"),
        (lambda: resize(8, mode="HSV"), ValueError, "'RGB' or 'L'"),
        (lambda: resize(8, resizer="opencv"), ValueError, "'pillow' or 'cykooz'"),
        (lambda: center_crop(8, fraction=0), ValueError, "fraction=0"),
        (lambda: random_resized_crop(8, scale=(0, 1)), ValueError, "scale=(0, 1)"),
        (lambda: random_resized_crop(8, ratio=(2, 1)), ValueError, "ratio=(2, 1)"),
        (lambda: random_resized_crop(8, flip=2), ValueError, "flip=2"),
        (lambda: tokenize("bert", 8), TypeError, "tokenizer='bert'"),
        (lambda: tokenize(len, 0), ValueError, "length=0"),
        (lambda: audio_window(0, 8000), ValueError, "seconds=0"),
        (lambda: chain(), ValueError, "at least one transform"),
        (lambda: chain(3), TypeError, "transform=3"),
        (lambda: resize(8)({"img": photo()}), ValueError, "Did you mean 'img'? It has 'img'"),
        (lambda: resize(8)({"image": "x"}), TypeError, "column 'image' holds str"),
        (lambda: tokenize(len, 8)({"text": None}), TypeError, "column 'text' holds None"),
        (lambda: audio_window(1, 8)({"audio": b""}), TypeError, "datasets.Audio()"),
    ],
)
def test_bad_input_is_explained(make, error, words):
    with pytest.raises(error) as raised:
        make()
    assert words in str(raised.value)
