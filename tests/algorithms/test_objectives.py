"""Clients that have no private labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.data.batching import BatchSpec, draw_batch
from mhd_jax.engine.steps import device_data
from mhd_jax.training import groups
from tests.builders import assert_trees_close, assert_trees_equal, tiny_batch, tiny_clients

K = 4
COMPLETE = 1 - jnp.eye(K)


def without_labels(*positions, **options):
    return tiny_clients(K, objectives=dict.fromkeys(positions, "unlabelled"), **options)


def masked(batch, *positions):
    """The batch as the engine draws it: nothing counts of clients without labels."""
    return dataclasses.replace(batch, mask=batch.mask.at[jnp.array(positions)].set(0))


def one_step(algorithm, clients, batch, graph=COMPLETE):
    state = algorithm.init(jax.random.key(0), clients, batch)
    return state, *jax.jit(algorithm.train_step)(state, batch, graph)


def of_client(state, i):
    return jax.tree.map(lambda a: a[i], groups.all_params(state))


def test_their_batches_have_samples_but_no_labels_that_count():
    clients = without_labels(2)
    data, spec = device_data(clients), BatchSpec(5, 3)
    batch = draw_batch(data, jax.random.key(0), jnp.arange(K), jnp.int32(0), spec)
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [5, 5, 0, 5])
    own = clients.data.inputs[clients.owner == 2]
    assert all((own == x).all(axis=-1).any() for x in np.asarray(batch.inputs[2]))


def test_the_main_head_learns_what_head_1_would():
    """Against the gradient of the term, written out for one teacher."""
    clients = without_labels(1, num_samples=60)
    algorithm = mhd.algorithms.mhd(num_aux_heads=2, nu_aux=0.7, nu_emb=0.0)
    batch = masked(tiny_batch(K), 1)
    graph = jnp.zeros((K, K)).at[1, 3].set(1)  # 1 learns from 3, the others from themselves
    state, after, metrics = one_step(algorithm, clients, batch, graph)
    said, _ = groups.forward(
        state,
        groups.all_params(state),
        groups.all_stats(state),
        batch.public_inputs,
        shared_inputs=True,
    )
    target = np.asarray(jax.nn.softmax(said.logits[3, :, 0]))
    own = np.asarray(jax.nn.softmax(said.logits[1, :, 0]))
    embeddings = np.asarray(said.embeddings[1])
    num_public = len(target)
    kernel = 0.7 * np.einsum("pd,pc->dc", embeddings, own - target) / num_public
    before, now = of_client(state, 1)[0]["heads"], of_client(after, 1)[0]["heads"]
    np.testing.assert_allclose(  # plain SGD, learning rate 0.1
        (before["kernel"][0] - now["kernel"][0]) / 0.1, kernel, rtol=1e-3, atol=1e-6
    )
    assert metrics["private_loss"][1] == 0


def test_nobody_else_is_touched():
    """A client with labels takes the same step whether another one has some or not."""
    batch = masked(tiny_batch(K), 2)
    algorithm = mhd.algorithms.mhd()
    _, with_others, _ = one_step(algorithm, without_labels(2), batch)
    _, without, _ = one_step(algorithm, tiny_clients(K), batch)
    for i in (0, 1, 3):
        assert_trees_close(of_client(with_others, i), of_client(without, i), rtol=1e-5, atol=1e-6)
    heads = [of_client(state, 2)[0]["heads"]["kernel"][0] for state in (with_others, without)]
    assert not np.allclose(*heads)


def test_without_a_teacher_the_main_head_stays():
    batch = masked(tiny_batch(K), 2)
    state, after, _ = one_step(mhd.algorithms.mhd(), without_labels(2), batch, jnp.zeros((K, K)))
    assert_trees_equal(
        of_client(state, 2)[0]["heads"]["kernel"][0], of_client(after, 2)[0]["heads"]["kernel"][0]
    )


@pytest.mark.parametrize("placement", ["device", "host"])
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
