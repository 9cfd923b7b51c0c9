"""Batches that the host streams are those that the device draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mhd_jax as mhd
from mhd_jax.core.client_axis import AT_ONCE
from mhd_jax.data.batching import BatchSpec, draw_batch
from mhd_jax.data.lazy_images import LazyImages
from mhd_jax.engine.prepare import prepare
from mhd_jax.engine.steps import device_data
from mhd_jax.engine.stream import Stream, ahead
from tests.builders import assert_trees_close, assert_trees_equal, short

SETTINGS = {"steps": 12, "eval_every": 6, "batch_size": 8, "public_batch_size": 8}
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}  # of programs that differ in the shapes of their data


def clients(**options):
    return mhd.make_clients("digits", 4, **options)


@pytest.mark.parametrize("independent", short([False, True], True))
def test_the_same_batches_come_from_the_host(independent):
    who, key = clients(), jax.random.key(5)
    spec = BatchSpec(7, 9, independent)
    on_device = device_data(who)
    stream = Stream(who, spec, key, AT_ONCE)
    ids = jnp.arange(4)
    assert stream.block_steps > 1
    for step in (0, 1, stream.block_steps, 3, 1000):  # onwards, and back
        block, left = stream.block_at(step)
        assert left == stream.block_steps - step % stream.block_steps
        drawn = draw_batch(on_device, key, ids, jnp.int32(step), spec)
        assert_trees_equal(draw_batch(block, key, ids, jnp.int32(step), spec), drawn)


@pytest.mark.slow
def test_blocks_of_any_length_give_the_same_run(monkeypatch):
    whole = mhd.simulate("complete", clients(), data_placement="host", **SETTINGS)
    monkeypatch.setattr("mhd_jax.engine.stream._BLOCK_BYTES", 1)
    run = prepare("complete", clients(), "mhd", data_placement="host", **SETTINGS)
    assert run.stream.block_steps == 1
    short = mhd.simulate("complete", clients(), data_placement="host", **SETTINGS)
    assert_trees_close(whole.state.groups, short.state.groups, **ROUNDING)


def test_only_the_rows_that_a_block_needs_are_read():
    """A source that counts what is read of it."""

    class Counting:
        def __init__(self, array):
            self.array, self.read = array, 0
            self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

        def __getitem__(self, rows):
            self.read += np.size(rows)
            return self.array[rows]

    who = clients()
    inputs = Counting(who.data.inputs)
    who = dataclasses.replace(who, data=dataclasses.replace(who.data, inputs=inputs))
    stream = Stream(who, BatchSpec(2, 3), jax.random.key(0), AT_ONCE)
    inputs.read = 0
    stream.block_at(0)
    assert inputs.read % (stream.block_steps * 4 * 2) == 0  # the public set lies apart


def test_what_fails_while_reading_ahead_is_raised_where_it_is_asked_for():
    def load(number):
        if number == 3:
            raise mhd.ConfigError("image 3 is damaged")
        return number

    read = ahead(load, 0, 10)
    with pytest.raises(mhd.ConfigError, match="image 3 is damaged"):
        list(read)


def test_large_data_stay_on_the_host(folder, monkeypatch):
    assert prepare("complete", clients(), "isolated").stream is None
    monkeypatch.setattr("mhd_jax.engine.memory.capacity_bytes", lambda: 10**5)
    assert prepare("complete", clients(), "isolated").stream is not None
    monkeypatch.undo()
    lazy = mhd.data.load(folder, in_memory=False)
    assert prepare("complete", mhd.make_clients(lazy, 2, partition="iid"), "isolated").stream


def image_folder(path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for name in ("cat", "dog"):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (9, 10, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{i:02}.png")
    return path


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "images")


@pytest.mark.slow
@pytest.mark.parametrize("placement", short(["device", "host"], "host"))
def test_images_that_are_read_when_needed_are_the_same(folder, placement):
    results = []
    settings = SETTINGS | {"data_placement": placement, "steps": 3, "eval_every": 3}
    for in_memory in (True, False):
        data = mhd.data.load(folder, image_size=8, in_memory=in_memory)
        assert isinstance(data.inputs, LazyImages) != in_memory
        who = mhd.make_clients(data, 3, partition="iid", validation_fraction=0.2)
        results.append(mhd.simulate("complete", who, "mhd", **settings))
    assert_trees_close(results[0].state.groups, results[1].state.groups, **ROUNDING)
    assert results[0].summary["beta_sh"] == results[1].summary["beta_sh"]


def test_images_that_are_not_read_yet_are_compared_by_their_files(folder, tmp_path):
    data = mhd.data.load(folder, in_memory=False)
    with pytest.raises(mhd.ConfigError, match=r"60 public samples of images, .* \(60 private\)"):
        mhd.make_clients(data, 3, public=data)
    (tmp_path / "link").symlink_to(folder / "test")
    tests = mhd.data.load(tmp_path / "link", in_memory=False)
    with pytest.raises(mhd.ConfigError, match=r"16 public samples of test, .* \(16 test\)"):
        mhd.make_clients(data, 3, public=tests)
    other = mhd.data.load(image_folder(tmp_path / "others"), in_memory=False)
    assert mhd.make_clients(data, 3, public=other).num_public == 60


def test_a_test_split_of_images_that_are_read_when_needed(folder):
    read, lazy = (
        mhd.data.load(folder / "train", in_memory=in_memory) for in_memory in (True, False)
    )
    assert isinstance(lazy.test_inputs, LazyImages) and lazy.test_inputs.shape == (12, 9, 10, 3)
    for name in ("inputs", "test_inputs"):
        rows = np.array([[3, 1], [0, 11]])
        np.testing.assert_array_equal(getattr(lazy, name)[rows], getattr(read, name)[rows])
    rows = np.arange(5000) % 48  # as many as several threads share
    np.testing.assert_array_equal(lazy.inputs[rows], read.inputs[rows])
    standard = [data.prepared(standardize=True).preparation for data in (read, lazy)]
    assert standard[0] == standard[1]


def test_an_image_that_turns_out_damaged_is_named(folder):
    who = mhd.make_clients(mhd.data.load(folder, in_memory=False), 2, partition="iid")
    broken = folder / "train" / "dog" / "07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(mhd.ConfigError, match=r"dog/07\.png cannot be read as an image"):
        mhd.simulate("complete", who, "isolated", **SETTINGS | {"data_placement": "host"})


def test_changed_files_are_other_data(folder):
    def digest():
        data = mhd.data.load(folder, in_memory=False)
        return mhd.make_clients(data, 2, partition="iid").settings["dataset_digest"]

    before = digest()
    assert digest() == before
    Image.fromarray(np.zeros((9, 10, 3), np.uint8)).save(folder / "train" / "cat" / "03.png")
    assert digest() != before
