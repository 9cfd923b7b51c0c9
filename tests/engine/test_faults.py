"""Lost links, clients that are away, slow, late or gone, and clients that diverge."""

import dataclasses
import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.data.batching import draw_batch
from mhd_jax.engine import faults
from mhd_jax.engine import steps as engine
from mhd_jax.engine.faults import Faults
from mhd_jax.engine.prepare import prepare
from tests.builders import (
    Linear,
    SignalAt,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    short,
    tiny_dataset,
    with_params,
)

SETTINGS = {
    "steps": 12,
    "eval_every": 6,
    "batch_size": 4,
    "public_batch_size": 8,
    "on_nonfinite": "quarantine",
}
SYMMETRIC = {"mixing": "metropolis_hastings"}
OWN = {
    "dsgd": SYMMETRIC,
    "qg_dsgd": {**SYMMETRIC, "mu": 0.9},
    "ccl": SYMMETRIC,
    "idkd": {**SYMMETRIC, "start_step": 4, "threshold": 0.4},
    "fedproto": {"local_steps": 3},
    "fedavg": {"local_steps": 3},
    "fedmd": {"digest_steps": 2, "revisit_steps": 2},
    "selective_fd": {"private_steps": 1, "distill_steps": 2},
    "ds_fl": {"private_steps": 1, "distill_steps": 2, "cache_steps": 4},
}
COPING = [
    "mhd",
    "distributed_distillation",
    "ccl",
    "qg_dsgd",
    "idkd",
    "fedproto",
    "fedavg",
    "fedmd",
    "selective_fd",
    "ds_fl",
]
MANY = Faults(
    offline=0.3, offline_steps=3, stragglers={1: 2}, joins={0: 3}, leaves={3: 9}, participation=0.75
)
LONG = 12, 2100  # clients and steps, for what happens in the long run
LATE = Faults(leaves={0: 10**6})  # than the run's end


def clients(**kwargs):
    kwargs = {"partition": "iid", "public_fraction": 0.3, **kwargs}
    return mhd.make_clients(tiny_dataset(), 4, Linear(), **kwargs)


def arguments(name, what, who=None, topology="complete", **kwargs):
    chosen = ALGORITHMS[name](**OWN.get(name, {}))
    given = {"topology": topology, "clients": who or clients(), "algorithm": chosen}
    return {**given, "faults": what, **SETTINGS, **kwargs}


def run(name, what=MANY, who=None, **kwargs):
    return mhd.simulate(**arguments(name, what, who, **kwargs))


def prepared(name, what, who=None, **kwargs):
    return prepare(**arguments(name, what, who, **kwargs))


def advanced(run, steps=12):
    """What a run holds after its first steps."""
    return run.advance(run.start(), steps)


def client(carry, i):
    """All that one client has: parameters, statistics, and what its optimizer keeps."""
    return [of_client(carry.state, i, part) for part in ("params", "stats", "opt_state")]


def started_with(run, change):
    """A run's beginning with every parameter changed."""
    start = run.start()
    return start.replace(state=with_params(start.state, change))


def over_steps(what, num_clients=4, steps=12, seed=0, ids=None, both_ways=False):
    """Who trains and who is reachable [steps, K], and which links are lost [steps, K, K]."""
    plan = what.plan(num_clients, both_ways)
    ids = jnp.arange(num_clients) if ids is None else jnp.asarray(ids)
    return map(np.asarray, _at(plan, jax.random.key(seed), ids, jnp.arange(steps)))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, None, 0))
def _at(plan, key, ids, step):
    there = faults.presence(plan, key, ids, step)
    return there.trains, there.reachable, faults.lost_links(plan, key, ids, step)


# Schedules.


def test_spells_are_offline_as_often_as_said():
    trains, reachable, _ = over_steps(Faults(offline=0.3, offline_steps=7), *LONG)
    np.testing.assert_array_equal(trains, reachable)
    assert 1 - trains.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / (12 * 300)))
    phases = set()
    for client in trains.T:
        changes = np.flatnonzero(np.diff(client)) + 1
        assert len(set(changes % 7)) == 1  # spells of 7 steps, and of 14, 21 …
        phases |= set(changes % 7)
        spells = np.diff(changes)[client[changes[:-1]] == 0]
        assert spells.mean() == pytest.approx(7 / 0.7, rel=0.35)
    assert len(phases) > 3
    # Clients are offline independently of each other.
    together = np.corrcoef(trains.T)[np.triu_indices(12, 1)]
    assert abs(together.mean()) < 0.03 and abs(together).max() < 5 / np.sqrt(300)


def test_offline_clients_train_if_told_to():
    away = Faults(offline=0.5, offline_steps=2)
    trains, reachable, _ = over_steps(dataclasses.replace(away, offline_trains=True))
    assert trains.all()
    np.testing.assert_array_equal(reachable, list(over_steps(away))[1])


@pytest.mark.parametrize("both_ways", [False, True])
def test_links_are_lost_as_often_as_said(both_ways):
    _, _, lost = over_steps(Faults(link_loss=0.2), *LONG, seed=3, both_ways=both_ways)
    off_diagonal = lost[:, ~np.eye(12, dtype=bool)]
    np.testing.assert_allclose(off_diagonal.mean(axis=0), 0.2, atol=5 * np.sqrt(0.16 / 2100))
    # Independently of each other, and of the step before; but for the two ways of a pair.
    pairs = lost[:, *np.triu_indices(12, 1)]
    for one, other in ((pairs[:-1], pairs[1:]), (pairs[:, :-1], pairs[:, 1:])):
        assert (one & other).mean() == pytest.approx(0.04, abs=0.01)
    back = lost.swapaxes(1, 2)[:, *np.triu_indices(12, 1)]
    assert (pairs & back).mean() == pytest.approx(0.2 if both_ways else 0.04, abs=0.01)
    assert not both_ways or (pairs == back).all()


def test_rounds_have_their_participants():
    trains, reachable, _ = over_steps(Faults(participation=0.3, participation_steps=5), *LONG)
    rounds = trains.reshape(420, 5, 12)
    assert (rounds == rounds[:, :1]).all() and (trains == reachable).all()
    assert (trains.sum(axis=1) == 4).all()
    np.testing.assert_allclose(trains.mean(axis=0), 1 / 3, atol=4 * np.sqrt(0.22 / 420))
    again = (rounds[1:, 0] & rounds[:-1, 0]).sum(axis=1)
    assert again.mean() == pytest.approx(4 / 3, abs=0.15)
    assert (next(over_steps(Faults(participation=0.01), *LONG)).sum(axis=1) == 1).all()


def test_who_is_slow_late_or_gone():
    what = Faults(stragglers={1: 3}, joins={2: 4}, leaves={0: 6, 2: 9})
    trains, reachable, lost = over_steps(what)
    for step, i in itertools.product(range(12), range(4)):
        here = {0: step < 6, 2: 4 <= step < 9}.get(i, True)
        assert reachable[step, i] == here
        assert trains[step, i] == (here and (i != 1 or step % 3 == 0))
    assert not lost.any()


def test_faults_go_with_seeds_and_ids():
    what = dataclasses.replace(MANY, link_loss=0.4, joins={}, leaves={}, stragglers={1: 2, 3: 3})
    first, same, other = (list(over_steps(what, *LONG, seed)) for seed in (1, 1, 2))
    assert_trees_equal(first, same)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))
    order = np.array([3, 5, 0, 7, 2, 10, 4, 11, 1, 9, 6, 8])
    trains, reachable, lost = over_steps(what, *LONG, 1, ids=order)
    np.testing.assert_array_equal(trains, first[0][:, order])
    np.testing.assert_array_equal(reachable, first[1][:, order])
    np.testing.assert_array_equal(lost, first[2][:, order][:, :, order])


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_step_loses_the_edges_of_those_who_are_away(both_ways):
    what = dataclasses.replace(MANY, link_loss=0.3)
    state, plan = prepared("isolated", what).start().state, what.plan(4, both_ways)
    weights = np.arange(16.0).reshape(4, 4) * (1 - np.eye(4))
    step_of = jax.jit(faults.before_step)
    failed = 0
    for step, (trains, reachable, lost) in enumerate(
        zip(*over_steps(what, both_ways=both_ways), strict=True)
    ):
        quarantined = jnp.array([-1, -1, 4 if step > 4 else -1, -1])
        tally = faults.Tally.start(4, quarantine=True).replace(quarantined=quarantined)
        now = state.replace(step=jnp.int32(step))
        there, graph, tally = step_of(plan, tally, now, weights)
        well = np.array([True, True, step <= 4, True])
        trains, reachable = trains & well, reachable & well
        np.testing.assert_array_equal(there.trains, trains)
        np.testing.assert_array_equal(there.reachable, reachable)
        expected, counted = np.zeros((4, 4)), np.zeros(4)
        for i, j in itertools.permutations(range(4), 2):
            meet = trains[i] and reachable[i] and reachable[j] and (trains[j] or not both_ways)
            expected[i, j] = weights[i, j] if meet and not lost[i, j] else 0
            counted[i] += bool(meet and lost[i, j] and weights[i, j])
        np.testing.assert_array_equal(graph, expected)
        np.testing.assert_array_equal(tally.lost, counted)
        np.testing.assert_array_equal(tally.missed, ~trains)
        failed += counted.sum()
    assert failed > 3


# Runs.


@pytest.mark.slow
def test_a_summary_tells_what_has_failed(tmp_path):
    found = run("fedavg", workdir=tmp_path).summary["faults"]
    trains, reachable, _ = over_steps(MANY)
    assert found["steps_missed"] == (~trains).sum(axis=0).tolist()
    assert found["steps_unreachable"] == (~reachable).sum(axis=0).tolist()
    with pytest.raises(mhd.ConfigError, match=r"faults\.offline is 0\.3 there"):
        run("fedavg", LATE, workdir=tmp_path)


@pytest.mark.slow
def test_nothing_that_fails_changes_nothing():
    plain, none = (prepared("fedavg", what, on_nonfinite="stop") for what in (None, Faults()))
    assert plain.static() == none.static() and none.plan is None and none.carry.tally is None
    assert plain.settings == none.settings and "faults" not in plain.settings
    late = prepared("fedavg", LATE)  # another program, which rounds in its own way
    one, other = advanced(plain), advanced(late)
    assert_trees_close(one.state.groups, other.state.groups, rtol=1e-5, atol=1e-6)
    assert_trees_equal(plain.messages(one), late.messages(other))
    assert plain.means(one) == pytest.approx(late.means(other), rel=1e-5)
    assert not np.asarray(other.tally.missed).any() and plain.faults(one) == {}


@pytest.mark.parametrize("name", short(COPING, "mhd", "fedavg"))
def test_nobody_hears_a_client_that_is_away(name):
    """What it would say makes no difference, and it stays as it is."""
    away = Faults(joins={2: 10**6}, stragglers={0: 2})
    with_it = prepared(name, away)

    def end(factor):
        start = started_with(with_it, lambda a: a.at[2].multiply(factor))
        own = jax.device_get(client(start, 2))
        carry = with_it.advance(start, 12)
        assert_trees_equal(client(carry, 2), own)
        return [client(carry, i) for i in (0, 1, 3)], carry

    (one, carry), (other, _) = end(1.0), end(1e3)
    assert_trees_equal(one, other)
    assert int(carry.state.step) == 12
    messages = with_it.messages(carry)
    for count in messages.values():
        assert not count[2].any() and (count.ndim == 1 or not count[:, 2].any())
    assert np.isfinite(with_it.means(carry)["loss"])
    np.testing.assert_array_equal(carry.tally.trained, [6, 12, 0, 12])
    if name == "fedavg":  # at every other average the straggler only sends, and fetches later
        np.testing.assert_array_equal(messages["weights"], [7, 8, 0, 8])


def test_a_client_that_is_away_is_as_one_without_edges():
    alone = 1 - np.eye(4)
    alone[2] = alone[:, 2] = 0
    away = advanced(prepared("mhd", Faults(joins={2: 10**6})))
    without = advanced(prepared("mhd", LATE, topology=alone))
    assert_trees_equal(away.messages, without.messages)
    for i in (0, 1, 3):
        assert_trees_equal(of_client(away.state, i), of_client(without.state, i))


def test_who_goes_on_offline_trains_alone():
    offline = Faults(offline=0.999, offline_steps=100, offline_trains=True)
    trains, reachable, _ = over_steps(offline)
    assert trains.all() and not reachable.any()
    cut = advanced(prepared("mhd", offline))
    alone = advanced(prepared("mhd", LATE, topology="empty"))
    assert_trees_equal(cut.state.groups, alone.state.groups)
    assert not np.asarray(cut.messages["predictions"]).any()
    np.testing.assert_array_equal(cut.tally.unreachable, [12] * 4)


def test_gossip_over_lost_links_keeps_the_mean():
    what = Faults(link_loss=0.4, offline=0.3, offline_steps=3, stragglers={1: 2})
    gossip = prepared("dsgd", what, optimizer=optax.sgd(0.0))
    rng = np.random.default_rng(0)
    start = started_with(gossip, lambda a: a + jnp.asarray(rng.normal(size=a.shape), a.dtype))
    leaves = lambda carry: jax.device_get(jax.tree.leaves(carry.state.groups[0].params))
    before = leaves(start)
    after = leaves(gossip.advance(start, 12))
    mixing = np.eye(4)
    for trains, reachable, lost in zip(*over_steps(what, both_ways=True), strict=True):
        acts = trains & reachable
        links = np.outer(acts, acts) & ~lost
        np.fill_diagonal(links, False)
        degree = links.sum(axis=1)
        weights = links / (1 + np.maximum(degree[:, None], degree[None, :]))
        mixing = (weights + np.diag(1 - weights.sum(axis=1))) @ mixing
    assert 1e-4 < np.abs(mixing - 1 / 4).max() < 0.5
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(np.tensordot(mixing, one, 1), other, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(other.mean(axis=0), one.mean(axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_estimates_agree_with_decisions_whatever_fails():
    what = dataclasses.replace(MANY, link_loss=0.4)
    agreeing = prepared("distributed_distillation", what)
    carry = agreeing.start()
    for _ in range(6):
        before = jax.tree.map(np.asarray, carry.state.extra)
        missed = np.asarray(carry.tally.missed)
        carry = agreeing.advance(carry, 2)
        extra = carry.state.extra
        sums = [np.asarray(extra[name]).sum(axis=0) for name in ("estimates", "previous_decisions")]
        np.testing.assert_allclose(*sums, rtol=1e-5, atol=1e-6)
        away = np.asarray(carry.tally.missed) == missed + 2
        for name in ("estimates", "previous_decisions"):
            np.testing.assert_array_equal(np.asarray(extra[name])[away], before[name][away])


@pytest.mark.slow
def test_federated_averaging_of_those_who_are_there():
    """Against a server and its clients in plain Python."""
    what = dataclasses.replace(MANY, stragglers={1: 4}, participation_steps=3)
    unequal = lambda y, k, c, rng: np.minimum(np.arange(len(y)) // 9, 3)
    who, plain = clients(partition=unequal), mhd.optim.SGD(0.1, momentum=0.0, schedule="constant")
    averaged = prepared("fedavg", what, who, optimizer=plain)
    carry = averaged.start()
    (group,) = carry.state.groups
    key, ids, sizes = carry.state.key, carry.state.client_ids, who.label_counts().sum(axis=1)
    own = [jax.device_get(of_client(carry.state, i)) for i in range(4)]

    @jax.jit
    def trained(params, inputs, labels):
        def loss(params):
            logits = group.model.apply(params, {}, inputs)[0].logits[:, 0]
            right = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -right.mean()

        decayed = jax.tree.map(lambda g, p: g + 1e-3 * p, jax.grad(loss)(params), params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, decayed)

    at = jax.jit(lambda step: draw_batch(averaged.data, key, ids, step, averaged.spec))
    trains, reachable, _ = over_steps(what)
    server, has_it, messages = own[0], set(), np.zeros(4, int)
    for step in range(12):
        batch = at(jnp.int32(step))
        for i in np.flatnonzero(trains[step]):
            if i not in has_it:
                own[i] = server
                messages[i] += step >= 3
                has_it.add(i)
            own[i] = trained(own[i], batch.inputs[i], batch.labels[i])
        if step % 3 == 2:
            senders = [i for i in has_it if reachable[step, i]]
            messages[senders] += 1
            if senders:
                shares = np.where(np.isin(range(4), senders), sizes, 0) / sizes[senders].sum()
                all_four = jax.tree.map(lambda *a: np.stack(a), *own)
                server = jax.tree.map(functools.partial(np.tensordot, shares, axes=1), all_four)
            has_it = set(np.flatnonzero(trains[step]).tolist())
            for i in has_it:
                own[i] = server
                messages[i] += 1
    carry = averaged.advance(carry, 12)
    for i in range(4):
        assert_trees_close(of_client(carry.state, i), own[i], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(averaged.messages(carry)["weights"], messages)
    assert 0 < messages.sum() < 32


def test_other_faults_compile_nothing():
    advanced(prepared("mhd", MANY), 0)
    compiled = engine.dispatch._cache_size()
    for what in (
        Faults(link_loss=0.1, offline=0.2),
        Faults(leaves={1: 3}, offline=0.5, offline_trains=True),
    ):
        other = prepared("mhd", what, seed=3)
        carry = other.start()
        for num_steps in (1, 4):
            carry = other.advance(carry, num_steps)
    assert engine.dispatch._cache_size() == compiled


@pytest.mark.slow
def test_seeds_fail_together():
    seeds, who = (3, 0), [clients(seed=seed) for seed in (3, 0)]
    settings = SETTINGS | {"faults": dataclasses.replace(MANY, link_loss=0.3)}
    joined = mhd.simulate_seeds(["ring"] * 2, who, "isolated", seeds=seeds, **settings)
    for seed, own, one in zip(seeds, who, joined, strict=True):
        alone = mhd.simulate("ring", own, "isolated", seed=seed, **settings)
        assert one.summary["faults"] == alone.summary["faults"]
        assert one.history[-1]["train"] == pytest.approx(alone.history[-1]["train"], rel=1e-4)
        assert_trees_close(
            one.state.groups[0].params, alone.state.groups[0].params, rtol=1e-4, atol=1e-6
        )
    assert joined[0].summary["faults"] != joined[1].summary["faults"]


# Clients that diverge.


def broken(*broken_clients):
    """Clients some of whom have samples that are no numbers."""
    who = clients()
    inputs = np.where(np.isin(who.owner, broken_clients)[:, None], np.nan, who.data.inputs)
    return dataclasses.replace(who, data=dataclasses.replace(who.data, inputs=inputs))


@pytest.mark.parametrize("name", short(COPING, "mhd", "qg_dsgd"))
def test_who_diverges_is_taken_out(name):
    at = 2 if name == "fedmd" else 0  # whose rounds begin with public samples
    alone = prepared(name, LATE, broken(2))
    carry = advanced(alone, at)
    last = jax.device_get(client(carry, 2))
    with_it = alone.advance(carry, 12 - at)
    assert alone.quarantined(with_it.tally) == {2: at}
    assert_trees_equal(client(with_it, 2), last)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(with_it.state.extra))
    assert np.isfinite(alone.means(with_it)["loss"])
    np.testing.assert_array_equal(with_it.tally.trained, [12, 12, at, 12])
    if name == "ccl":
        return  # whose neighbours would have had its class features
    without = advanced(prepared(name, Faults(leaves={2: at + 1})))
    for i in (0, 1, 3):
        assert_trees_equal(client(with_it, i), client(without, i))


def test_quarantine_is_told_and_kept(tmp_path):
    def go_on(**kwargs):
        return run("isolated", LATE, broken(1), workdir=tmp_path, **kwargs)

    with (
        pytest.warns(UserWarning, match="client 1 are no longer finite at step 0"),
        pytest.raises(mhd.InterruptedRun),
    ):
        go_on(callbacks=SignalAt(6), steps_per_dispatch=1)
    with pytest.warns(UserWarning, match="in quarantine"):
        resumed = go_on()
    assert resumed.summary["faults"]["quarantined"] == {"1": 0}
    assert resumed.summary["settings"]["on_nonfinite"] == "quarantine"


def test_a_run_without_anyone_left_stops():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(mhd.DivergedError, match="all clients are in quarantine"):
            run("isolated", LATE, broken(0, 1, 2, 3))
    with pytest.raises(mhd.DivergedError, match="the loss of client 2 is no longer finite"):
        run("isolated", MANY, broken(2), on_nonfinite="stop")


# What cannot be.


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"link_loss": 1.0}, r"link_loss must be in \[0, 1\), not 1.0"),
        ({"offline": -0.1}, r"offline must be in \[0, 1\)"),
        ({"offline": float("nan")}, "offline must be in"),
        ({"offline": "0.2"}, "offline must be in .* not '0.2'"),
        ({"participation": 0}, r"participation must be in \(0, 1\]"),
        ({"offline_steps": 0}, "offline_steps must be a number of steps, at least 1"),
        ({"participation_steps": 2.5}, "participation_steps must be a number of steps"),
        ({"stragglers": {1: 0}}, "stragglers of client 1 must be a number of steps, at least 1"),
        ({"joins": {0: -1}}, "joins of client 0 must be a number of steps, at least 0"),
        ({"joins": {2: 5}, "leaves": {2: 5}}, "client 2 leaves at step 5, before it joins at 5"),
        ({"joins": {2: 5}, "leaves": {2: 3}}, "client 2 leaves at step 3, before it joins at 5"),
    ],
)
def test_faults_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        Faults(**given)


@pytest.mark.parametrize(
    ("chosen", "what", "sentence"),
    [
        ("supervised", MANY, "supervised needs all clients and links.*one client holds all"),
        (mhd.algorithms.dsgd(), MANY, "dsgd needs all .*choose mixing='metropolis_hastings'"),
        (mhd.algorithms.ccl(), MANY, "ccl needs all .*choose mixing='metropolis_hastings'"),
        (
            mhd.algorithms.distributed_distillation(compression="int8"),
            MANY,
            "all neighbours must have received all messages",
        ),
        ("fedavg", Faults(link_loss=0.1), "link_loss is of links .* but fedavg has a server"),
        ("fedmd", Faults(offline=0.1, offline_trains=True), "offline_trains is not for fedmd"),
        ("mhd", Faults(leaves={4: 3}), "leaves names client 4, but the clients are 0 to 3"),
        ("mhd", 0.2, "faults are a mhd_jax.Faults, not 0.2"),
    ],
)
def test_what_has_no_sound_meaning_is_refused(chosen, what, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        prepare("ring", clients(), chosen, faults=what)
