"""Clients that lie, and choices of targets that withstand them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax.core.types import Outputs, Presence
from mhd_jax.engine.prepare import prepare
from mhd_jax.exchange.adversaries import HONEST, KINDS, NUMBERS, Adversaries
from mhd_jax.exchange.selection import Candidates
from mhd_jax.training.groups import all_params
from tests.builders import (
    NUM_CLASSES,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    public_outputs,
    short,
    softmax,
    take_steps,
    thinned,
    tiny_batch,
    tiny_clients,
    with_params,
)

K = 4
COMPLETE = 1 - jnp.eye(K)
ONLY_1_TEACHES_0 = jnp.zeros((K, K)).at[0, 1].set(1)
SIZES = {"eval_every": 3, "batch_size": 4, "public_batch_size": 5}


def learning_from_main_heads(shared, **options):
    """MHD in which one auxiliary head learns from others' main heads, and nothing else does."""
    return mhd.algorithms.mhd(
        num_aux_heads=1,
        include_self=False,
        nu_emb=0.0,
        public_batch="shared" if shared else "independent",
        **options,
    )


def batches_of(shared):
    return [tiny_batch(K, seed=seed, shared=shared) for seed in range(2)]


def test_what_each_kind_sends():
    rng = np.random.default_rng(0)
    kinds = {**NUMBERS, "honest": HONEST}
    logits, earlier = rng.normal(size=(2, len(kinds), 5, 2, NUM_CLASSES)).astype(np.float32)
    density, denser = rng.normal(size=(2, len(kinds), 5, 2)).astype(np.float32)
    outputs = jax.tree.map(jnp.asarray, Outputs(logits, None, density))
    replayed = jax.tree.map(jnp.asarray, Outputs(earlier, None, denser))
    liars = Adversaries(jnp.array(list(kinds.values())), replayed)
    found = liars.sent(outputs)
    sent = dict(zip(kinds, np.asarray(found.logits), strict=True))
    assert np.isnan(sent["nan"]).all() and np.isinf(sent["inf"]).all()
    np.testing.assert_array_equal(sent["constant"].argmax(-1), 0)
    flipped = (logits[KINDS.index("label_flip")].argmax(-1) + 1) % NUM_CLASSES
    np.testing.assert_array_equal(sent["label_flip"].argmax(-1), flipped)
    for kind in ("claim_all", "claim_some"):
        flipped = (logits[KINDS.index(kind)].argmax(-1) + 1) % NUM_CLASSES
        np.testing.assert_array_equal(sent[kind].argmax(-1), flipped)
    for kind in ("constant", "label_flip", "claim_all", "claim_some"):
        assert softmax(sent[kind]).max(-1).min() > 1 - 1e-7
    np.testing.assert_allclose(softmax(sent["uniform"]), 1 / NUM_CLASSES)
    np.testing.assert_array_equal(sent["replay"], earlier[KINDS.index("replay")])
    np.testing.assert_array_equal(sent["honest"], logits[-1])
    claimed = dict(zip(kinds, np.asarray(found.density), strict=True))
    for kind in ("honest", "constant", "uniform", "label_flip"):
        np.testing.assert_array_equal(claimed[kind], density[list(kinds).index(kind)])
    np.testing.assert_array_equal(claimed["replay"], denser[KINDS.index("replay")])
    assert not np.isfinite(claimed["nan"]).any() and not np.isfinite(claimed["inf"]).any()
    assert claimed["claim_all"].min() > 100
    known_least = np.argsort(density[KINDS.index("claim_some")], axis=0)[:2]  # of 5 samples
    claims = np.zeros((5, 2), bool)
    np.put_along_axis(claims, known_least, True, axis=0)
    np.testing.assert_array_equal(claimed["claim_some"] > 100, claims)
    np.testing.assert_array_equal(claimed["claim_some"] < -100, ~claims)
    senders = jnp.array([[3, 0], [4, 5], [6, 1], [7, 8]])  # [students, slots]
    of_senders = jax.tree.map(lambda a: a[senders], outputs)
    assert_trees_equal(
        liars.sent(of_senders, senders), jax.tree.map(lambda a: a[senders], liars.sent(outputs))
    )


@pytest.mark.parametrize("shared", short([True, False], False))
def test_what_is_not_finite_touches_nobody(shared):
    """Bit-equal to the run in which the liar's edges are cut, for itself too; and counted."""
    public_batch = "shared" if shared else "independent"
    algorithm = mhd.algorithms.mhd(public_batch=public_batch, compression="int8")

    def run(kind, graph):
        clients = tiny_clients(K, adversaries={2: kind})
        (*_, state), (*_, metrics) = take_steps(algorithm, clients, graph, batches_of(shared))
        return all_params(state), metrics

    cut, metrics = run("uniform", COMPLETE.at[:, 2].set(0))
    assert not metrics["non_finite"].any()
    for kind in ("nan", "inf"):
        lied, metrics = run(kind, COMPLETE)
        assert_trees_equal(lied, cut)
        np.testing.assert_array_equal(metrics["non_finite"], [1, 1, 0, 1])
        heard = metrics["messages"]["predictions"]
        assert not heard[:, 2].any() and heard.sum() == K


def test_a_message_may_be_bad_where_its_sender_is_not():
    """A teacher that overflows on one student's samples alone."""
    algorithm = mhd.algorithms.mhd(public_batch="independent", num_targets="all", nu_emb=0.0)
    batch = tiny_batch(K, shared=False)
    batch = batch.replace(public_inputs=batch.public_inputs.at[0].multiply(1e15))
    state = algorithm.init(jax.random.key(0), tiny_clients(K), batch)
    state = with_params(state, lambda a: a.at[2].multiply(1e12))
    step = jax.jit(algorithm.train_step)
    masked, metrics = step(state, batch, COMPLETE)
    np.testing.assert_array_equal(metrics["non_finite"], [1, 0, 0, 0])
    assert metrics["messages"]["predictions"].sum() == K * (K - 1)  # it was sent
    cut, _ = step(state, batch, COMPLETE.at[0, 2].set(0))
    assert_trees_close(of_client(masked, 0), of_client(cut, 0), rtol=1e-6)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(of_client(masked, 0)))


@pytest.mark.parametrize("shared", [True, False])
def test_students_learn_from_what_was_sent(shared):
    """Client 0 learns from client 1 alone: its loss against the lie, written out."""
    algorithm, graph = learning_from_main_heads(shared), ONLY_1_TEACHES_0
    before, now = batches_of(shared)
    for kind in ("label_flip", "replay"):
        clients = tiny_clients(K, adversaries={1: kind, 3: "replay"})
        (first, second, after), (_, metrics) = take_steps(algorithm, clients, graph, (before, now))
        if kind == "replay":
            target = softmax(public_outputs(first, before).logits[1, :, 0])
        else:
            samples = now
            if not shared:  # its answers to client 0's samples
                samples = now.replace(
                    public_inputs=now.public_inputs[0], public_indices=now.public_indices[0]
                )
            answers = public_outputs(second, samples).logits[1, :, 0].argmax(-1)
            target = np.eye(NUM_CLASSES)[(answers + 1) % NUM_CLASSES]
        own = public_outputs(second, now).logits[0, :, 1]
        expected = -(target * np.log(softmax(own))).sum(-1).mean()
        np.testing.assert_allclose(metrics["aux_loss"][0], expected, rtol=1e-4)
    if shared:  # liars' own training goes on
        (*_, honest), _ = take_steps(algorithm, tiny_clients(K), graph, (before, now))
        for i in range(1, K):
            assert_trees_equal(of_client(after, i), of_client(honest, i))


def reference(name, said, valid):
    """Targets [P, R, C] of probabilities [N, P, R, C]: loops over samples and heads."""
    said = said[valid]
    count, samples, heads, _ = said.shape
    targets = np.zeros(said.shape[1:])
    confidence = said.max(axis=-1)
    for p, r in np.ndindex(samples, heads):
        each, sure = said[:, p, r], confidence[:, p, r]
        rule = name if name != "robust" else ("relative_confidence" if r == 0 else "median")
        if rule == "median":
            target = np.median(each, axis=0)
        elif rule == "trimmed_mean":
            target = scipy.stats.trim_mean(each, 0.25, axis=0)
        elif rule == "agreement":
            others = [sum(each[n] @ each[k] for k in range(count) if k != n) for n in range(count)]
            target = np.average(each, axis=0, weights=others if count > 1 else None)
        elif rule == "confidence_cap":
            below = sure[sure <= 0.95]
            target = each[np.flatnonzero(sure == (below.max() if below.size else sure.min()))[0]]
        else:
            weights = [
                scipy.stats.percentileofscore(confidence[n, :, r], sure[n], kind="mean") / 100
                for n in range(count)
            ]
            target = np.average(each, axis=0, weights=np.array(weights) ** 8)
        targets[p, r] = target / target.sum()
    return targets


@pytest.mark.parametrize(
    "name",
    ["median", "trimmed_mean", "agreement", "confidence_cap", "relative_confidence", "robust"],
)
def test_robust_choices_equal_a_loop(name, float64):
    select = jax.jit(exchange.TARGET_SELECTIONS[name])
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 6, 8):  # of 8 candidates; the others must not matter
        valid = rng.permutation(8) < count
        logits = rng.normal(size=(8, 6, 2, NUM_CLASSES)) * rng.choice([1, 3, 9], (8, 1, 1, 1))
        logits[:, 3] = logits[:, 2]  # equally sure
        candidates = Candidates(
            jnp.asarray(logits), jnp.asarray(softmax(logits)), None, jnp.asarray(valid)
        )
        targets = np.asarray(select(jax.random.key(0), candidates))
        np.testing.assert_allclose(targets, reference(name, softmax(logits), valid), atol=1e-9)
    nobody = candidates.replace(valid=jnp.zeros(8, bool))
    assert np.isfinite(select(jax.random.key(0), nobody)).all()


def test_a_median_and_a_trimmed_mean_ask_those_who_know_the_class():
    """Most of five clients with label sets say nothing of a class: no vote against it."""
    knows = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    said = knows[:, None, None] * np.random.default_rng(0).random((5, 4, 1, 4))
    said /= said.sum(axis=-1, keepdims=True)
    candidates = Candidates(*map(jnp.asarray, (np.zeros_like(said), said)), None, jnp.ones(5, bool))

    def trimmed(values, axis):
        cut = len(values) // 4
        return np.sort(values, axis)[cut : len(values) - cut].mean(axis)

    for name, middle in (("median", np.median), ("trimmed_mean", trimmed)):
        found = exchange.TARGET_SELECTIONS[name](None, candidates)
        expected = np.zeros((4, 1, 4))
        for c in range(3):
            expected[..., c] = middle(said[knows[:, c] == 1][..., c], axis=0)
        expected /= expected.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_a_summary_tells_honest_clients_apart(tmp_path):
    who = tiny_clients(K, public_fraction=0.3, adversaries={1: "nan", 3: "replay"})
    algorithm = mhd.algorithms.mhd(num_aux_heads=1)
    summary = mhd.simulate("complete", who, algorithm, workdir=tmp_path, steps=6, **SIZES).summary
    each = [client["beta_sh"]["aux_1"] for client in summary["per_client"]]
    assert summary["honest"]["beta_sh"]["aux_1"] == pytest.approx((each[0] + each[2]) / 2)
    assert summary["beta_sh"]["aux_1"] == pytest.approx(np.mean(each))
    assert summary["communication"]["non_finite"] == 6 * (K - 1)
    assert summary["settings"]["clients"]["adversaries"] == {"1": "nan", "3": "replay"}
    assert "aux_1, honest" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("adversaries", "why"),
    [
        ({4: "nan"}, r"adversaries must name clients 0 … 3; check \[4\]"),
        ({2: "liar"}, "client 2 is an unknown adversary 'liar'; choose one of nan, inf"),
        (dict.fromkeys(range(K), "nan"), "nobody is honest"),
    ],
)
def test_adversaries_that_cannot_be_are_refused(adversaries, why):
    with pytest.raises(mhd.ConfigError, match=why):
        tiny_clients(K, adversaries=adversaries)


@pytest.mark.parametrize("name", ["dsgd", "ccl", "fedavg", "distributed_distillation"])
def test_algorithms_that_do_not_know_adversaries_refuse_them(name):
    clients = tiny_clients(K, adversaries={1: "nan", 2: "inf"}, public_fraction=0.3)
    with pytest.raises(mhd.ConfigError, match=rf"{name} does not know adversaries \(client 1, 2\)"):
        prepare("complete", clients, name)
    assert prepare("complete", clients, "supervised").clients.adversaries == {}


DELAYED = [{"pool_size": 2, "pool_refresh": 1}, {"teacher_delay": 1}]


@pytest.mark.parametrize("shared", thinned([True, False], 2))
@pytest.mark.parametrize("delay", DELAYED, ids=["pool", "delay"])
def test_liars_snapshots_lie_too(delay, shared):
    """Client 0 learns from client 1 alone, whose snapshots say what nobody believes, or all alike."""
    algorithm = learning_from_main_heads(shared, **delay)
    batches = batches_of(shared)

    def run(kind, graph=ONLY_1_TEACHES_0):
        clients = tiny_clients(K, adversaries={1: kind})
        (_, before, after), (_, metrics) = take_steps(algorithm, clients, graph, batches)
        return before, all_params(after), metrics

    before, _, metrics = run("uniform")
    own = public_outputs(before, batches[1]).logits[0, :, 1]
    expected = -np.log(softmax(own)).mean(-1).mean()
    np.testing.assert_allclose(metrics["aux_loss"][0], expected, rtol=1e-4)
    _, lied, metrics = run("nan")
    _, cut, _ = run("uniform", jnp.zeros((K, K)))
    assert_trees_equal(lied, cut)
    np.testing.assert_array_equal(metrics["non_finite"], [1, 0, 0, 0])


@pytest.mark.parametrize("delay", DELAYED, ids=["pool", "delay"])
def test_snapshots_cannot_replay(delay):
    clients = tiny_clients(K, adversaries={0: "nan", 2: "replay"})
    algorithm = mhd.algorithms.mhd(**delay)
    with pytest.raises(mhd.ConfigError, match="client 2 replays what it sent at the step before"):
        algorithm.init(jax.random.key(0), clients, tiny_batch(K))


def without_class(label, clients, of):
    """Clients of which one lacks a class in its label set."""
    sets = np.ones((K, NUM_CLASSES), bool)
    sets[of, label] = False
    return dataclasses.replace(clients, label_sets=sets)


def test_a_lie_outside_a_label_set_says_nothing():
    """All of "constant" is outside: client 0 learns as from one that finds its classes alike."""
    algorithm = mhd.algorithms.mhd(num_aux_heads=1, include_self=False, nu_emb=0.0)
    batch = tiny_batch(K)

    def run(kind):
        clients = without_class(0, tiny_clients(K, adversaries={1: kind}), of=1)
        states, _ = take_steps(algorithm, clients, ONLY_1_TEACHES_0, [batch])
        return all_params(states[-1])

    constant, uniform, flipped = map(run, ("constant", "uniform", "label_flip"))
    assert_trees_equal(constant, uniform)
    assert not np.allclose(constant[0]["heads"]["kernel"], flipped[0]["heads"]["kernel"])


@pytest.mark.parametrize(("away", "sets"), [(False, False), (True, False), (True, True)])
def test_fedmd_counts_and_hears_who_can_be_reached(away, sets):
    """Clients 1 and 2 send what is not finite; where 2 is away, 1 is heard but does not train."""
    algorithm = mhd.algorithms.fedmd(digest_steps=1, revisit_steps=1)
    batch, step = tiny_batch(K), jax.jit(algorithm.train_step)
    if away:
        there = jnp.array([[1, 0, 0, 1], [1, 1, 0, 1]], bool)
        batch = batch.replace(presence=Presence(*there))

    def run(liars, silent=()):
        clients = tiny_clients(K, adversaries=liars)
        clients = without_class(2, clients, of=3) if sets else clients
        state = algorithm.init(jax.random.key(0), clients, batch)
        speaks = state.extra["speaks"].at[jnp.array(silent, int)].set(0)
        after, metrics = step(
            state.replace(extra={**state.extra, "speaks": speaks}), batch, COMPLETE
        )
        return all_params(after), metrics["non_finite"]

    silent, none = run({1: "uniform", 2: "replay"}, silent=[1, 2])
    assert not none.any()
    for kinds in (("nan", "inf"), ("inf", "nan")):
        lied, counted = run(dict(zip((1, 2), kinds, strict=True)))
        np.testing.assert_array_equal(counted, [0, 1, not away, 0])
        assert_trees_equal(lied, silent)
    believed, _ = run({1: "label_flip", 2: "nan"})
    assert not np.allclose(believed[0]["heads"]["kernel"], silent[0]["heads"]["kernel"])


def test_who_has_no_labels_listens_to_fedmds_consensus_alone():
    algorithm = mhd.algorithms.fedmd(digest_steps=1, revisit_steps=1)
    batch, step, after = tiny_batch(K), jax.jit(algorithm.train_step), []
    for objectives, weights in (({2: "unlabelled"}, None), ("supervised", [1.0, 1, 0, 1])):
        clients = tiny_clients(K, objectives=objectives)
        state = algorithm.init(jax.random.key(0), clients, batch)
        if weights is not None:
            state = state.replace(extra={**state.extra, "speaks": jnp.array(weights)})
        moved, metrics = step(state, batch, COMPLETE)
        np.testing.assert_array_equal(metrics["messages"]["predictions"], [2, 2, 1, 2])
        kernels = [all_params(each)[0]["heads"]["kernel"] for each in (state, moved)]
        assert (kernels[0] != kernels[1]).any(axis=(1, 2, 3)).all()
        after.append(all_params(moved))
    assert_trees_equal(*after)


@pytest.mark.slow
def test_who_is_away_says_nothing_that_could_be_replayed():
    """And faults do not hide what was not finite."""
    kinds = jnp.array([HONEST, NUMBERS["replay"]])
    liars = Adversaries(kinds, Outputs(jnp.zeros((2, 1, 1, 2)), None))
    said = Outputs(jnp.ones((2, 1, 1, 2)), None)
    away = liars.after(said, jnp.array([True, False])).sent(said).logits
    assert away[0].all() and not away[1].any()
    who = tiny_clients(K, public_fraction=0.3, adversaries={1: "nan"})
    algorithm = mhd.algorithms.fedmd(digest_steps=1, revisit_steps=1)
    faults = mhd.Faults(stragglers={1: 8})
    found = mhd.simulate("complete", who, algorithm, steps=8, faults=faults, **SIZES)
    assert found.summary["communication"]["non_finite"] == 4
