"""MHD on one screen is the library's MHD."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import mhd_jax as mhd
from experiments import mhd_in_one_file as one_file
from tests.builders import ROOT, assert_trees_close


class Backbone(nn.Module):
    """That of the one file."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = nn.relu(nn.Dense(one_file.WIDTH, use_bias=False)(x))
        return x


def in_the_library(params):
    return {
        "backbone": {
            "Dense_0": {"kernel": params["hidden"]},
            "Dense_1": {"kernel": params["embedding"]},
        },
        "heads": {"kernel": params["heads"], "bias": params["biases"]},
    }


@pytest.mark.slow
def test_it_is_the_librarys():
    """On a directed ring, where each client has one neighbour to draw."""
    data = mhd.data.load("digits")
    flat = mhd.data.arrays(data.inputs.reshape(len(data.inputs), -1) / 16, data.labels)
    run = mhd.prepare(
        mhd.topology.ring(4, directed=True),
        mhd.make_clients(flat, 4, Backbone()),
        mhd.algorithms.mhd(
            num_aux_heads=one_file.AUX_HEADS,
            nu_aux=one_file.NU_AUX,
            nu_emb=one_file.NU_EMB,
            label_smoothing=one_file.SMOOTHING,
        ),
        batch_size=8,
        public_batch_size=16,
        optimizer=one_file.OPTIMIZER,
        num_devices=1,
    )
    key = jax.random.key(3)
    params = jax.vmap(one_file.init)(jax.random.split(key, 4))
    optimizer = jax.vmap(one_file.OPTIMIZER.init)(params)
    state = run.init([in_the_library(params)])
    step = jax.jit(run.train_step)
    for number in range(5):
        batch, graph = run.batch(state), run.graph(number)
        params, optimizer = one_file.train_step(
            params, optimizer, key, batch.inputs, batch.labels, batch.public_inputs, graph
        )
        state, _ = step(state, batch, graph)
    trained = state.groups[0].params
    assert_trees_close(trained, in_the_library(params), rtol=1e-4, atol=1e-6)
    start = run.init().groups[0].params
    assert not np.allclose(trained["heads"]["kernel"], start["heads"]["kernel"], atol=1e-2)


def test_it_is_short():
    path = ROOT / "experiments" / "mhd_in_one_file.py"
    assert len(path.read_text().splitlines()) < 150
