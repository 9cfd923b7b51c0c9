"""Data sets that tensorflow-datasets has prepared: read on real CIFAR-10, where it is at hand."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import mhd_jax as mhd
from mhd_jax.data import image_folders
from mhd_jax.data import tfds as prepared
from mhd_jax.data.lazy_images import LazyImages
from tests import made_images
from tests.builders import ROOT, assert_trees_equal

SHARED = ROOT.parent / "shared" / "data"
SMALL = pathlib.Path(os.environ.get("MHD_JAX_TEST_DATA", SHARED)) / "tfds_small"
needs_cifar10 = pytest.mark.skipif(
    not (SMALL / "cifar10").exists(), reason=f"no prepared CIFAR-10 in {SMALL}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mhd_jax" / "data"


@pytest.fixture
def copy(tmp_path):
    """A copy of the small CIFAR-10 that a test may damage."""
    root = tmp_path / "copy"
    shutil.copytree(SMALL, root)
    for path in root.rglob("*"):
        path.chmod(0o755)
    return root, next(root.glob("cifar10/*"))


@needs_cifar10
def test_what_is_read_is_what_the_records_hold(cache):
    import tensorflow_datasets as tfds

    data = mhd.data.load("cifar10", data_dir=SMALL)
    built = {"download": False, "builder_kwargs": {"file_format": "array_record"}}
    source = tfds.data_source("cifar10", data_dir=SMALL, split="train", **built)
    assert data.inputs.shape == (2000, 32, 32, 3) and data.inputs.dtype == np.uint8
    assert data.test_inputs.shape == (500, 32, 32, 3)
    assert data.name == "cifar10" and data.class_names[:2] == ("airplane", "automobile")
    for i in (0, 999, 1000, 1999):
        np.testing.assert_array_equal(data.inputs[i], source[i]["image"])
        assert data.labels[i] == source[i]["label"]
    assert len(list(cache.iterdir())) == 1


@needs_cifar10
def test_the_cache_serves_the_same_and_notices_other_splits_and_files(cache, copy, monkeypatch):
    root, folder = copy
    first = mhd.data.load("cifar10", data_dir=root)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "Records", None)  # it would have to read
        again = mhd.data.load("cifar10", data_dir=root)
    for name in ("inputs", "labels", "test_inputs", "test_labels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert again.class_names == first.class_names
    part = mhd.data.load("cifar10", data_dir=root, train_split="train[:10%]", test_split="train")
    np.testing.assert_array_equal(part.inputs, first.inputs[:200])
    np.testing.assert_array_equal(part.test_inputs, first.inputs)
    os.utime(folder / "dataset_info.json", (1, 1))
    monkeypatch.setattr(prepared, "Records", None)
    with pytest.raises(TypeError):
        mhd.data.load("cifar10", data_dir=root)


@needs_cifar10
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_split": "learn"}, r"split learn: Unknown split 'learn'. Should be one of"),
        ({"test_split": "test[900%:]"}, r"split test\[900%:\]"),
        ({"test_fraction": 0.1}, "test_fraction cannot go with a prepared data set, which takes"),
    ],
)
def test_what_is_not_there_is_named(options, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.load("cifar10", data_dir=SMALL, **options)


@needs_cifar10
def test_damage_is_named(copy, cache):
    root, folder = copy
    records = next(folder.glob("*train*"))
    whole = records.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], b""):
        records.write_bytes(damaged)
        with pytest.raises(mhd.ConfigError, match=f"{records.name} cannot be read .*--overwrite"):
            mhd.data.load("cifar10", data_dir=root)
    middle = len(whole) // 2
    records.write_bytes(whole[:middle] + b"damaged" + whole[middle + 7 :])
    with pytest.raises(mhd.ConfigError, match="split train: samples 1000 to 1999 cannot be read"):
        mhd.data.load("cifar10", data_dir=root)
    records.unlink()
    with pytest.raises(mhd.ConfigError, match=f"{records.name} is missing; prepare it again"):
        mhd.data.load("cifar10", data_dir=root)
    records.write_bytes(whole)
    info = json.loads((folder / "dataset_info.json").read_text())
    train = next(split for split in info["splits"] if split["name"] == "train")
    train["shardLengths"] = [str(int(train["shardLengths"][0]) + 7)]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(mhd.ConfigError, match="holds 2000 records instead of 2007"):
        mhd.data.load("cifar10", data_dir=root)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(mhd.ConfigError, match="cannot be read as a prepared data set"):
        mhd.data.load("cifar10", data_dir=root)
    assert not cache.exists()


def made_set(tmp_path, **description):
    made_images.write(tmp_path / "made_images" / "1.0.0", **description)
    return {"data_dir": tmp_path}


SIZES = ((8, 8, 3),) * 5 + ((8, 9, 3),)


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        (
            {"shapes": SIZES, "shape": (None, None, 3)},
            r"train: sample 5 has .* \[8, 9, 3\], but .* 0 \[",
        ),
        ({"shape": (9, 9, 3)}, r"\[8, 8, 3\], but the images should have \[9, 9, 3\]"),
        ({"dtype": "uint16"}, "the images of made_images are uint16; only uint8 can be read"),
        ({"num_classes": 2}, "sample 2 has the label 2, but there are 2 classes"),
        ({"labels": (0, 1, 2, 0, 1, -1)}, "sample 5 has the label -1"),
        ({"keys": [{"featureKey": "label"}] * 2}, "is not an image classification data set"),
        ({"keys": [{"featureKey": "x"}] * 2}, "is not an image classification data set"),
        ({"file_format": "tfrecord"}, "was prepared as tfrecord, which has no random access"),
    ],
)
def test_records_that_cannot_be_used_are_named(tmp_path, cache, description, sentence):
    where = made_set(tmp_path, **description)
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.load("made_images", **where)
    assert not cache.exists()


def test_a_damaged_cache_is_written_anew(tmp_path, cache):
    where = made_set(tmp_path)
    first = mhd.data.load("made_images", **where)
    (stored,) = cache.iterdir()
    whole = stored.read_bytes()
    for damaged in (whole[:-100], b"", b"damaged"):
        stored.write_bytes(damaged)
        again = mhd.data.load("made_images", **where)
        np.testing.assert_array_equal(first.inputs, again.inputs)
        assert stored.read_bytes() == whole


def test_the_newest_whole_version_is_read(tmp_path):
    root = tmp_path / "made_images"
    for version, size in (("2.0.0", 8), ("10.0.0", 9), ("incomplete.ABC123_11.0.0", 10)):
        shape = (size, size, 3)
        made_images.write(root / version, shapes=(shape,) * 6, shape=shape)
    assert mhd.data.load("made_images", data_dir=tmp_path).input_shape == (9, 9, 3)


def test_a_data_set_that_is_not_prepared_says_what_to_do(tmp_path):
    sentence = "cifar10 is not prepared in .*python -m experiments.prepare_data --dataset=cifar10"
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.load("cifar10", data_dir=tmp_path)
    for name in ("a b", "", "..", ".hidden"):
        with pytest.raises(mhd.ConfigError, match="unknown dataset"):
            mhd.data.load(name, data_dir=tmp_path)


def test_images_of_unlike_sizes_are_brought_to_one(tmp_path, cache):
    shapes = ((8, 8, 3), (6, 9, 3), (12, 5, 3), (8, 8, 3), (7, 7, 3), (5, 5, 3))
    where = made_set(tmp_path, shapes=shapes, shape=(None, None, 3))
    data = mhd.data.load("made_images", **where, image_size=4)
    assert data.inputs.shape == (6, 4, 4, 3) and data.name == "made_images"
    for i, shape in enumerate(shapes):
        image = Image.fromarray(made_images.noise(i, shape))
        expected = np.asarray(image_folders.fit(image, 4))
        np.testing.assert_array_equal(data.inputs[i], expected)
    with pytest.raises(mhd.ConfigError, match=r"sample 1 has shape .* give image_size"):
        mhd.data.load("made_images", **where)
    with pytest.raises(mhd.ConfigError, match="image_size must be at least 1"):
        mhd.data.load("made_images", **where, image_size=0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_parts_of_a_split_that_overlap_are_noticed(tmp_path, cache, in_memory):
    where = made_set(tmp_path)
    where |= {"test_split": "train[:1]", "in_memory": in_memory}
    first, second, apart = (
        mhd.data.load("made_images", **where, train_split=f"train[{rows}]")
        for rows in ("0:4", "2:6", "4:6")
    )
    with pytest.warns(UserWarning, match="1 of the 1 test samples of made_images are training"):
        clients = mhd.make_clients(first, 2, partition="iid", public=apart)
    assert clients.num_public == 2
    with pytest.raises(mhd.ConfigError, match=r"of the 4 public samples .* \(2 private\)"):
        mhd.make_clients(first, 2, partition="iid", public=second)
    records = prepared.Records(prepared.open_folder(tmp_path / "made_images" / "1.0.0"), "train")
    assert len(set(records.keys())) == len(records) == 6


@needs_cifar10
def test_samples_that_are_read_when_needed_are_the_same(cache, monkeypatch):
    options = {"data_dir": SMALL, "train_split": "train[:300]", "test_split": "test[:50]"}
    lazy = mhd.data.load("cifar10", **options, image_size=24, in_memory=False)
    whole = mhd.data.load("cifar10", **options, image_size=24)
    for name in ("inputs", "test_inputs"):
        found = getattr(lazy, name)
        assert isinstance(found, LazyImages)
        rows = np.array([[7, 3, 7], [49, 0, 1]])
        np.testing.assert_array_equal(found[rows], getattr(whole, name)[rows])
    np.testing.assert_array_equal(lazy.labels, whole.labels)
    np.testing.assert_array_equal(lazy.test_labels, whole.test_labels)
    assert lazy.class_names == whole.class_names
    monkeypatch.setattr(prepared.Records, "read_labels", None)  # the cache has them
    again = mhd.data.load("cifar10", **options, image_size=24, in_memory=False)
    np.testing.assert_array_equal(again.labels, whole.labels)


@needs_cifar10
def test_a_run_on_samples_that_are_read_when_needed(cache):
    options = {"data_dir": SMALL, "train_split": "train[:80]", "test_split": "test[:20]"}
    settings = {"steps": 2, "data_placement": "host", "batch_size": 4, "public_batch_size": 4}
    results = []
    for in_memory in (True, False):
        data = mhd.data.load("cifar10", **options, in_memory=in_memory)
        data = data.prepared(crop_size=28, standardize=True)
        who = mhd.make_clients(data, 3, "mlp_small", partition="iid")
        results.append(mhd.simulate("complete", who, "mhd", augmentation="flip", **settings))
    assert_trees_equal(*(result.state.groups for result in results))
    assert np.isfinite(results[0].history[-1]["train"]["loss"])
