"""Density ratios: what receivers make of claims, how much knowledge counts, what crosses an edge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax.core.types import Presence
from mhd_jax.exchange import density
from mhd_jax.exchange.density import Density
from mhd_jax.exchange.selection import Candidates
from mhd_jax.exchange.teachers import Teachers
from tests.builders import (
    NUM_CLASSES,
    PLAIN_SGD,
    softmax,
    take_steps,
    tiny_batch,
    tiny_clients,
)

K = 5
CHAIN = jnp.eye(K, k=1) + jnp.eye(K, k=-1)
STAR = jnp.zeros((K, K)).at[0, 1:].set(1).at[1:, 0].set(1)
USUAL = Density(
    *(1.0, "clients", 8.0, True, "none", "stopped"),
    samples_teachers=False,
)
SIZES = {"steps": 4, "eval_every": 4, "batch_size": 4, "public_batch_size": 6, "progress": False}


def weighted(**options):
    return mhd.algorithms.mhd(
        **{"num_targets": "all", "target_selection": "density_ratio", "nu_emb": 0.0, **options}
    )


def stepped(algorithm, graph, steps, clients=None):
    batches = [tiny_batch(K, seed=seed) for seed in range(steps)]
    (*_, last), metrics = take_steps(algorithm, clients or tiny_clients(K), graph, batches)
    return last, metrics


def test_no_sender_can_claim_much_of_many_samples(float64):
    """Markov's inequality, for any claims; and honest ratios, whose mean is at most 1, stay."""
    rng = np.random.default_rng(0)
    claims = rng.normal(size=(30, 50, 2)) * rng.choice([0.1, 1, 4, 1e3], (30, 1, 1))
    claims[0], claims[1] = 1e3, -1e3
    read = np.asarray(USUAL.read(jnp.asarray(claims), None))
    ratios = np.exp(read)
    assert (ratios.mean(axis=1) <= 1 + 1e-9).all()
    for most in (1.5, 2, 5, 20):
        assert ((ratios > most).mean(axis=1) <= 1 / most).all()
    clipped = np.clip(claims, -8, 8)
    assert (read <= clipped + 1e-9).all()  # nothing is scaled up
    honest = np.exp(clipped).mean(axis=1, keepdims=True) <= 1
    assert honest.any() and not honest.all()
    np.testing.assert_allclose(np.where(honest, read, 0), np.where(honest, clipped, 0), atol=1e-9)


def test_caps_and_believing_everything(float64):
    claims = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 2)) * 9)
    believed = dataclasses.replace(USUAL, divides=False).read(claims, None)
    np.testing.assert_allclose(believed, np.clip(claims, -8, 8))
    capped = dataclasses.replace(USUAL, divides=False).read(claims, jnp.array([1.0, 4.0, 20.0]))
    np.testing.assert_allclose(np.exp(capped).max(axis=(1, 2)), [1, 4, 20])
    shares = dataclasses.replace(USUAL, cap="shares").start(tiny_clients(K), 2)["most"]
    samples = tiny_clients(K).labelled_counts().sum(axis=1)
    np.testing.assert_allclose(shares, samples.sum() / samples)


def made_candidates(rng, valid, num_ranks=2):
    logits = rng.normal(size=(6, 5, num_ranks, NUM_CLASSES))
    return Candidates(
        *map(jnp.asarray, (logits, softmax(logits))),
        *(None, jnp.asarray(valid)),
        density=jnp.asarray(np.where(valid[:, None, None], rng.normal(size=(6, 5, num_ranks)), 0)),
        counts=jnp.asarray(np.where(valid[:, None], rng.integers(1, 9, (6, num_ranks)), 0.0)),
    )


def test_selections_equal_a_loop(float64):
    rng = np.random.default_rng(0)
    for number in (1, 2, 4, 6):
        c = made_candidates(rng, np.arange(6) < number)
        weights = np.asarray(c.counts)[:, None] * np.exp(c.density)
        p = np.asarray(c.probabilities)
        mean, best = np.zeros((5, 2, NUM_CLASSES)), np.zeros((5, 2, NUM_CLASSES))
        for x in range(5):
            for r in range(2):
                w = weights[:number, x, r]
                mean[x, r] = (w[:, None] * p[:number, x, r]).sum(axis=0) / w.sum()
                best[x, r] = p[w.argmax(), x, r]
        selections = exchange.TARGET_SELECTIONS
        np.testing.assert_allclose(selections["density_ratio"](None, c), mean, atol=1e-12)
        np.testing.assert_allclose(selections["densest"](None, c), best, atol=1e-12)
        robust = np.asarray(selections["density_robust"](None, c))
        np.testing.assert_allclose(robust[:, 0], mean[:, 0], atol=1e-12)
        median = np.asarray(selections["median"](None, c))
        np.testing.assert_allclose(robust[:, 1], median[:, 1], atol=1e-12)
        total = np.asarray(c.counts)[:number].sum(axis=0)
        expected = np.log(weights[:number].sum(axis=0) / total)
        np.testing.assert_allclose(density.log_mixture(c), expected, atol=1e-12)
    nobody = made_candidates(rng, np.zeros(6, bool))
    for name in ("density_ratio", "densest", "density_robust"):
        assert not np.asarray(exchange.TARGET_SELECTIONS[name](None, nobody))[:, 0].any()
    assert np.isfinite(density.log_mixture(nobody)).all()


def test_the_weighted_mean_is_the_posterior_of_the_mixture(float64):
    """Bayes: for densities and posteriors of Gaussian classes that are known exactly."""
    rng = np.random.default_rng(0)
    xs, means = rng.normal(size=40) * 2, np.array([-2.0, 0.0, 2.0])
    priors = rng.dirichlet(np.ones(3), size=4)  # of 4 clients
    normal = np.exp(-((xs[:, None] - means) ** 2) / 2)  # [P, C], up to a constant
    joint = priors[:, None] * normal  # [N, P, C]
    densities, posteriors = joint.sum(axis=-1), joint / joint.sum(axis=-1, keepdims=True)
    counts = np.array([1.0, 3.0, 2.0, 5.0])
    c = Candidates(
        *map(jnp.asarray, (np.log(posteriors)[:, :, None], posteriors[:, :, None])),
        *(None, jnp.ones(4, bool)),
        density=jnp.asarray(np.log(densities / normal.sum(axis=-1)))[:, :, None],
        counts=jnp.asarray(counts)[:, None],
    )
    pooled = np.einsum("n,npc->pc", counts, joint)
    expected = pooled / pooled.sum(axis=-1, keepdims=True)
    found = exchange.TARGET_SELECTIONS["density_ratio"](None, c)
    np.testing.assert_allclose(np.asarray(found)[:, 0], expected, atol=1e-12)


@pytest.mark.parametrize("own", ["same_rank", "main"])
def test_counts_are_numbers_of_walks(own):
    """Lazy walks of length k, or walks of length up to k."""
    after, _ = stepped(weighted(num_aux_heads=3, own_candidate=own), CHAIN, steps=3)
    walks, neighbours = [np.ones(K)], np.asarray(CHAIN)
    for _ in range(3):
        walks.append(neighbours @ walks[-1] + (walks[-1] if own == "same_rank" else 1))
    np.testing.assert_array_equal(after.extra["counts"], np.stack(walks, axis=1))


@pytest.mark.parametrize("size", [2, 7])
def test_a_pool_stands_for_all_neighbours(size):
    """Of whom it holds some, or some more than once."""
    after, _ = stepped(weighted(num_aux_heads=1, pool_size=size), 1 - jnp.eye(K), steps=1)
    np.testing.assert_allclose(after.extra["counts"], [[1, K]] * K)


@pytest.mark.slow
def test_who_is_away_keeps_its_counts_and_who_has_no_labels_claims_nothing():
    clients = tiny_clients(K, objectives={2: "unlabelled"})
    presence = Presence(jnp.arange(K) != 0, jnp.ones(K, bool))
    batch = tiny_batch(K).replace(presence=presence)
    batch = batch.replace(mask=batch.mask.at[2].set(0))
    (_, after), _ = take_steps(weighted(num_aux_heads=2), clients, CHAIN, [batch])
    counts = np.asarray(after.extra["counts"])
    np.testing.assert_array_equal(counts[:, 0], [1, 1, 0, 1, 1])
    np.testing.assert_array_equal(counts[:, 1], [0, 2, 2, 2, 2])  # 1 and 3 have each other's none
    np.testing.assert_array_equal(counts[:, 2], 0)  # of whom nobody knew anything before


def test_counts_of_liars_are_cut_to_what_walks_could_bring():
    liars = tiny_clients(K, adversaries={1: "claim_all"})
    algorithm = weighted(num_aux_heads=2)
    state = algorithm.init(jax.random.key(0), liars, tiny_batch(K))
    counts = jnp.asarray([[1, 5, 9], [1, 2, 6], [1, 2, 6], [1, 2, 6], [1, 2, 6.0]])
    state = state.replace(extra={**state.extra, "counts": counts})
    teachers = Teachers(jnp.array([[1, 2]]), jnp.array([[True, True]]))
    for graph, most in ((CHAIN, 3), (STAR, K), (CHAIN, K)):  # as many as there have been
        state = USUAL.met(state, teachers, graph)
        claimed = USUAL.counts_of(state, teachers, graph)[0]
        np.testing.assert_array_equal(claimed, [[1, most, most**2], [1, 2, 6]])


@pytest.mark.slow
def test_few_teachers_stand_for_all_neighbours(float64):
    """The mean over draws of a step's mixture is the mixture of all, on a regular graph."""
    sampled = dataclasses.replace(USUAL, samples_teachers=True)
    algorithm = weighted(num_aux_heads=1)
    state = algorithm.init(jax.random.key(0), tiny_clients(K), tiny_batch(K))
    complete = 1 - jnp.eye(K)
    ratios = np.random.default_rng(0).gamma(1.0, size=(K, 6))
    mixtures = []
    for drawn in range(1, K):  # by client 0, each equally often
        teachers = Teachers(jnp.array([[drawn]] * K), jnp.ones((K, 1), bool))
        counts = sampled.counts_of(state, teachers, complete)[0, :, 0]
        weights = [1.0, float(counts[0])]
        mixtures.append((ratios[0] + weights[1] * ratios[drawn]) / sum(weights))
        assert weights[1] == K - 1
    np.testing.assert_allclose(np.mean(mixtures, axis=0), ratios.mean(axis=0), rtol=1e-12)
    # The loss of a step is least where exp d is the step's ratio, and that of many at their mean.
    d = jnp.log(jnp.asarray(ratios.mean(axis=0)))[:, None]

    def loss(d):
        def of_step(ratio):
            one = Candidates(
                *(jnp.zeros((1, 6, 1, 2)), jnp.full((1, 6, 1, 2), 0.5), None, jnp.ones(1, bool)),
                density=jnp.log(jnp.asarray(ratio))[None, :, None],
                counts=jnp.ones((1, 1)),
            )
            return sampled._towards(d, one)

        return sum(map(of_step, mixtures))

    np.testing.assert_allclose(jax.grad(loss)(d), 0, atol=1e-12)


@pytest.mark.slow
def test_bytes_of_densities_and_counts_are_counted():
    """P · m · (C + 1) numbers and m counts cross an edge in a step."""
    clients = tiny_clients(K, public_fraction=0.3)
    found = mhd.simulate("ring", clients, weighted(num_aux_heads=2), **SIZES)
    communication = found.summary["communication"]
    edges = 4 * 2 * K
    numbers = {"logits": 6 * 2 * NUM_CLASSES, "density": 6 * 2, "counts": 2}
    assert communication["by_type"] == {kind: 4 * n * edges for kind, n in numbers.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"algorithm": {"pool_size": 2, "pool_refresh": 2, "num_targets": 2}},
        {"algorithm": {"teacher_delay": 2, "compression": "int8", "density_cap": "shares"}},
        {"algorithm": {"public_batch": "independent", "num_targets": 1}, "label_sets": "own"},
        {"algorithm": {"compression": "float16"}, "adversaries": {0: "nan", 3: "claim_some"}},
        {"algorithm": {"compression": "top_2"}, "model": ["mlp_small"] * 2 + ["mlp"] * 3},
        {
            "algorithm": {"own_candidate": "main", "ensembles": 2, "average_every": 2},
            "topology": "random_matching",
            "num_clients": 4,
        },
    ],
)
def test_runs_of_every_kind_stay_finite(how):
    how = dict(how)
    algorithm = weighted(num_aux_heads=2, **how.pop("algorithm"))
    topology, count = how.pop("topology", "ring"), how.pop("num_clients", K)
    model = how.pop("model", None)
    clients = tiny_clients(count, model, PLAIN_SGD, public_fraction=0.3, **how)
    faults = mhd.Faults(link_loss=0.3, offline=0.3, offline_steps=1)
    found = mhd.simulate(topology, clients, algorithm, faults=faults, **SIZES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.state.groups))
    assert np.isfinite(found.history[-1]["train"]["density_loss"])


@pytest.mark.slow
def test_users_rules_are_told_who_the_candidates_are():
    """A rule that follows client 2 alone, and at other steps all, by density."""

    def follow_2(key, c):
        weights = (
            jnp.where(c.step < 1, c.clients == 2, True)[:, None, None] & c.valid[:, None, None]
        )
        weights = (
            weights * jnp.exp(c.density) * jnp.where(c.clients == c.client, 0.5, 1)[:, None, None]
        )
        total = weights.sum(axis=0)
        shares = weights / jnp.where(total > 0, total, 1)
        # Whoever has nobody to follow learns that all classes are alike.
        alike = jnp.where(total > 0, 0.0, 1 / NUM_CLASSES)[..., None]
        return jnp.einsum("npr,nprc->prc", shares, c.probabilities) + alike

    clients = tiny_clients(K)
    algorithm = weighted(target_selection=follow_2, density_weight=1.0, num_aux_heads=1)
    after, (first, second) = stepped(algorithm, CHAIN, 2, clients)
    followed = np.asarray(first["diagnostics"]["followed"])[:, :, 0]
    assert (followed[[1, 2, 3], 2] == 1).all()
    assert (np.asarray(second["diagnostics"]["followed"])[2, [1, 3], 0] > 0).all()
    assert np.isfinite(after.extra["counts"]).all()
    with pytest.raises(mhd.ConfigError, match="no density ratios; set density_weight"):
        blind = mhd.algorithms.mhd(target_selection=lambda key, c: exchange.density_ratio(key, c))
        stepped(blind, CHAIN, 1, clients)


@pytest.mark.slow
def test_private_samples_alone_are_not_augmented():
    """Density ratios would tell samples by that."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    data = mhd.data.arrays(images, np.arange(40) % 4)
    clients = mhd.make_clients(data, 2, "mlp_small", partition="iid", public_fraction=0.3)
    how = {"algorithm": weighted(), "augmentation": "flip", **SIZES}
    with pytest.raises(mhd.ConfigError, match="set augment_public"):
        mhd.simulate("complete", clients, **how)
    mhd.simulate("complete", clients, augment_public=True, **how)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"density_weight": 0.0}, "density_weight must be positive"),
        ({"density_weights": "classes"}, "density_weights must be one of clients, samples"),
        ({"density_gradient": "on"}, "density_gradient must be one of stopped, flowing"),
        ({"density_clip": 0.0}, "density_clip must be above 0"),
        ({"density_cap": 0.5}, "density_cap must be 'none', 'shares' or a number of at least 1"),
        ({"density_cap": "half"}, "density_cap must be 'none', 'shares' or a number"),
        ({"same_level": True}, "leave out same_level"),
        ({"nu_aux": 0.0}, "let nu_aux .* be positive"),
        ({"own_candidate": "mine"}, "own_candidate must be one of same_rank, main"),
    ],
)
def test_options_that_cannot_be_are_refused(options, why):
    with pytest.raises(mhd.ConfigError, match=why):
        weighted(**options)
