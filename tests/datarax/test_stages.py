"""Ready stages, alone and in a pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax import MemorySource, MemorySourceConfig, Pipeline
from datarax.stages import (
    ColorJitter,
    CutMix,
    Cutout,
    Map,
    MixUp,
    Normalize,
    OneHot,
    RandomCrop,
    RandomFlip,
    RandomTranslate,
    Scale,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
KEYS = jax.random.split(jax.random.key(0), 6)


def test_scale_brings_the_dtypes_range_to_one():
    got = jax.jit(Scale("image"))({"image": jnp.asarray(IMAGES)})["image"]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, IMAGES / 255, rtol=1e-6)
    wide = Scale("image")({"image": jnp.array([65535], jnp.uint16)})
    assert wide["image"].tolist() == [1.0]


def test_normalize_works_on_channels():
    stage = Normalize("image", mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    got = jax.jit(stage)({"image": jnp.asarray(IMAGES)})["image"]
    np.testing.assert_allclose(got, (IMAGES - [1.0, 2.0, 3.0]) / [1.0, 2.0, 4.0], rtol=1e-6)


def test_one_hot():
    got = jax.jit(OneHot("label", 4))({"label": jnp.array([0, 3])})["label"]
    np.testing.assert_array_equal(got, np.eye(4)[[0, 3]])


def test_map_touches_only_its_column():
    batch = {"x": jnp.arange(3.0), "y": jnp.arange(3)}
    got = jax.jit(Map("x", jnp.negative))(batch)
    assert got["x"].tolist() == [-0.0, -1.0, -2.0]
    assert got["y"].tolist() == [0, 1, 2]


def test_flips_are_whole_images_about_half_of_them():
    keys = jax.random.split(jax.random.key(1), 400)
    images = jnp.tile(jnp.arange(4.0).reshape(1, 2, 2), (400, 1, 1))
    got = np.asarray(jax.jit(RandomFlip("image"))({"image": images}, key=keys)["image"])
    flipped = (got == [[1, 0], [3, 2]]).all(axis=(1, 2))
    assert ((got == [[0, 1], [2, 3]]).all(axis=(1, 2)) | flipped).all()
    assert 150 < flipped.sum() < 250


def test_crops_are_windows_of_the_padded_image():
    got = np.asarray(
        jax.jit(RandomCrop("image", 2))({"image": jnp.asarray(IMAGES)}, key=KEYS)["image"]
    )
    assert got.shape == IMAGES.shape
    for image, crop in zip(IMAGES, got, strict=True):
        padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
        windows = [padded[i : i + 5, j : j + 4] for i in range(5) for j in range(5)]
        assert any((crop == window).all() for window in windows)


def test_equal_stages_share_one_compiled_step():
    source = MemorySource(MemorySourceConfig(), {"image": IMAGES})
    stages = [[RandomFlip("image"), Scale("image")] for _ in range(2)]
    first, second = (Pipeline(source=source, stages=s, batch_size=2) for s in stages)
    np.testing.assert_array_equal(first.step()["image"].shape, (2, 5, 4, 3))
    assert first.stages._functions == second.stages._functions


@pytest.mark.parametrize(
    ("stage", "column", "arguments", "words"),
    [
        (Scale("x"), np.ones(2, np.float32), {}, "float32: Scale divides integers"),
        (RandomFlip("x"), np.ones((2, 4)), {"key": KEYS[:2]}, r"\(batch, height, width\)"),
        (RandomCrop("x", 1), np.ones((2, 4, 4)), {"key": KEYS[0]}, r"split\(key, 2\)"),
        (Map("y", jnp.negative), np.ones(2), {}, "'y': the batch has 'x'"),
    ],
)
def test_a_stage_says_what_it_expects(stage, column, arguments, words):
    with pytest.raises((TypeError, ValueError, KeyError), match=words):
        stage({"x": jnp.asarray(column)}, **arguments)


def test_stages_may_be_vectorised():
    crops = jax.vmap(lambda images, keys: RandomCrop("x", 1)({"x": images}, key=keys)["x"])
    images = jnp.asarray(IMAGES[..., 0])
    np.testing.assert_array_equal(
        crops(images[None], KEYS[None])[0], RandomCrop("x", 1)({"x": images}, key=KEYS)["x"]
    )


def test_translated_images_are_windows_of_the_image_with_its_edge():
    got = RandomTranslate("image", 2)({"image": jnp.asarray(IMAGES)}, key=KEYS)["image"]
    for image, moved in zip(IMAGES, np.asarray(got), strict=True):
        padded = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="edge")
        windows = [padded[i : i + 5, j : j + 4] for i in range(5) for j in range(5)]
        assert any((moved == window).all() for window in windows)
    with pytest.raises(ValueError, match="fill='wrap': expected"):
        RandomTranslate("image", 2, fill="wrap")


def test_cutout_paints_one_box_and_leaves_the_rest():
    images = 1 + jnp.asarray(IMAGES) // 2
    got = np.asarray(Cutout("image", 2)({"image": images}, key=KEYS)["image"])
    for image, cut in zip(np.asarray(images), got, strict=True):
        rows, columns = np.nonzero((cut == 0).all(-1))
        box = np.zeros((5, 4), bool)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert 1 <= box.sum() <= 4
        np.testing.assert_array_equal(cut, np.where(box[..., None], 0, image))


def test_colour_jitter_keeps_dtype_and_range_and_is_none_at_zero():
    batch = {"image": jnp.asarray(IMAGES)}
    same = ColorJitter("image")(batch, key=KEYS)["image"]
    np.testing.assert_array_equal(same, IMAGES)
    got = np.asarray(ColorJitter("image", brightness=0.5)(batch, key=KEYS)["image"])
    assert got.dtype == np.uint8
    for image, changed in zip(IMAGES, got, strict=True):
        inside = (changed < 255) & (image > 60)
        ratio = changed[inside] / image[inside]
        assert 0.49 < ratio.mean() < 1.51
        assert np.ptp(ratio) < 0.02  # one factor an image
    grey = ColorJitter("image", saturation=1.0)(batch, key=KEYS)["image"]
    assert np.abs(np.asarray(grey, np.int32) - IMAGES).max() > 10
    with pytest.raises(ValueError, match="saturation needs"):
        ColorJitter("image", saturation=0.5)({"image": batch["image"][..., 0]}, key=KEYS)


@pytest.mark.parametrize("stage", [MixUp("image", "label", 3), CutMix("image", "label", 3)])
def test_labels_are_mixed_as_the_images_are(stage):
    white = np.arange(6) % 2
    images = jnp.asarray(np.broadcast_to(white[:, None, None], (6, 8, 8)).astype(np.float32))
    got = stage({"image": images, "label": jnp.asarray(white)}, key=KEYS)
    share = np.asarray(got["image"]).mean(axis=(1, 2))  # of class 1
    np.testing.assert_allclose(got["label"][:, 1], share, atol=1e-6)
    np.testing.assert_allclose(got["label"].sum(1), 1, atol=1e-6)
    assert len(np.unique(share.round(4))) > 2


def test_what_is_drawn_depends_on_the_position_alone():
    labels = np.arange(6) % 3
    source = MemorySource(MemorySourceConfig(), {"image": IMAGES, "label": labels})
    stages = [RandomTranslate("image", 1), Cutout("image", 2), ColorJitter("image", 0.3, 0.3, 0.3)]

    def images(batch_size):
        given = {"stages": stages, "batch_size": batch_size, "rngs": nnx.Rngs(0)}
        whole = Pipeline(source=source.clone(), **given)
        return np.concatenate([whole.step()["image"] for _ in range(6 // batch_size)])

    np.testing.assert_array_equal(images(6), images(2))
