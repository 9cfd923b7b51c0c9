"""Clients that learn numbers: losses, gradients and scores against NumPy, and what is refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from tests.builders import (
    FEATURES,
    Linear,
    of_client,
    public_outputs,
    short,
    take_steps,
    thinned,
    tiny_batch,
)

K, D = 4, 2
COMPLETE = (1 - np.eye(K)).astype(np.float32)
A = mhd.algorithms
SGD_OF_1 = optax.sgd(1.0)  # one object, so that equal programs compile once


def numbers_of(inputs):
    """Two numbers of each sample, of unlike sizes."""
    return np.stack([50 + 4 * inputs[:, 0] - inputs[:, 1], inputs[:, 2] / 100], axis=1)


def dataset(num_samples=120, seed=0, **options):
    inputs = np.random.default_rng(seed).normal(size=(num_samples, FEATURES)).astype(np.float32)
    return mhd.data.arrays(inputs, numbers_of(inputs), regression=True, **options)


def made_clients(**options):
    return mhd.make_clients(dataset(), K, Linear(), **{"public_fraction": 0.2, **options})


def batch_of_numbers(seed=0):
    batch = tiny_batch(K, seed=seed)
    numbers = np.random.default_rng(seed).normal(size=(*batch.labels.shape, D))
    return batch.replace(labels=jnp.asarray(numbers, jnp.float32))


def one_step(algorithm, seed=0):
    batch = batch_of_numbers(seed)
    clients = made_clients().with_defaults(SGD_OF_1)
    (before, after), (metrics,) = take_steps(algorithm, clients, COMPLETE, [batch])
    return batch, before, after, metrics


def moved(before, after, i):
    """By how much a client's heads were moved at learning rate 1: their gradient."""
    return np.asarray(
        of_client(before, i)["heads"]["kernel"] - of_client(after, i)["heads"]["kernel"]
    )


def private_gradient(batch, params, i):
    """Of ½ mean_x mean_d (z_d − y_d)², at a main head's kernel."""
    embedding = np.asarray(batch.inputs[i]) @ params["backbone"]["Dense_0"]["kernel"]
    z = embedding @ params["heads"]["kernel"][0] + params["heads"]["bias"][0]
    mask = np.asarray(batch.mask[i])[:, None]
    return embedding.T @ (mask * (z - np.asarray(batch.labels[i]))) / D / mask.sum()


def weights_of(selection, said, i):
    """What each candidate's main head counts for client i, [K, P, D], to be divided by its sum."""
    z = said.logits[:, :, 0]
    if selection == "median":
        rank = np.argsort(np.argsort(z, axis=0, kind="stable"), axis=0)
        return (rank == (K - 1) // 2) * 1.0 + (rank == K // 2)
    if selection == "density_ratio":
        return np.exp(said.density[:, :, 0])[..., None]
    return np.ones_like(z)


@pytest.mark.parametrize("selection", thinned(["mean", "median", "density_ratio"], 3))
def test_heads_learn_by_squared_errors(selection):
    """Head 1 learns the candidates' numbers, weighted as the selection says, the main head its own."""
    nu = 0.7
    algorithm = A.mhd(
        num_aux_heads=1, num_targets="all", nu_aux=nu, nu_emb=0.0, target_selection=selection
    )
    batch, before, after, metrics = one_step(algorithm)
    said = public_outputs(before, batch)
    for i in range(K):
        weights = weights_of(selection, said, i)
        target = (weights * said.logits[:, :, 0]).sum(axis=0) / weights.sum(axis=0)
        own, count = said.logits[i, :, 1], said.logits.shape[1]
        aux = nu * said.embeddings[i].T @ (own - target) / D / count
        found = moved(before, after, i)
        np.testing.assert_allclose(found[1], aux, rtol=1e-3, atol=1e-6)
        main = private_gradient(batch, of_client(before, i), i)
        np.testing.assert_allclose(found[0], main, rtol=1e-3, atol=1e-6)
        loss = np.square(own - target).mean() / 2
        np.testing.assert_allclose(metrics["aux_loss"][i], loss, rtol=1e-4)


def test_distributed_distillation_averages_numbers():
    batch, before, after, metrics = one_step(A.distributed_distillation(rho=0.5))
    batch = batch.replace(public_indices=jnp.arange(7))
    said = public_outputs(before, batch)
    estimates = np.asarray(before.extra["estimates"])
    assert estimates.shape == (K, made_clients().num_public, D)
    gap = said.logits[:, :, 0] - estimates[:, :1]  # the tiny batch has sample 0 alone
    expected = np.square(gap).sum(axis=-1).mean(axis=-1) / 2
    np.testing.assert_allclose(metrics["public_loss"], expected, rtol=1e-4)
    tracked = np.asarray(after.extra["estimates"]).sum(axis=0)
    decided = np.asarray(after.extra["previous_decisions"]).sum(axis=0)
    np.testing.assert_allclose(tracked, decided, rtol=1e-4, atol=1e-5)


def test_scores_are_explained_variance_and_predictions_have_their_units():
    data = dataset()
    metrics = {"rmse": mhd.metrics.root_mean_squared_error, "mae": mhd.metrics.mean_absolute_error}
    clients = mhd.make_clients(data, K, Linear(), public_fraction=0.2, validation_fraction=0.1)
    sizes = {"steps": 40, "batch_size": 16, "public_batch_size": 16}
    algorithm = A.naive(target_selection="mean")
    result = mhd.simulate("ring", clients, algorithm, **sizes, metrics=metrics)
    train, test = data.numbers.train, data.numbers.test
    said = result.predict(data.test_inputs)[:, :, 0]  # [K, N, D]
    np.testing.assert_allclose(said[1], result.client(1).predict(data.test_inputs), rtol=1e-5)
    scores = 1 - np.square((said - test) / train.std(axis=0)).mean(axis=-1)  # [K, N]
    by_range = np.stack([scores[:, data.test_labels == c].mean(axis=1) for c in range(10)], axis=1)
    found = result.summary
    each = [client["beta_sh"]["main"] for client in found["per_client"]]
    np.testing.assert_allclose(each, by_range.mean(axis=1), rtol=1e-4)
    shares = clients.label_counts() / clients.label_counts().sum(axis=1, keepdims=True)
    each = [client["beta_priv"]["main"] for client in found["per_client"]]
    np.testing.assert_allclose(each, (by_range * shares).sum(axis=1), rtol=1e-4)
    rmse = np.sqrt(np.square(said - test).mean(axis=(1, 2)))
    np.testing.assert_allclose(
        [client["metrics"]["rmse"]["main"] for client in found["per_client"]], rmse, rtol=1e-4
    )
    assert found["beta_sh"]["main"] > 0.9  # the numbers are linear in the inputs
    assert [target["name"] for target in found["data"]["targets"]] == ["target_0", "target_1"]


@pytest.mark.slow
@pytest.mark.parametrize("how", short(["host", "chunks"], "host"))
def test_a_run_is_the_same_streamed_and_in_chunks(how):
    settings = {"steps": 4, "eval_every": 2, "batch_size": 4, "public_batch_size": 4}
    other = {"data_placement": "host"} if how == "host" else {"client_chunk": 1}
    plain, same = (
        mhd.simulate(
            "ring", made_clients(), A.naive(target_selection="mean"), **settings, **options
        )
        for options in ({}, other)
    )
    for one, two in zip(plain.history, same.history, strict=True):
        assert one["beta_sh"] == pytest.approx(two["beta_sh"], rel=1e-5)


def test_ranges_take_the_place_of_classes():
    data = dataset(num_classes=4, class_names=["price", "size"])
    assert (
        data.num_classes == 4 and data.num_outputs == 2 and data.numbers.names == ("price", "size")
    )
    first, labels = data.numbers.train[:, 0], data.labels
    assert np.ptp(np.bincount(labels)) <= 2
    assert all(first[labels == c].max() <= first[labels == c + 1].min() for c in range(3))
    assert data.class_names[0].startswith("below ") and data.class_names[3].startswith("from ")
    np.testing.assert_allclose(data.targets.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.targets.std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(data.task.in_own_units(data.targets), data.numbers.train, rtol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_targets_that_are_nearly_all_one_number_have_two_ranges(sign):
    targets = sign * np.maximum(np.arange(100.0) - 94, 0)  # 95 zeros, and 1 … 5
    data = mhd.data.arrays(np.zeros((100, 3), np.float32), targets, regression=True)
    assert data.num_classes == 2
    np.testing.assert_array_equal(data.labels == (sign == 1), data.numbers.train[:, 0] != 0)


@pytest.mark.parametrize(
    ("targets", "options", "count"),
    [
        (np.arange(15.0) ** 2, {}, 3),  # as many as there are test samples
        (np.repeat([0.0, 1.0, 2.0], [50, 1, 50]), {}, 2),
        (np.arange(19.0), {"num_classes": 8, "test_fraction": 0.5}, 8),
        (np.arange(46.0), {}, 10),
        (np.arange(45.0), {}, 9),
    ],
)
def test_ranges_are_as_many_as_a_test_split_can_hold(targets, options, count, tmp_path):
    data = mhd.data.arrays(targets[:, None], targets, regression=True, **options)
    assert len(data.class_names) == count
    assert (np.bincount(data.labels) > 0).all() and len(np.unique(data.test_labels)) > 1
    if not options:
        lines = ["x,y", *(f"{target},{target}" for target in targets)]
        (tmp_path / "t.csv").write_text("\n".join(lines))
        table = mhd.data.load(tmp_path / "t.csv", label="y", regression=True)
        np.testing.assert_array_equal(table.numbers.test, data.numbers.test)


REFUSED = {
    "confidence": (A.mhd(), {}),
    "agreement": (A.naive(target_selection="agreement"), {}),
    "temperature": (A.mhd(target_selection="mean", temperature=2.0), {}),
    "calibrate_every": (A.mhd(target_selection="mean", calibrate_every=5), {}),
    "top_K": (A.mhd(target_selection="mean", compression="top_2"), {}),
    "mae": (A.fedmd(digest_loss="kl"), {}),
    "averages of probabilities": (A.ds_fl(), {}),
    "one-hot": (A.selective_fd(), {}),
    "most probable class": (A.idkd(), {}),
    "means of classes": (A.fedproto(), {}),
    "features by class": (A.ccl(), {}),
    "label_flip": (A.naive(target_selection="mean"), {"adversaries": {1: "label_flip"}}),
    "label_sets": ("isolated", {"label_sets": "own"}),
    "metric macro_f1": ("isolated", {}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_classes_says_so(what):
    algorithm, options = REFUSED[what]
    metrics = {"macro_f1": mhd.metrics.macro_f1} if what == "metric macro_f1" else None
    with pytest.raises(mhd.ConfigError, match=what):
        mhd.simulate(
            "ring", made_clients(**options), algorithm, steps=1, batch_size=4, metrics=metrics
        )


def test_a_users_algorithm_says_that_it_learns_numbers():
    isolated = A.isolated()
    own = dataclasses.replace(isolated, factory=None, name="own", needs_classes="it counts classes")
    with pytest.raises(mhd.ConfigError, match=r"own cannot learn numbers.*it counts classes"):
        mhd.simulate("ring", made_clients(), own, steps=1, batch_size=4)
    own = dataclasses.replace(own, needs_classes="")
    assert (
        mhd.simulate("ring", made_clients(), own, steps=1, batch_size=4).summary["algorithm"]
        == "own"
    )


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (np.full(20, 1.5), {}, "two ranges"),
        (np.array([np.nan, *range(19)]), {}, "sample 0"),
        (np.array(list("ab" * 10)), {}, "numbers"),
        (np.arange(20.0), {"num_classes": 1}, "two ranges"),
        (np.arange(20.0), {"class_names": ["a", "b"]}, "2 class_names"),
        (np.arange(20.0), {"class_names": 5}, "list of names, not 5"),
        (np.arange(20.0), {"num_classes": -3}, "num_classes must be .* not -3"),
        ([[1.0]] * 19 + [[1.0, 2.0]], {}, "labels of a regression must be numbers"),
        (np.arange(20.0) * 1e39, {}, "beyond 3.4e"),
    ],
)
def test_unsuitable_targets_are_refused(labels, options, words):
    inputs = np.zeros((20, 3), np.float32)
    with pytest.raises(mhd.ConfigError, match=words):
        mhd.data.arrays(inputs, labels, regression=True, **options)


def test_a_table_has_numbers_to_predict(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 2))
    lines = [f"{a:.4f},{b:.4f},{3 * a - b + 20:.4f}" for a, b in rows]
    path = tmp_path / "houses.csv"
    path.write_text("\n".join(["rooms,age,price", *lines]))
    with pytest.raises(mhd.ConfigError, match="regression=True"):
        mhd.data.load(path, label="price")
    data = mhd.data.load(path, label="price", regression=True)
    assert data.numbers.names == ("price",) and data.feature_names == ("rooms", "age")
    both = np.concatenate([data.numbers.train, data.numbers.test])
    assert len(data.numbers.test) == 12 and 18 < both.mean() < 22
    stored = np.asarray(data.inputs)
    np.testing.assert_allclose(
        3 * stored[:, 0] - stored[:, 1] + 20, data.numbers.train[:, 0], atol=1e-3
    )
    jax.tree.map(
        np.testing.assert_array_equal, data.targets, data.task.standardised(data.numbers.train)
    )


def test_nothing_is_learned_where_nobody_knows_anything():
    """With density ratios: heads stay as they are, and are not pulled to the number 0."""
    who = made_clients(objectives={1: "unlabelled", 2: "unlabelled", 3: "unlabelled"})
    algorithm = A.mhd(
        num_aux_heads=2, num_targets="all", target_selection="density_ratio", nu_emb=0
    )
    chain = np.diag(np.ones(K - 1), 1) + np.diag(np.ones(K - 1), -1)
    labelled = jnp.asarray(who.learns_labels)[:, None]
    batches = [
        batch.replace(mask=batch.mask * labelled) for batch in map(batch_of_numbers, range(3))
    ]
    states, _ = take_steps(
        algorithm, who.with_defaults(SGD_OF_1), chain.astype(np.float32), batches
    )
    for before, after in itertools.pairwise(states):
        known = np.asarray(after.extra["counts"])
        still = np.array([~moved(before, after, i).any(axis=(1, 2)) for i in range(K)])
        # Who is k steps from the only labels knows in its k-th head and those above.
        np.testing.assert_array_equal(still[1:, 1:], known[1:, 1:] == 0)
        assert still[2:, 0].all()  # no neighbour of theirs has labels to relay
    assert (known[3] == 0).all() and (known[1:] > 0).any()


def test_a_users_selection_may_return_any_numbers():
    def shrunk(key, candidates):
        kept = jnp.where(candidates.valid[:, None, None, None], candidates.probabilities, 0)
        return 0.9 * kept.sum(axis=0) / jnp.maximum(candidates.valid.sum(), 1)

    _, before, after, _ = one_step(A.mhd(target_selection=shrunk, num_targets="all", nu_emb=0))
    assert moved(before, after, 0)[1].any()
