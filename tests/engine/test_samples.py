"""Samples are placed on the devices when they are first used, once, as it was said before."""

import dataclasses
import gc

import jax
import pytest

import mhd_jax as mhd
from mhd_jax.cli.settings import RunSettings
from mhd_jax.core.trees import num_bytes
from mhd_jax.engine.prepare import prepare
from tests.builders import assert_trees_equal

SETTINGS = {"steps": 2, "batch_size": 8, "public_batch_size": 8}


def clients():
    return mhd.make_clients("digits", 4, "mlp_small", validation_fraction=0.1)


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["device", "host"])
def test_a_check_places_no_samples(placement):
    who, before = clients(), live_bytes()
    run = prepare("ring", who, "mhd", data_placement=placement, **SETTINGS)
    RunSettings(model="mlp_small", steps=2).check(mhd.algorithms.isolated(), seed=0)
    assert live_bytes() - before < 2000  # graphs and keys
    if placement == "device":
        assert num_bytes(run.data) > 10**5 and live_bytes() - before >= num_bytes(run.data)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_first_use_places_once_what_was_said(placement):
    run = prepare("ring", clients(), "mhd", data_placement=placement, **SETTINGS)
    other = dataclasses.replace(run, steps=3)
    said = run.samples.shapes()
    for name in ("data", "stream", "test", "validation"):
        assert getattr(run, name) is getattr(other, name)
    placed = [run.data] if run.stream else [run.data, [run.test, run.validation]]
    assert jax.tree.structure(said) == jax.tree.structure(placed)
    for shape, array in zip(jax.tree.leaves(said), jax.tree.leaves(placed), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert array.sharding.is_equivalent_to(shape.sharding, array.ndim)


@pytest.mark.slow
def test_a_jitted_loop_may_be_the_first_to_use_them():
    state = prepare("ring", clients(), "mhd", **SETTINGS).init()
    first, second = (prepare("ring", clients(), "mhd", **SETTINGS) for _ in range(2))
    assert_trees_equal(jax.jit(first.batch)(state), jax.jit(second.batch)(state))
    assert_trees_equal(first.batch(state), jax.jit(first.batch)(state))
