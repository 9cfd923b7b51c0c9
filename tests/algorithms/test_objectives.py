"""Clients that have no private labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.data.batching import BatchSpec, draw_batch
from mhd_jax.engine.steps import device_data
from tests.builders import (
    assert_trees_close,
    of_client,
    public_outputs,
    short,
    softmax,
    take_steps,
    tiny_batch,
    tiny_clients,
)

K = 4
COMPLETE = 1 - jnp.eye(K)


def without_labels(*positions, **options):
    return tiny_clients(K, objectives=dict.fromkeys(positions, "unlabelled"), **options)


def one_step(algorithm, clients, masked, graph=COMPLETE):
    """A batch as the engine draws it where nothing counts of one client, and a step on it."""
    batch = tiny_batch(K)
    batch = batch.replace(mask=batch.mask.at[masked].set(0))
    (before, after), (metrics,) = take_steps(algorithm, clients, graph, [batch])
    return batch, before, after, metrics


def main_kernel(state, i):
    return of_client(state, i)["heads"]["kernel"][0]


def test_their_batches_have_samples_but_no_labels_that_count():
    clients = without_labels(2)
    data, spec = device_data(clients), BatchSpec(5, 3)
    batch = draw_batch(data, jax.random.key(0), jnp.arange(K), jnp.int32(0), spec)
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [5, 5, 0, 5])
    own = clients.data.inputs[clients.owner == 2]
    assert all((own == x).all(axis=-1).any() for x in np.asarray(batch.inputs[2]))


def test_the_main_head_learns_what_head_1_would():
    """Against the gradient of the term, written out for one teacher."""
    algorithm = mhd.algorithms.mhd(num_aux_heads=2, nu_aux=0.7, nu_emb=0.0)
    graph = jnp.zeros((K, K)).at[1, 3].set(1)  # 1 learns from 3, the others from themselves
    batch, state, after, metrics = one_step(algorithm, without_labels(1), 1, graph)
    said = public_outputs(state, batch)
    target, own = softmax(said.logits[3, :, 0]), softmax(said.logits[1, :, 0])
    kernel = 0.7 * said.embeddings[1].T @ (own - target) / len(target)
    moved = (main_kernel(state, 1) - main_kernel(after, 1)) / 0.1  # plain SGD's learning rate
    np.testing.assert_allclose(moved, kernel, rtol=1e-3, atol=1e-6)
    assert metrics["private_loss"][1] == 0


def test_nobody_else_is_touched():
    """A client with labels takes the same step whether another one has some or not."""
    with_others, without = (
        one_step(mhd.algorithms.mhd(), clients, 2)[2]
        for clients in (without_labels(2), tiny_clients(K))
    )
    for i in (0, 1, 3):
        assert_trees_close(of_client(with_others, i), of_client(without, i), rtol=1e-5, atol=1e-6)
    assert not np.allclose(main_kernel(with_others, 2), main_kernel(without, 2))


def test_without_a_teacher_the_main_head_stays():
    _, state, after, _ = one_step(mhd.algorithms.mhd(), without_labels(2), 2, jnp.zeros((K, K)))
    np.testing.assert_array_equal(main_kernel(state, 2), main_kernel(after, 2))


@pytest.mark.parametrize("placement", short(["device", "host"], "device"))
def test_their_own_accuracy_is_unknown(placement):
    clients = tiny_clients(3, objectives="supervised:2,unlabelled:1", public_fraction=0.3)
    settings = {"steps": 2, "eval_every": 2, "batch_size": 4, "public_batch_size": 4}
    settings["data_placement"] = placement
    summary = mhd.simulate("complete", clients, "mhd", **settings).summary
    known = [client["beta_priv"]["main"] is not None for client in summary["per_client"]]
    assert known == [True, True, False]
    assert summary["beta_priv"]["main"] is not None
    assert summary["settings"]["clients"]["objectives"] == ["supervised"] * 2 + ["unlabelled"]


def test_averages_and_upper_bounds_count_labels_only():
    clients = without_labels(1)
    state = mhd.algorithms.fedavg(local_steps=1).init(jax.random.key(0), clients, tiny_batch(K))
    sizes = clients.label_counts().sum(axis=1)
    np.testing.assert_array_equal(state.extra["sizes"], sizes * [1, 0, 1, 1])
    pooled = clients.pooled()
    assert (pooled.owner == 0).sum() == sizes[[0, 2, 3]].sum()
    expected = clients.label_distributions[[0, 2, 3]].mean(axis=0)
    np.testing.assert_allclose(pooled.label_distributions, expected[None])


@pytest.mark.parametrize(
    ("objectives", "why"),
    [
        ("unlabeled", "unknown objective 'unlabeled'; choose one of supervised, unlabelled"),
        ({9: "unlabelled"}, r"objectives must name clients 0 … 3; check \[9\]"),
        ("unlabelled", "nobody has labels to learn from"),
        ("supervised:2,unlabelled:1", "the objectives are for 3 clients, but there are 4"),
    ],
)
def test_objectives_that_cannot_be_are_refused(objectives, why):
    with pytest.raises(mhd.ConfigError, match=why):
        tiny_clients(K, objectives=objectives)
