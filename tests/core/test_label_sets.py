"""Clients whose tasks have only some of the classes.

What they learn, step by step, is among the cases of tests/algorithms/test_mhd_reference.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from mhd_jax.core.label_sets import IMPOSSIBLE
from mhd_jax.core.types import Presence
from mhd_jax.exchange import compression, diagnostics
from mhd_jax.training import groups, losses
from tests.builders import (
    NUM_CLASSES,
    assert_trees_equal,
    of_client,
    public_outputs,
    softmax,
    take_steps,
    thinned,
    tiny_batch,
    tiny_clients,
)

K = 4
SETS = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
GRAPH = np.array([[0, 1, 1, 0], [1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32)


def with_sets(sets=SETS, **options):
    clients = tiny_clients(K, optimizer=optax.sgd(1.0), **options)
    return dataclasses.replace(clients, label_sets=sets)


def batch_within(sets=SETS, **options):
    """A random batch in which every client's labels are in its set."""
    batch = tiny_batch(K, **options)
    rng = np.random.default_rng(1)
    labels = [rng.choice(np.flatnonzero(row), batch.labels.shape[1]) for row in sets]
    return batch.replace(labels=jnp.asarray(np.stack(labels)))


def step(algorithm, batch, clients, graph=GRAPH):
    """The state before and after a step, and its metrics."""
    states, metrics = take_steps(algorithm, clients, jnp.asarray(graph), [batch])
    return *states, *metrics


def test_the_loss_is_the_mass_inside_times_the_cross_entropy_there():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(5, 1, 4)), softmax(rng.normal(size=(5, 1, 4)))
    targets[0] = [0.0, 0.3, 0.0, 0.7]  # nothing of it inside
    known = np.array([True, False, True, False])
    mass = targets[..., known].sum(axis=-1)
    normalised = targets[..., known] / np.maximum(mass, 1e-9)[..., None]
    expected = -(mass * (normalised * np.log(softmax(logits[..., known]))).sum(axis=-1)).mean()

    @jax.jit
    @jax.value_and_grad
    def loss(z):
        return losses.distillation(z, jnp.asarray(targets), label_set=jnp.asarray(known))

    value, gradient = loss(jnp.asarray(np.where(known, logits, IMPOSSIBLE)))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not gradient[0].any()


@pytest.mark.slow
def test_those_who_know_all_are_untouched():
    """Client 3 has no teacher; what others know is nothing to it, bit for bit."""
    batch = batch_within()
    afters = [step(mhd.algorithms.naive(), batch, with_sets(sets))[1] for sets in (SETS, None)]
    assert_trees_equal(*(of_client(after, 3) for after in afters))
    assert not np.allclose(*(of_client(after, 0)["heads"]["kernel"] for after in afters))


@pytest.mark.parametrize("name", ["none", "float16", "int8", "top_2", "top_5"])
def test_compression_spends_nothing_on_other_classes(name):
    known = jnp.arange(10) % 2 == 0  # 0, 2, 4, 6 and 8
    logits = np.asarray(jax.random.normal(jax.random.key(0), (7, 10)) * 3)
    masked = jnp.where(known, logits, IMPOSSIBLE)
    arrived = np.asarray(compression.named(name).arrived(masked, label_set=known))
    assert np.isfinite(arrived).all()
    assert not softmax(arrived)[:, 1::2].any()
    if name.startswith("top_"):
        expected = softmax(logits[:, ::2])
        count = int(name[4:])
        for row in expected:
            others = np.argsort(row)[: len(row) - count]
            row[others] = row[others].mean() if len(others) else 0
        np.testing.assert_allclose(softmax(arrived)[:, ::2], expected, atol=1e-6)
    else:
        alone = compression.named(name).arrived(jnp.asarray(logits[:, ::2]))
        np.testing.assert_array_equal(arrived[:, ::2], alone)


def test_the_entropy_of_few_classes_is_over_their_own_maximum():
    logits = jnp.where(jnp.array([True, False, True]), jnp.zeros((4, 3)), IMPOSSIBLE)
    assert diagnostics.prediction_entropy(logits, logits[0] == 0) == pytest.approx(1)
    single = jnp.array([False, True, False])
    assert diagnostics.prediction_entropy(jnp.where(single, logits, IMPOSSIBLE), single) == 1


@pytest.mark.parametrize(
    ("digest_loss", "voices"),
    thinned([("mae", [0, 1, 2, 3]), ("kl", [0, 1, 2, 3]), ("mae", [2])], 3),
)
def test_fedmd_takes_the_mean_of_those_who_know_a_class(digest_loss, voices, float64):
    """Class 2 is nobody's; where client 2 alone is reached, nothing is said of class 1 either."""
    algorithm = mhd.algorithms.fedmd(digest_loss=digest_loss)
    sets = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]], bool)
    batch = batch_within(sets, dtype=jnp.float64)
    if len(voices) < K:
        presence = Presence(jnp.ones(K, bool), jnp.isin(jnp.arange(K), jnp.array(voices)))
        batch = batch.replace(presence=presence)
    state, _, found = step(algorithm, batch, with_sets(sets))
    logits = public_outputs(state, batch).logits[:, :, 0]
    consensus = {}
    for c in range(NUM_CLASSES):
        said = [logits[i][:, c] for i in voices if sets[i, c]]
        if said:
            consensus[c] = np.mean(said, axis=0)
    shares = dict(zip(consensus, softmax(np.stack([*consensus.values()], axis=1)).T, strict=True))
    for i in range(K):
        learned = [c for c in consensus if sets[i, c]]
        if digest_loss == "mae":
            each = [np.abs(logits[i][:, c] - consensus[c]).mean() for c in learned]
            expected = np.mean(each) if each else 0
        else:
            own = dict(zip(np.flatnonzero(sets[i]), softmax(logits[i][:, sets[i]]).T, strict=True))
            expected = -sum((shares[c] * np.log(own[c])).mean() for c in learned)
        np.testing.assert_allclose(found["loss"][i], expected, rtol=1e-7)  # weights are float32


def test_soft_decisions_stay_inside_and_keep_their_sum():
    batch = batch_within(public_size=4).replace(public_indices=jnp.arange(4))
    algorithm, everyone = mhd.algorithms.distributed_distillation(), 1 - np.eye(K)
    state, after, _ = step(algorithm, batch, with_sets(), everyone)
    for now in (state, after):
        decisions = np.asarray(now.extra["previous_decisions"])  # [K, P, C]
        assert not decisions.swapaxes(0, 1)[:, ~SETS].any()
        estimates = np.asarray(now.extra["estimates"])
        np.testing.assert_allclose(decisions.sum(axis=0), estimates.sum(axis=0), atol=1e-5)


@pytest.mark.slow
def test_a_run_on_real_data_never_leaves_the_label_sets():
    clients = mhd.make_clients(
        "digits",
        3,
        partition=mhd.partition.primary_labels(labels_per_client=2, skew=float("inf")),
        label_sets="own",
    )
    np.testing.assert_array_equal(clients.label_sets, clients.label_counts() > 0)
    result = mhd.simulate("complete", clients, "naive", steps=40, eval_every=40)
    inputs = clients.data.preparation(clients.data.test_inputs[:50])
    logits = jax.jit(groups.predict)(result.state, inputs)
    outside = ~clients.label_sets[:, None, None] & np.ones(logits.shape, bool)
    assert not softmax(np.asarray(logits))[outside].any()
    for client, known in zip(result.summary["per_client"], clients.label_sets, strict=True):
        assert not np.array(client["per_class_accuracy"]["main"])[~known].any()
        assert client["beta_priv"]["main"] > 0.6
        assert client["beta_sh"]["main"] <= known.mean()
    stored = result.summary["settings"]["clients"]["label_sets"]
    assert stored == [np.flatnonzero(row).tolist() for row in clients.label_sets]


def by_label(labels, num_clients, num_classes, rng):
    """Client 0 gets class 0, client 1 class 1 and client 2 class 2."""
    return labels % num_clients


def three(**options):
    return tiny_clients(3, partition=by_label, **options)


def test_ways_to_give_label_sets():
    expected = [[True, True, False], [False, True, False], [True, True, True]]
    for given in ([[0, 1], [1], [2, 1, 0]], {0: (0, 1), 1: [1]}, "0:0-1;1:1", "0,1:1;0,2:0;2:0-2"):
        np.testing.assert_array_equal(three(label_sets=given).label_sets, expected)
    everything = three(label_sets=[range(3)] * 3)
    assert everything.label_sets is None and everything.settings == three().settings
    own = three(label_sets="own", objectives={1: "unlabelled"})
    np.testing.assert_array_equal(own.label_sets, [[1, 0, 0], [1, 1, 1], [0, 0, 1]])


def test_all_data_in_one_place_is_of_all_classes():
    assert three(label_sets="own").pooled().label_sets is None


@pytest.mark.parametrize(
    ("label_sets", "why"),
    [
        ([[0], [1]], "the label_sets are for 2 clients, but there are 3"),
        ({3: [0]}, r"label_sets must name clients 0 … 2; check \[3\]"),
        ({2: [2, 3]}, "client 2 the class 3, but classes are 0 … 2"),
        ({2: ["two"]}, "client 2 the class 'two', but classes are 0 … 2"),
        ({2: []}, "label_sets gives client 2 no class"),
        ({1: [0, 2]}, "client 1 has 1[0-9] private samples of class 1, which its label set lacks"),
        ("owm", "cannot read the label sets 'owm'; write own, or clients and their classes"),
        ("0:", "cannot read the label sets '0:'"),
    ],
)
def test_label_sets_that_cannot_be_are_refused(label_sets, why):
    with pytest.raises(mhd.ConfigError, match=why):
        three(label_sets=label_sets)


@pytest.mark.parametrize("name", ["fedavg", "dsgd", "ccl"])
def test_parameters_are_averaged_for_one_label_set_only(name):
    algorithm, batch = mhd.algorithms.ALGORITHMS[name](), batch_within()
    why = "one label set for all, but client 0 knows classes 0, 1 and client 1 classes 1, 2"
    with pytest.raises(mhd.ConfigError, match=why):
        algorithm.init(jax.random.key(0), with_sets(), batch)


def test_parameters_are_averaged_where_all_know_the_same_few_classes():
    alike = with_sets(SETS[[0] * K]).padded(3)  # two more, who do nothing
    np.testing.assert_array_equal(alike.label_sets, SETS[[0] * 6])
    groups.require_one_architecture(alike, "this averages parameters")
