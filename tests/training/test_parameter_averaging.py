"""Ensembles inside MHD: federated averaging among some, distillation among all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.core.types import Presence
from mhd_jax.training.parameter_averaging import first_members, mixing_matrix
from tests.builders import (
    NUM_CLASSES,
    Linear,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    take_steps,
    tiny_batch,
    tiny_clients,
    tiny_dataset,
    with_params,
)

K = 6
GRAPH = jnp.ones((K, K)) - jnp.eye(K)
MOMENTUM = mhd.optim.SGD(0.1, schedule="constant").build(10)


class Normed(nn.Module):
    """A backbone with statistics of its own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))


def unequal(num_clients):
    """Client i holds about i + 1 shares of the samples."""
    owners = np.repeat(np.arange(num_clients), np.arange(num_clients) + 1)
    return lambda labels, k, c, rng: np.resize(owners, len(labels))


@pytest.mark.slow
def test_a_hybrid_step_is_a_step_of_mhd_and_an_average():
    """Client by client, in two architectures; momentum stays at home, and so do those outside."""
    ensembles = [[4, 0, 5], [3, 1]]
    groups = [(Normed(), (0, 2, 4, 5)), (Linear(4), (1, 3))]
    clients = tiny_clients(K, optimizer=MOMENTUM, groups=groups, partition=unequal(K))
    sizes = clients.label_counts().sum(axis=1)
    settings = {"num_aux_heads": 1, "nu_emb": 0.0}
    hybrid = mhd.algorithms.mhd(ensembles=ensembles, average_every=2, **settings)
    plain = mhd.algorithms.mhd(**settings)
    batches = [tiny_batch(K, seed=seed) for seed in range(4)]
    state = jax.jit(lambda key: hybrid.init(key, clients, batches[0]))(jax.random.key(0))
    hybrid_step, plain_step = jax.jit(hybrid.train_step), jax.jit(plain.train_step)
    for number, batch in enumerate(batches, 1):
        expected, told = plain_step(state, batch, GRAPH)
        state, metrics = hybrid_step(state, batch, GRAPH)
        np.testing.assert_array_equal(
            metrics["messages"]["predictions"], told["messages"]["predictions"]
        )
        for group, before in zip(state.groups, expected.groups, strict=True):
            assert_trees_close(group.opt_state, before.opt_state, rtol=1e-5, atol=1e-6)
        heard = np.zeros((K, K), int)
        for client in range(K):
            mates = next((e for e in ensembles if client in e and number % 2 == 0), [client])
            shares = sizes[mates] / sizes[mates].sum()
            for part in ("params", "stats"):
                theirs = [of_client(expected, mate, part) for mate in mates]
                mean = jax.tree.map(lambda *a, w=shares: np.tensordot(w, a, 1), *theirs)
                assert_trees_close(of_client(state, client, part), mean, rtol=1e-5, atol=1e-6)
            heard[client, mates] = 1
        np.fill_diagonal(heard, 0)
        np.testing.assert_array_equal(metrics["messages"]["weights"], heard)


def test_those_of_an_ensemble_start_alike_and_the_others_as_ever():
    clients, batch = tiny_clients(K), tiny_batch(K)
    init = lambda **settings: mhd.algorithms.mhd(**settings).init(jax.random.key(0), clients, batch)
    apart, joined = init().groups[0].params, init(ensembles=[[1, 3], [5, 2]]).groups[0].params
    drawn_as = np.array([0, 1, 2, 1, 4, 2])
    assert_trees_equal(joined, jax.tree.map(lambda a: a[drawn_as], apart))


def test_an_ensemble_of_all_without_distillation_is_fedavg():
    clients = tiny_clients(K, optimizer=MOMENTUM, partition=unequal(K))
    batches = [tiny_batch(K, seed=seed) for seed in range(4)]
    hybrid = mhd.algorithms.naive(nu_naive=0.0, ensembles=K, average_every=2, label_smoothing=0.0)
    fedavg = mhd.algorithms.fedavg(local_steps=2, reset_momentum=False)
    (one, _), (other, _) = (take_steps(a, clients, GRAPH, batches) for a in (hybrid, fedavg))
    assert_trees_close(one[-1].groups, other[-1].groups, rtol=1e-5, atol=1e-6)


def test_ensembles_of_one_are_plain_mhd():
    clients = tiny_clients(K, optimizer=MOMENTUM)
    ((_, one), (plain,)), ((_, other), (told,)) = (
        take_steps(mhd.algorithms.mhd(num_targets=2, **each), clients, GRAPH, [tiny_batch(K)])
        for each in ({}, {"ensembles": 1, "average_every": 1})
    )
    # Two programs round as they like.
    assert_trees_close(one.groups, other.groups, rtol=1e-4, atol=1e-6)
    heard = told["messages"]["predictions"]
    np.testing.assert_array_equal(plain["messages"]["predictions"], heard)
    assert not told["messages"]["weights"].any()


def test_who_is_away_or_has_diverged_averages_with_nobody():
    clients = tiny_clients(K, partition=unequal(K))
    sizes = clients.label_counts().sum(axis=1)
    there = Presence(jnp.array([1, 0, 1, 1, 1, 1], bool), jnp.array([1, 1, 1, 1, 1, 0], bool))
    batch = tiny_batch(K).replace(presence=there)
    hybrid = mhd.algorithms.naive(nu_naive=0.0, ensembles=3, average_every=1)
    state = hybrid.init(jax.random.key(0), clients, batch)
    state = with_params(state, lambda a: a.at[4].set(jnp.nan))
    plain = mhd.algorithms.naive(nu_naive=0.0)
    (_, alone), _ = take_steps(plain, clients, GRAPH, [batch], state)
    (_, after), (metrics,) = take_steps(hybrid, clients, GRAPH, [batch], state)
    weights = np.eye(K)  # client 3 has nobody left: 4 has diverged, and 5 is offline
    weights[0, [0, 2]] = weights[2, [0, 2]] = sizes[[0, 2]] / sizes[[0, 2]].sum()
    finite = lambda a: np.nan_to_num(np.asarray(a))
    assert_trees_close(
        jax.tree.map(finite, after.groups[0].params),
        jax.tree.map(lambda a: np.tensordot(weights, finite(a), 1), alone.groups[0].params),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(metrics["messages"]["weights"], (weights > 0) & (np.eye(K) == 0))


def two_architectures():
    wide, narrow = Linear(5), Linear(4)
    models = [wide, wide, wide, narrow, narrow, wide]
    return mhd.make_clients(tiny_dataset(), K, models, partition="iid", public_fraction=0.3)


@pytest.mark.slow
def test_both_kinds_of_messages_are_counted():
    algorithm = mhd.algorithms.mhd(
        ensembles=((0, 1, 2), (3, 4)), average_every=4, nu_emb=0.0, num_aux_heads=1
    )
    settings = {"steps": 10, "eval_every": 5, "batch_size": 4, "public_batch_size": 8}
    result = mhd.simulate("ring", two_architectures(), algorithm, **settings)
    sent = result.summary["communication"]
    logits = 8 * NUM_CLASSES * 4  # one head teaches
    sizes = [4 * (4 * width + 2 * (width + 1) * NUM_CLASSES) for width in (5, 4)]
    averages = 2  # at steps 4 and 8
    weights = averages * (3 * 2 * sizes[0] + 2 * 1 * sizes[1])
    predictions = 10 * K * logits  # one teacher each
    assert sent["messages"] == {"predictions": 10 * K, "weights": averages * (6 + 2)}
    assert sent["by_type"] == {"logits": predictions, "weights": weights}
    assert sent["by_dtype"] == {"float32": predictions + weights}
    assert sent["total_bytes"] == predictions + weights == result.history[-1]["bytes"]
    assert sent["bytes_per_step_per_edge"] == logits + sizes[0]
    heard = np.zeros((K, K), int)
    heard[:3, :3], heard[3:5, 3:5] = averages, averages
    np.fill_diagonal(heard, 0)
    np.testing.assert_array_equal(sent["by_edge"]["weights"], heard)
    np.testing.assert_array_equal(np.sum(sent["by_edge"]["predictions"], axis=1), 10)
    assert result.summary["settings"]["hyperparameters"]["ensembles"] == [[0, 1, 2], [3, 4]]


def test_one_ensemble_in_several_notations_is_one_algorithm():
    expected = np.kron(np.eye(3), np.full((2, 2), 0.5))
    notations = (2, [[0, 1], [2, 3], [5, 4]], ((1, 0), (2, 3), (4, 5)), expected)
    alike = lambda labels, k, c, rng: np.arange(len(labels)) % k
    clients = tiny_clients(K, partition=alike, public_fraction=0.0)
    for notation in notations:
        np.testing.assert_allclose(mixing_matrix(notation, clients), expected)
    of = lambda ensembles: mhd.algorithms.mhd(ensembles=ensembles)
    assert of([[0, 1]]) is of(((0, 1),)) is of(np.array([[0, 1]]))
    assert of(expected) is of(expected.tolist()) is not of(2)
    assert of(expected).hyperparameters["ensembles"][0] == (0.5, 0.5, 0.0, 0.0, 0.0, 0.0)


def test_whose_weights_an_average_has():
    """Labelled samples count; all do where nobody has labels; who fills a device counts for nothing."""
    goals = ["supervised", "unlabelled", "supervised", "unlabelled", "unlabelled", "supervised"]
    clients = tiny_clients(K, partition=unequal(K), objectives=goals).padded(4)
    n = clients.label_counts().sum(axis=1)
    assert len(set(n[:K])) == K and len(n) == 8
    expected = np.eye(8)
    expected[:3, :3] = np.array([n[0], 0, n[2]]) / (n[0] + n[2])
    expected[3:5, 3:5] = n[3:5] / n[3:5].sum()
    mixing = mixing_matrix([[0, 1, 2], [3, 4]], clients)
    np.testing.assert_allclose(mixing, expected)
    np.testing.assert_array_equal(first_members(mixing), [0, 0, 0, 3, 3, 5, 6, 7])
    chain = np.eye(K)
    chain[4, [2, 4]] = chain[2, [0, 2]] = 0.5  # 4 takes from 2, and 2 from 0
    np.testing.assert_array_equal(
        first_members(mixing_matrix(chain, clients))[:K], [0, 1, 0, 3, 0, 5]
    )


def with_entry(i, j, value):
    return np.where((np.arange(K) == i)[:, None] & (np.arange(K) == j), value, np.eye(K))


@pytest.mark.parametrize(
    ("ensembles", "sentence"),
    [
        (4, "6 clients do not make ensembles of 4"),
        (0, "6 clients do not make ensembles of 0"),
        ([[0, 6], [1, -1]], r"ensembles must name clients 0 … 5; check \[6, -1\]"),
        ([[0, 1], [1, 2]], "client 1 is named 2 times"),
        ([[0, 0]], "client 0 is named 2 times"),
        (np.eye(6, dtype=int), "weights of a mixing matrix are floats"),
        ([[]], r"or a mixing matrix in floats, not \(\(\),\)"),
        ("2", "or a mixing matrix in floats, not '2'"),
        (np.eye(5), r"must have shape \[6, 6\], not \[5, 5\]"),
        ([[0.5, 0.5], [1.0]], "a mixing matrix must be an array of numbers"),
        (with_entry(1, 2, -0.5), r"client 1 gives client 2 the weight -0\.5"),
        (with_entry(1, 2, np.nan), "client 1 gives client 2 the weight nan"),
        (with_entry(3, 2, 0.5), r"that of client 3 sums to 1\.5; divide"),
        (
            [[5, 1], [0, 2, 3]],
            "ensemble of clients 0, 2, 3 .* one architecture, .* clients 3: linear",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(ensembles, sentence):
    clients = two_architectures() if "one architecture" in sentence else tiny_clients(K)
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.algorithms.mhd(ensembles=ensembles).init(None, clients, None)


def test_the_period_of_averages_is_checked():
    with pytest.raises(mhd.ConfigError, match="average_every must be at least 1, not 0"):
        mhd.algorithms.mhd(ensembles=2, average_every=0)


def test_a_matrix_is_not_taken_for_lists_of_clients():
    """((0, 1), (1, 0)) equals the same in floats, but these name weights, those clients."""
    matrix = mhd.algorithms.mhd(ensembles=np.array([[0.0, 1.0], [1.0, 0.0]]))
    lists = mhd.algorithms.mhd(ensembles=[[0, 1], [1, 0]])
    assert matrix is not lists
    assert lists is mhd.algorithms.mhd(ensembles=((0, 1), (1, 0)))
    start = (jax.random.key(0), tiny_clients(2), tiny_batch(2))
    matrix.init(*start)
    with pytest.raises(mhd.ConfigError, match="a client sits in one ensemble"):
        lists.init(*start)
