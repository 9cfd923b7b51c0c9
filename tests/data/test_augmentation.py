"""Random changes of training images, against independent computations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.core.types import Batch
from mhd_jax.data.augmentation import Augmentation, parse
from mhd_jax.data.batching import BatchSpec, prepared
from mhd_jax.data.preprocessing import PLAIN, Preparation
from tests.builders import thinned

KEYS = jax.random.split(jax.random.key(0), 400)
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
SCALED = IMAGE / np.float32(255)


def changed(augmentation, image=IMAGE, preparation=PLAIN):
    found = jax.jit(jax.vmap(lambda key: augmentation(key, jnp.asarray(image), preparation)))(KEYS)
    return np.asarray(found)


def test_nothing_to_do_leaves_the_image():
    np.testing.assert_allclose(changed(Augmentation()), np.stack([SCALED] * len(KEYS)), rtol=1e-6)


def test_half_of_the_images_are_mirrored():
    found = changed(Augmentation(flip=True))
    mirrored = np.array([np.allclose(image, SCALED[:, ::-1]) for image in found])
    assert all(np.allclose(image, SCALED) for image in found[~mirrored])
    assert abs(mirrored.mean() - 0.5) < 0.1  # 4 deviations


@pytest.mark.parametrize("side", [None, 5])
def test_crops_of_the_bordered_image_are_uniform(side):
    border = 2
    padded = np.pad(SCALED, ((border,) * 2, (border,) * 2, (0, 0)))
    height, width = (9, 7) if side is None else (side, side)
    found = changed(Augmentation(crop=border), preparation=Preparation(side))
    windows = {
        (top, left): padded[top : top + height, left : left + width]
        for top in range(padded.shape[0] - height + 1)
        for left in range(padded.shape[1] - width + 1)
    }
    places = [
        next(place for place, window in windows.items() if np.allclose(image, window))
        for image in found
    ]
    times = np.array([places.count(place) for place in windows])
    expected = len(KEYS) / len(windows)
    assert (times > 0).mean() > 0.9
    chi_squared = np.square(times - expected).sum() / expected
    assert chi_squared < len(windows) + 4 * np.sqrt(2 * len(windows))


def test_cutout_blanks_a_square_after_standardising():
    prepare = Preparation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    standard = (SCALED - np.array(prepare.mean)) / np.array(prepare.std)
    centres = set()
    for image in changed(Augmentation(cutout=3), preparation=prepare):
        blank = (image == 0).all(axis=2)
        rows, columns = np.flatnonzero(blank.any(axis=1)), np.flatnonzero(blank.any(axis=0))
        assert blank.sum() == len(rows) * len(columns) and 2 <= len(rows) <= 3
        assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
        np.testing.assert_allclose(image[~blank], standard[~blank], rtol=1e-5, atol=1e-6)
        centres.add((rows[0], rows[-1], columns[0], columns[-1]))
    assert len(centres) > 50  # of 63, the corners' in part beyond the border


def test_a_resized_crop_of_everything_is_the_image():
    found = changed(Augmentation(resized_crop=1.0))
    np.testing.assert_allclose(found, np.stack([SCALED] * len(KEYS)), atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "least"), [(20, 15, 0.2), (20, 20, 0.8), (12, 24, 0.9)]
)
def test_resized_crops_are_linear_pieces_of_the_image(height, width, least):
    """On an image whose pixels are their own coordinates a crop reads off where it was taken."""
    size = 24
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    image = np.stack([rows / height, columns / width], axis=2).astype(np.float32)
    found = changed(Augmentation(resized_crop=least), image, Preparation(size))
    inner = found[:, 2:-2, 2:-2]  # the border's pixels lack neighbours
    down, right = np.diff(inner[..., 0], axis=1), np.diff(inner[..., 1], axis=2)
    steps = np.stack([down[:, :, 0], right[:, 0]])
    assert np.abs(steps - steps.mean(axis=2, keepdims=True)).max() < 2e-3
    sides = steps.mean(axis=2) * size  # of the crops, as shares of the image's
    assert sides.min() > 0.2 and sides.max() <= 1.01
    area = sides.prod(axis=0)
    assert least - 0.03 < area.min() < least + 0.1 and 0.7 < area.max() <= 1.01
    aspect = (sides[1] * width) / (sides[0] * height)
    usual = (aspect > 3 / 4 - 0.02) & (aspect < 4 / 3 + 0.03)
    assert (usual | (sides.max(axis=0) > 0.97)).all()  # unless only others fit into the image


def test_preparation_crops_the_middle_and_standardises():
    data = mhd.data.arrays(np.stack([IMAGE, 255 - IMAGE] * 4), np.arange(8) % 2, test_fraction=0.5)
    shown = data.prepared(crop_size=5, standardize=True)
    assert shown.input_shape == (5, 5, 3) and data.input_shape == (9, 7, 3)
    scaled = data.inputs / 255
    mean, std = scaled.mean(axis=(0, 1, 2)), scaled.std(axis=(0, 1, 2))
    expected = ((scaled - mean) / std)[:, 2:7, 1:6]
    np.testing.assert_allclose(
        shown.preparation(jnp.asarray(data.inputs)), expected, rtol=1e-4, atol=1e-5
    )


def batches(spec, step=3, ids=(0, 1, 2)):
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.integers(0, 256, (3, 4, 8, 8, 1)), jnp.uint8)
    public = jnp.asarray(rng.integers(0, 256, (5, 8, 8, 1)), jnp.uint8)
    if spec.independent_public:
        public = jnp.stack([public] * 3)
    indices = jnp.zeros(public.shape[:-3], jnp.int32)
    stored = Batch(images, jnp.zeros((3, 4), int), jnp.ones((3, 4)), public, indices)
    return stored, prepared(stored, jax.random.key(7), jnp.asarray(ids), jnp.int32(step), spec)


@pytest.mark.parametrize("independent", thinned([False, True], 2))
def test_every_client_sample_and_step_is_changed_in_its_own_way(independent):
    spec = BatchSpec(4, 5, independent, augmentation=Augmentation(crop=3, flip=True))
    stored, one = batches(spec)
    _, later = batches(spec, step=4)
    assert not np.allclose(one.inputs, later.inputs)
    np.testing.assert_allclose(one.public_inputs, stored.public_inputs / 255, rtol=1e-6)
    _, moved = batches(spec, ids=(2, 1, 0))
    np.testing.assert_array_equal(one.inputs[1], moved.inputs[1])  # a client's own draws
    assert not np.allclose(one.inputs[0], moved.inputs[0])
    both = dataclasses.replace(spec, augment_public=True)
    _, augmented = batches(both)
    assert not np.allclose(augmented.public_inputs, one.public_inputs)
    np.testing.assert_array_equal(augmented.inputs, one.inputs)
    if independent:
        assert not np.allclose(augmented.public_inputs[0], augmented.public_inputs[1])


@pytest.mark.slow
def test_a_run_with_augmentation_learns_from_other_images():
    clients = mhd.make_clients("digits", 2, partition="iid")
    settings = {"steps": 3, "eval_every": 3, "progress": False, "num_devices": 1}
    plain = mhd.simulate("complete", clients, "isolated", **settings)
    shifted = mhd.simulate("complete", clients, "isolated", augmentation="crop:2", **settings)
    losses = [result.history[-1]["train"]["loss"] for result in (plain, shifted)]
    assert losses[0] != losses[1]
    assert shifted.summary["settings"]["augmentation"]["crop"] == 2


def test_what_the_command_line_writes():
    assert parse("") is None
    assert parse("flip, crop:4") == Augmentation(flip=True, crop=4)
    assert parse("resized_crop:0.25,cutout:8") == Augmentation(resized_crop=0.25, cutout=8)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("flap", "unknown augmentation 'flap'; choose among"),
        ("flip:2", "flip takes no number"),
        ("crop", "crop needs a number, like crop:4"),
        ("crop:four", "cannot read 'crop:four'"),
        ("crop:-1", "crop must be at least 0"),
        ("resized_crop:2", r"resized_crop must be in \(0, 1\]"),
        ("crop:2,resized_crop:0.5", "leave one of them out"),
        ("cutout:-3", "cutout must be at least 0"),
    ],
)
def test_unreadable_augmentations_are_refused(text, why):
    with pytest.raises(mhd.ConfigError, match=why):
        parse(text)


def test_augmentations_that_do_not_fit_are_refused():
    flat = mhd.make_clients((np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 2), 2)
    digits = mhd.make_clients("digits", 2)
    for clients, algorithm, augmentation, public, why in (
        (flat, "isolated", "flip", False, "is for images"),
        (digits, "mhd", "", True, "needs an augmentation"),
        (digits, "isolated", "flip", True, "is not used by"),
        (digits, "distributed_distillation", "flip", True, "remembers what was said"),
    ):
        options = {"augmentation": augmentation, "augment_public": public, "steps": 1}
        with pytest.raises(mhd.ConfigError, match=why):
            mhd.simulate("complete", clients, algorithm, **options)
    with pytest.raises(mhd.ConfigError, match="are for images"):
        flat.data.prepared(crop_size=2, standardize=True)
    with pytest.raises(mhd.ConfigError, match="crop_size must be in 1 … 8"):
        digits.data.prepared(crop_size=9)


def test_a_channel_of_one_value_keeps_its_scale():
    """As an opaque alpha channel: what a crop's border brings is then no giant."""
    alpha = np.full((*IMAGE.shape[:2], 1), 255, np.uint8)
    both = [np.concatenate([image, alpha], axis=-1) for image in (IMAGE, 255 - IMAGE)]
    images = np.stack(both * 4)
    preparation = mhd.data.arrays(images, np.arange(8) % 2).prepared(standardize=True).preparation
    assert preparation.std[3] == 1 and preparation.mean[3] == pytest.approx(1)
    black = np.asarray(preparation(jnp.zeros_like(jnp.asarray(images))))
    np.testing.assert_allclose(black[..., 3], -1, rtol=1e-5)
