"""The private gradient of a batch in parts is the whole batch's."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import mhd_jax as mhd
from mhd_jax.core.client_axis import Execution, under
from mhd_jax.data.batching import draw_batch
from mhd_jax.engine.memory import Estimate
from mhd_jax.training.groups import private_gradients
from tests.builders import assert_trees_close, thinned


@pytest.mark.parametrize("norm", thinned(["layer", "batch"], 2))
def test_parts_with_uneven_masks_give_the_mean_of_all_samples(norm, float64):
    clients = mhd.make_clients("digits", 3, "mlp_small", norm=norm)
    run = mhd.prepare("empty", clients, "isolated", batch_size=12, steps=10, num_devices=1)
    state = jax.tree.map(
        lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, run.start().state
    )
    batch = draw_batch(run.data, state.key, state.client_ids, state.step, run.spec)
    mask = jnp.ones((3, 12)).at[0, 2:].set(0).at[1, :4].set(0).at[2].set(0)
    batch = dataclasses.replace(batch, mask=mask)

    def gradients(part):
        with under(Execution(chunk=1, part=part)):
            return jax.jit(lambda s, b: private_gradients(s, b, 0.1))(state, batch)

    whole = gradients(None)
    assert float(jnp.abs(whole[2]).min()) == 0 < float(jnp.abs(whole[2]).max())
    for part in (1, 4, 5):  # of 12 samples, 4 at once where 5 are allowed
        assert_trees_close(gradients(part), whole, rtol=1e-10, atol=1e-12)


def test_only_long_passes_of_small_models_are_computed_in_parts():
    small = Estimate(model=1, state=1, gradients=2**20, batch=1, private=2**26, public=1)
    assert small.part(32) == 8
    for larger in ({"private": 2**24}, {"gradients": 2**25}):
        assert dataclasses.replace(small, **larger).part(32) is None
