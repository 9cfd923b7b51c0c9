"""Runs that start from another run, from its folder, or from parameters; pretrained models."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mhd_jax as mhd
from mhd_jax.cli.settings import RunSettings
from mhd_jax.training import initial
from tests.builders import short, thinned

X = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
HOW = {"eval_every": 2, "batch_size": 8, "public_batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def clients():
    return mhd.make_clients("digits", 4, "mlp_small:3,mlp:1")


@pytest.fixture(scope="module")
def first(clients, tmp_path_factory):
    folder = tmp_path_factory.mktemp("origins") / "run"
    return mhd.simulate("ring", clients, **HOW, steps=2, workdir=folder)


def _arrays(state, client):
    for group in state.groups:
        if client in group.members:
            row = group.members.index(client)
            tree = jax.tree.map(lambda a, row=row: np.asarray(a)[row], (group.params, group.stats))
            return initial.named(*tree)
    raise AssertionError


@pytest.mark.parametrize("by", short(["result", "folder", "parameters"], "folder"))
def test_a_new_run_starts_where_another_has_ended(clients, first, by):
    origin = {
        "result": first,
        "folder": first.folder,
        "parameters": [jax.tree.map(np.asarray, group.params) for group in first.state.groups],
    }[by]
    run = mhd.prepare("complete", clients, batch_size=8, steps=4, init=origin)
    state = run.init()
    for client in range(4):
        there, here = _arrays(first.state, client), _arrays(state, client)
        assert here.keys() == there.keys()
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])
    assert int(state.step) == 0
    momentum = optax.tree_utils.tree_get(state.groups[0].opt_state, "trace")
    assert all((np.asarray(a) == 0).all() for a in jax.tree.leaves(momentum))


@pytest.mark.slow
def test_all_seeds_of_a_command_continue_the_run_that_is_loaded_once(first):
    flags = {"model": "mlp_small:3,mlp:1", "num_clients": 4, "continue_from": str(first.folder)}
    one, other = (RunSettings(**flags).arguments(mhd.algorithms.mhd(), seed) for seed in (0, 1))
    assert one["init"] is other["init"]
    state = mhd.prepare(**other).init()
    for name, a in _arrays(first.state, 3).items():
        np.testing.assert_array_equal(_arrays(state, 3)[name], a)


@pytest.mark.slow
def test_what_an_algorithm_remembers_comes_from_where_it_starts():
    """FedMD's copy, gossip's and the decisions of Distributed Distillation are of the given start."""
    who = mhd.make_clients("digits", 3, "mlp_small")
    start = mhd.simulate("ring", who, "isolated", **HOW, steps=6)
    state = mhd.prepare("ring", who, "fedmd", init=start).init()
    for (remembered,), group in zip([state.extra["start"]["params"]], state.groups, strict=True):
        jax.tree.map(np.testing.assert_array_equal, remembered, group.params)
    state = mhd.prepare("ring", who, "distributed_distillation", init=start).init()
    public = jax.tree.map(lambda a: a[:20], who.public_inputs)
    expected = jax.nn.softmax(start.predict(np.asarray(public))[:, :, 0])
    np.testing.assert_allclose(state.extra["estimates"][:, :20], expected, atol=1e-5)


@pytest.mark.slow
def test_heads_are_taken_rank_by_rank(clients, first):
    one = mhd.simulate("ring", clients, "isolated", **HOW, steps=2)
    run = mhd.prepare("ring", clients, mhd.algorithms.mhd(num_aux_heads=2), init=one)
    assert run.origin["drawn"] == ["heads/bias", "heads/kernel"]
    assert {*run.origin["drawn"]} < {*run.origin["taken"]}  # as one head is taken, and two drawn
    state = run.init()
    drawn = mhd.prepare("ring", clients, mhd.algorithms.mhd(num_aux_heads=2)).init()
    for client in range(4):
        there, here, new = (_arrays(s, client) for s in (one.state, state, drawn))
        np.testing.assert_array_equal(here["heads/kernel"][:1], there["heads/kernel"])
        np.testing.assert_array_equal(here["heads/kernel"][1:], new["heads/kernel"][1:])
    run = mhd.prepare("ring", clients, "isolated", init=first)
    assert not run.origin["drawn"]
    less = run.init()
    kernel = _arrays(less, 3)["heads/kernel"]
    np.testing.assert_array_equal(kernel, _arrays(first.state, 3)["heads/kernel"][:1])


@pytest.mark.slow
def test_one_model_serves_all_clients():
    who = mhd.make_clients("digits", 3, "mlp_small")
    pooled = mhd.simulate("complete", who, "supervised", **HOW, steps=4)
    state = mhd.prepare("ring", who, "fedmd", init=pooled).init()
    for client in range(3):
        for name, a in _arrays(state, client).items():
            np.testing.assert_array_equal(a, _arrays(pooled.state, 0)[name])


@pytest.mark.slow
def test_the_origin_is_recorded_and_decides(clients, first, tmp_path):
    how = {**HOW, "steps": 2, "workdir": tmp_path / "run"}
    result = mhd.simulate("ring", clients, "isolated", **how, init=first)
    record = result.summary["init"]
    assert (record["algorithm"], record["steps"]) == ("mhd", 2)
    assert "backbone/Dense_0/kernel" in record["taken"] and not record["drawn"]
    again = mhd.simulate("ring", clients, "isolated", **how, init=first.folder)
    assert again.started_at == 2 and again.summary == result.summary
    with pytest.raises(mhd.ConfigError, match="other settings: init"):
        mhd.simulate("ring", clients, "isolated", **how)
    alone = mhd.simulate("ring", clients, "isolated", **HOW, steps=2)
    assert not np.array_equal(alone.predict(X), result.predict(X))


@pytest.mark.parametrize(
    "init, says",
    [
        (3, "init is a Result, a run folder, or parameters"),
        ([{}], "a list of 2 trees"),
        (
            {"backbone": {"Dense_9": {"kernel": np.zeros((3, 3))}}},
            "nothing to start from fits clients 0",
        ),
        ("there/is/none", "does not hold a run"),
    ],
)
def test_what_nothing_can_start_from(clients, init, says):
    with pytest.raises(mhd.ConfigError, match=says) as raised:
        mhd.simulate("ring", clients, **HOW, steps=2, init=init)
    assert "\n" not in str(raised.value)


def test_layers_of_another_shape_are_told(first):
    wider = mhd.make_clients("digits", 4, "mlp_large:3,mlp:1")
    said = r"backbone/Dense_0/kernel .* of clients 0, 1, 2 \(mlp_large\) have other shapes"
    with pytest.warns(UserWarning, match=said) as told:
        mhd.prepare("ring", wider, init=first)
    assert len(told) == 1  # the last client's are as they were


def test_other_clients_are_refused(first):
    with pytest.raises(mhd.ConfigError, match="has 4 clients, and this one 3"):
        mhd.prepare("ring", mhd.make_clients("digits", 3, "mlp_small"), init=first)
    with pytest.raises(mhd.ConfigError, match="clients 0 and 3 have one architecture here"):
        mhd.prepare("ring", mhd.make_clients("digits", 4, "mlp_small"), init=first)
    with pytest.raises(mhd.ConfigError, match=r"fits clients 3 \(cnn\)"):
        mhd.prepare("ring", mhd.make_clients("digits", 4, "mlp_small:3,cnn:1"), init=first)


class Net(nnx.Module):
    """A user's network."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 16, rngs=rngs)
        self.second = nnx.Linear(16, 64, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.second(nnx.relu(self.first(x.reshape(len(x), -1)))))


@pytest.mark.parametrize("optimizer", thinned([mhd.optim.SGD(), optax.adamw(1e-2)], 2))
def test_frozen_parameters_never_change(optimizer, tmp_path):
    weights = {"first": {"kernel": np.random.default_rng(0).normal(size=(64, 16)) * 0.1}}
    net = mhd.pretrained(Net, weights, frozen=("backbone/first/*",))
    who = mhd.make_clients("digits", 3, net)
    result = mhd.simulate("ring", who, "dsgd", **HOW, steps=4, optimizer=optimizer)
    drawn = mhd.prepare("ring", who, "dsgd", **{k: HOW[k] for k in ("batch_size",)}).init()
    for client in range(3):
        there, here = _arrays(drawn, client), _arrays(result.state, client)
        np.testing.assert_allclose(
            here["backbone/first/kernel"], weights["first"]["kernel"], rtol=1e-6
        )
        np.testing.assert_allclose(here["backbone/first/bias"], there["backbone/first/bias"])
        assert not np.allclose(here["backbone/second/kernel"], there["backbone/second/kernel"])
    assert result.summary["settings"]["clients"]["pretrained"][0]["frozen"] == ["backbone/first/*"]


@pytest.mark.slow
def test_gradients_are_clipped_without_those_of_frozen_parameters():
    """A step of length 1 from gradients that are clipped to 1e-3, and so to that change."""
    net = mhd.pretrained(Net, Net(rngs=nnx.Rngs(0)), frozen=("backbone/first/*",))
    who = mhd.make_clients("digits", 3, net)
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    run = mhd.prepare("ring", who, "isolated", batch_size=8, optimizer=clipped)
    start = run.init()
    after, _ = jax.jit(run.train_step)(start, run.batch(start), run.graph(0))
    moves = jax.tree.map(jnp.subtract, after.groups[0].params, start.groups[0].params)
    assert not any(a.any() for a in jax.tree.leaves(moves["backbone"]["first"]))
    np.testing.assert_allclose(jax.vmap(optax.tree_utils.tree_norm)(moves), 1e-3, rtol=1e-3)


@pytest.mark.slow
def test_joint_runs_freeze_alike_or_are_not_joined():
    weights = {"Dense_0": {"bias": np.zeros(8)}}
    nets = [mhd.pretrained("mlp_small", weights, frozen=f) for f in (("backbone/*",), ("heads/*",))]
    who = [mhd.make_clients("digits", 2, net) for net in nets]
    common = {"topology": "complete", "algorithm": "isolated", "steps": 2, "batch_size": 8}
    runs = [
        {**common, "clients": clients, "optimizer": mhd.optim.SGD(learning_rate=rate)}
        for clients in who
        for rate in (0.1, 0.2)
    ]
    found = mhd.simulate_many(runs, eval_every=2, progress=False)
    for run, result in zip(runs, found, strict=True):
        own = {name: value for name, value in run.items() if name not in ("topology", "clients")}
        alone = mhd.simulate(run["topology"], run["clients"], **own, eval_every=2, progress=False)
        start = mhd.prepare(run["topology"], run["clients"], **own).init()
        is_first = run["clients"] is who[0]
        for name, a in _arrays(result.state, 1).items():
            np.testing.assert_allclose(a, _arrays(alone.state, 1)[name], atol=1e-6)
            if name.startswith("backbone/") == is_first:
                np.testing.assert_array_equal(a, _arrays(start, 1)[name])


def test_only_named_parameters_are_trainable():
    weights = {"heads": {"bias": np.zeros((1, 10))}}
    net = mhd.pretrained("mlp_small", weights, trainable=("heads/bias",))
    who = mhd.make_clients("digits", 3, net)
    start = mhd.prepare("ring", who, "isolated", batch_size=8).init()
    result = mhd.simulate("ring", who, "isolated", **HOW, steps=4)
    for name, a in _arrays(result.state, 1).items():
        assert np.array_equal(a, _arrays(start, 1)[name]) == (name != "heads/bias")


class Normed(nnx.Module):
    """A layer in a list, statistics, and a random stream."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(64, 16, rngs=rngs)])
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.dropout(self.norm(self.layers[0](x.reshape(len(x), -1)))))


@pytest.mark.parametrize("given", [lambda net: net, nnx.state], ids=["module", "state"])
def test_an_nnx_module_holds_weights_and_statistics(given):
    net = Normed(rngs=nnx.Rngs(3))
    net.norm.mean[...] += np.arange(16)
    who = mhd.make_clients("digits", 2, mhd.pretrained(Normed, given(net)))
    found = _arrays(mhd.prepare("complete", who, "isolated").init(), 1)
    np.testing.assert_array_equal(found["stats/batch_stats/norm/mean"], np.arange(16))
    np.testing.assert_array_equal(found["backbone/layers/0/kernel"], net.layers[0].kernel[...])
    np.testing.assert_array_equal(found["backbone/norm/scale"], net.norm.scale[...])


def test_a_saved_client_is_a_pretrained_model(first, tmp_path):
    first.client(3).save(tmp_path / "mlp.npz")
    who = mhd.make_clients("digits", 2, mhd.pretrained("mlp", tmp_path / "mlp.npz"))
    state = mhd.prepare("complete", who, init=None).init()
    for client in range(2):
        for name, a in _arrays(state, client).items():
            np.testing.assert_array_equal(a, _arrays(first.state, 3)[name])


class WithWeights(nn.Module):
    """A module whose weights are an attribute, as some write it."""

    weights: object

    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(
            x.reshape(len(x), -1) @ self.param("w", lambda key: jnp.asarray(self.weights))
        )


@pytest.mark.parametrize(
    "make, says",
    [
        (
            lambda: WithWeights(np.zeros((64, 8), np.float32)),
            r"mhd_jax\.pretrained\(model, weights\)",
        ),
        (lambda: mhd.pretrained("mlp", {"a": {}}), "must be arrays of numbers"),
        (lambda: mhd.pretrained("mlp", "none.npz"), "cannot be read"),
        (lambda: mhd.pretrained("mlp", 3), "not of type int"),
        (lambda: mhd.pretrained("mlp", {"w": [1.0]}, frozen=("a",), trainable=("b",)), "not both"),
        (lambda: mhd.pretrained("mlp", {"w": [1.0]}, frozen="a"), "lists of patterns"),
        (lambda: mhd.pretrained("mlp", {"w": [1.0]}, frozen=None), "lists of patterns"),
        (lambda: mhd.pretrained("mlp", {"w": np.array([1j])}), "must be arrays of numbers"),
        (
            lambda: mhd.pretrained("mlp_small", {"w": jnp.ones(3, jnp.bfloat16)}),
            "fits an array of clients 0, 1",
        ),
        (lambda: mhd.pretrained("mlp_small", {"w": np.ones(3)}), "fits an array of clients 0, 1"),
        (
            lambda: mhd.pretrained(
                "mlp_small", {"Dense_0": {"bias": np.zeros(8)}}, trainable=("*lroa*", "heads/*")
            ),
            r"no parameter of clients 0, 1 \(mlp_small\) is named like '\*lroa\*'; frozen and",
        ),
        (
            lambda: mhd.pretrained(Normed, Normed(rngs=nnx.Rngs(0)), frozen=("stats/*",)),
            r"is named like 'stats/\*'",
        ),
    ],
)
def test_weights_that_cannot_be(make, says):
    with pytest.raises(mhd.ConfigError, match=says) as raised:
        who = mhd.make_clients("digits", 2, make())
        mhd.prepare("complete", who)
    assert len(str(raised.value).splitlines()) <= 3 and len(str(raised.value)) < 400


class Wide(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))


@pytest.mark.parametrize(
    ("widths", "settings"),
    [
        ((8, 8, 8), {"num_targets": "all", "target_selection": "density_ratio", "nu_emb": 0}),
        pytest.param((8, 12, 12), {"embedding_projection": "linear"}, marks=pytest.mark.slow),
    ],
)
def test_what_algorithms_add_to_parameters_is_taken_too(widths, settings):
    """Density outputs, and maps between embeddings."""
    who = mhd.make_clients("digits", 3, [Wide(width) for width in widths])
    algorithm = mhd.algorithms.mhd(num_aux_heads=1, **settings)
    before = mhd.simulate("complete", who, algorithm, **HOW, steps=2)
    run = mhd.prepare("complete", who, algorithm, init=before, batch_size=8, steps=4)
    assert run.origin["left_out"] == run.origin["drawn"] == []
    for state in (run.init(), run.init([group.params for group in before.state.groups])):
        for client in range(3):
            there, here = _arrays(before.state, client), _arrays(state, client)
            assert here.keys() == there.keys() and any(
                name.startswith(("density/", "projections/")) for name in here
            )
            for name in here:
                np.testing.assert_array_equal(here[name], there[name])
