"""Algorithms that average parameters or predictions, against NumPy trajectories."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.core.random import Purpose
from mhd_jax.core.types import Presence
from mhd_jax.engine.prepare import prepare
from mhd_jax.exchange.messages import bytes_by_type
from mhd_jax.training import groups
from tests.builders import NUM_CLASSES, Dropping, Linear, dropped, tiny_batch, tiny_clients

K, STEPS = 4, 6
RATES = 0.1 * 0.5 * (1 + np.cos(np.pi * np.arange(STEPS) / 20))  # cosine over 20 steps
BETA, DECAY, SMOOTHING = 0.9, 1e-2, 0.1
OPTIMIZER = mhd.optim.SGD(0.1, BETA, nesterov=True, weight_decay=DECAY).build(20)
RING = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], np.float32)
NO_DROPOUT = np.ones(K)
STAR = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.float32)


def loss_gradient(x, inputs, labels, mask, factors=1.0):
    """∇CE to smooth labels of a linear softmax model W (F × D), V (D × C), b, by hand.

    `factors` of the hidden layer are dropout's.
    """
    w, v, b = x
    hidden = factors * (inputs @ w)
    z = hidden @ v + b
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    targets = (1 - SMOOTHING) * np.eye(NUM_CLASSES)[labels] + SMOOTHING / NUM_CLASSES
    dz = (p - targets) * (mask / mask.sum())[:, None]
    return [inputs.T @ (factors * (dz @ v.T)), hidden.T @ dz, dz.sum(axis=0)]


def batches():
    return [tiny_batch(K, seed=step, dtype=jnp.float64) for step in range(STEPS)]


def gradients(x, batch, factors=NO_DROPOUT):
    """Of all clients, as lists of arrays [K, …], with weight decay."""
    seen = batch.inputs, batch.labels, batch.mask, factors
    each = [loss_gradient([a[i] for a in x], *(np.asarray(b[i]) for b in seen)) for i in range(K)]
    return [
        np.stack(parts) + DECAY * a for parts, a in zip(zip(*each, strict=True), x, strict=True)
    ]


def dropout_of(model, step):
    """What a model's private pass multiplies embeddings by, [K, B, D] or ones [K]."""
    return dropped(Purpose.DROPOUT, step, 6) if isinstance(model, Dropping) else NO_DROPOUT


def parameters(state):
    params = state.groups[0].params
    return [
        np.asarray(a)
        for a in (
            params["backbone"]["Dense_0"]["kernel"],
            params["heads"]["kernel"][:, 0],
            params["heads"]["bias"][:, 0],
        )
    ]


def trajectory(algorithm, graph, clients=None, start=None, optimizer=OPTIMIZER, presence=None):
    """Parameters after every step of the algorithm itself, and the metrics."""
    everyone = clients or tiny_clients(K, optimizer=optimizer)
    seen = [dataclasses.replace(batch, presence=presence) for batch in batches()]
    state = algorithm.init(jax.random.key(0), everyone, seen[0])
    if start is not None:
        state = start(state)
    first, found, metrics = parameters(state), [], []
    step = jax.jit(algorithm.train_step)
    for batch in seen:
        state, told = step(state, batch, jnp.asarray(graph))
        found.append(parameters(state))
        metrics.append(told)
    return first, found, metrics


def scattered(state):
    """The same state with clients that differ."""
    (group,) = state.groups
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + 0.3 * noise.normal(size=a.shape), group.params)
    return dataclasses.replace(state, groups=(dataclasses.replace(group, params=params),))


def nesterov_step(x, m, g, rate):
    """m ← β m + g, x ← x − η (g + β m), for lists of arrays."""
    m = [BETA * buffer + slope for buffer, slope in zip(m, g, strict=True)]
    x = [a - rate * (slope + BETA * buffer) for a, slope, buffer in zip(x, g, m, strict=True)]
    return x, m


def mixing_matrix(graph, kind):
    degree = graph.sum(axis=1)
    if kind == "uniform":
        return (graph + np.eye(K)) / (degree[:, None] + 1)
    w = graph / (1 + np.maximum(degree[:, None], degree[None, :]))
    return w + np.diag(1 - w.sum(axis=1))


def mixed(w, a):
    return np.tensordot(w, a, axes=1)


@pytest.mark.parametrize(
    ("name", "graph", "settings"),
    [
        ("dsgd", RING, {}),
        ("dsgd", STAR, {"mixing": "metropolis_hastings", "averaging_rate": 0.7}),
        ("qg_dsgd", RING, {}),
        ("qg_dsgd", STAR, {"averaging_rate": 0.9}),
        ("qg_dsgd", STAR, {"mixing": "metropolis_hastings", "averaging_rate": 0.5}),
        ("dsgd", RING, {"gossip_rounds": 3}),
        ("qg_dsgd", STAR, {"gossip_rounds": 2, "averaging_rate": 0.6}),
    ],
)
def test_gossip_follows_the_equations(name, graph, settings, float64):
    algorithm = ALGORITHMS[name](label_smoothing=SMOOTHING, **settings)
    first, found, metrics = trajectory(algorithm, graph, start=scattered)
    expected = gossip(first, graph, RATES, quasi_global=name == "qg_dsgd", **settings)
    for step, x in enumerate(expected):
        assert_close(found[step], x)
        sent = settings.get("gossip_rounds", 1) * graph
        np.testing.assert_array_equal(metrics[step]["messages"]["weights"], sent)


def rounds(x, w, averaging_rate, gossip_rounds):
    """Parameters after x ← x + γ (W x − x), so many times."""
    for _ in range(gossip_rounds):
        x = [a + averaging_rate * (mixed(w, a) - a) for a in x]
    return x


def gossip(
    first,
    graph,
    rates,
    quasi_global,
    mixing="uniform",
    averaging_rate=1.0,
    gossip_rounds=1,
    previous_rates=None,
):
    """Parameters after each step; the rates that quasi-global momentum divides by are the last steps'."""
    w = mixing_matrix(graph, mixing)
    before = [rates[0], *rates[:-1]] if previous_rates is None else previous_rates
    x, m = first, [np.zeros_like(a) for a in first]
    for batch, rate, previous in zip(batches(), rates, before, strict=True):
        start, x = x, rounds(x, w, averaging_rate, gossip_rounds)
        if quasi_global:
            m = [b - (a - old) / previous for b, a, old in zip(m, x, start, strict=True)]
        x, m = nesterov_step(x, m, gradients(x, batch), rate)
        yield x


def assert_close(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


WARM = mhd.optim.SGD(0.1, BETA, True, DECAY, schedule="step", warmup_steps=2)
WARM_RATES = 0.1 * np.array([1 / 2, 1, 1, 1, 0.1, 0.01])  # the schedule's 4 steps are 2 to 5


@pytest.mark.parametrize(
    "algorithm",
    [
        mhd.algorithms.qg_dsgd(label_smoothing=SMOOTHING),
        mhd.algorithms.ccl(label_smoothing=SMOOTHING, lambda_m=0.0, lambda_d=0.0),
        mhd.algorithms.dsgd(label_smoothing=SMOOTHING),
    ],
    ids=["qg_dsgd", "ccl", "dsgd"],
)
def test_quasi_global_momentum_divides_by_the_last_steps_rate(algorithm, float64):
    """With rates that jump, from step to step, by up to 10."""
    optimizer = WARM.build(STEPS)
    first, found, _ = trajectory(algorithm, RING, start=scattered, optimizer=optimizer)
    quasi_global = algorithm.name != "dsgd"
    for actual, x in zip(found, gossip(first, RING, WARM_RATES, quasi_global), strict=True):
        assert_close(actual, x)
    if quasi_global:  # the step's own rate is another trajectory
        *_, wrong = gossip(first, RING, WARM_RATES, True, previous_rates=WARM_RATES)
        assert abs(found[-1][0] - wrong[0]).max() > 1e-2


@pytest.mark.parametrize(("mu", "gossip_rounds"), [(0.0, 1), (0.9, 1), (0.9, 2)])
def test_the_papers_quasi_global_momentum(mu, gossip_rounds, float64):
    """Algorithm 1 of the QGM paper: d = (x^t − x^{t+1}) / η of parameters after mixing."""
    algorithm = mhd.algorithms.qg_dsgd(
        label_smoothing=SMOOTHING, mu=mu, gossip_rounds=gossip_rounds
    )
    first, found, _ = trajectory(algorithm, RING, start=None)
    w = mixing_matrix(RING, "uniform")
    x, buffer = first, [np.zeros_like(a) for a in first]
    for step, batch in enumerate(batches()):
        g = gradients(x, batch)
        m = [BETA * b + slope for b, slope in zip(buffer, g, strict=True)]
        half = [
            a - RATES[step] * (slope + BETA * moment)
            for a, slope, moment in zip(x, g, m, strict=True)
        ]
        for actual, expected in zip(found[step], half, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
        following = rounds(half, w, 1.0, gossip_rounds)
        buffer = [
            mu * b + (1 - mu) * (a - new) / RATES[step]
            for b, a, new in zip(buffer, x, following, strict=True)
        ]
        x = following


@pytest.mark.parametrize(
    ("settings", "round_steps"),
    [
        ({"local_steps": 3}, 3),
        ({"local_steps": 2, "reset_momentum": False}, 2),
        (
            {"local_epochs": 2.0},
            4,
        ),  # 3.6 batches of 6 for the average client, who has 10.75 samples
        ({"local_epochs": 1.0, "reset_momentum": False}, 2),
        ({"local_epochs": 0.01}, 1),
    ],
)
@pytest.mark.parametrize("may_be_away", [False, True])  # which takes another path
def test_fedavg_follows_the_equations(settings, round_steps, may_be_away, float64):
    clients = tiny_clients(K, optimizer=OPTIMIZER, partition=mhd.partition.primary_labels(1, 5.0))
    sizes = clients.label_counts().sum(axis=1)
    assert len(set(sizes)) > 1 and sizes.mean() == 10.75
    everyone = Presence(*[jnp.ones(K, bool)] * 2) if may_be_away else None
    algorithm = mhd.algorithms.fedavg(label_smoothing=SMOOTHING, **settings)
    first, found, metrics = trajectory(algorithm, RING, clients, presence=everyone)
    assert all((a == a[:1]).all() for a in first)
    x, m = first, [np.zeros_like(a) for a in first]
    for step, batch in enumerate(batches()):
        g = gradients(x, batch)
        x, m = nesterov_step(x, m, g, RATES[step])
        averages = (step + 1) % round_steps == 0
        if averages:
            w = np.tile(sizes / sizes.sum(), (K, 1))
            x = [mixed(w, a) for a in x]
            if settings.get("reset_momentum", True):
                m = [np.zeros_like(a) for a in m]
        assert_close(found[step], x)
        np.testing.assert_array_equal(metrics[step]["messages"]["weights"], 2 * averages)


def test_a_round_of_fedavg_is_of_steps_or_of_epochs():
    with pytest.raises(mhd.ConfigError, match="give local_steps or local_epochs, not both"):
        mhd.algorithms.fedavg(local_steps=3, local_epochs=1.0)


@pytest.mark.parametrize("mixing", ["uniform", "metropolis_hastings"])
def test_gossip_keeps_the_mean(mixing, float64):
    """With a doubly stochastic W and no learning, only the spread changes."""
    still = mhd.optim.SGD(1e-12, 0.0, weight_decay=0.0, schedule="constant").build(20)
    algorithm = mhd.algorithms.dsgd(mixing=mixing)
    everyone = tiny_clients(K, optimizer=still)
    first, found, _ = trajectory(algorithm, RING, everyone, start=scattered)
    for before, after in zip(first, found[-1], strict=True):
        np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-6)
        assert after.std(axis=0).max() < 0.2 * before.std(axis=0).max()


def test_one_round_on_a_complete_graph_is_the_mean(float64):
    still = mhd.optim.SGD(1e-12, 0.0, weight_decay=0.0, schedule="constant").build(20)
    complete = np.ones((K, K), np.float32) - np.eye(K, dtype=np.float32)
    everyone = tiny_clients(K, optimizer=still)
    first, found, _ = trajectory(mhd.algorithms.dsgd(), complete, everyone, start=scattered)
    for before, after in zip(first, found[0], strict=True):
        np.testing.assert_allclose(
            after, np.broadcast_to(before.mean(axis=0), after.shape), atol=1e-6
        )


# i hears j at [i, j]; client 0 is heard by two, so that no way of weighing rows keeps the mean.
ONE_WAY = np.array([[0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], np.float32)
DIRECTED_RING = np.roll(np.eye(K, dtype=np.float32), 1, axis=1)


@pytest.mark.parametrize("graph", [DIRECTED_RING, ONE_WAY], ids=["ring", "uneven"])
def test_push_sum_finds_the_exact_mean_on_directed_graphs(graph, float64):
    still = mhd.optim.SGD(1e-12, 0.0, weight_decay=0.0, schedule="constant").build(20)
    everyone = tiny_clients(K, optimizer=still)
    algorithm = mhd.algorithms.dsgd(push_sum=True, gossip_rounds=20)
    first, found, _ = trajectory(algorithm, graph, everyone, start=scattered)
    for before, after in zip(first, found[-1], strict=True):
        mean = np.broadcast_to(before.mean(axis=0), after.shape)
        np.testing.assert_allclose(after, mean, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "settings"),
    [(ONE_WAY, {}), (ONE_WAY, {"averaging_rate": 0.7, "gossip_rounds": 2}), (DIRECTED_RING, {})],
)
def test_push_sum_follows_the_equations(graph, settings, float64):
    algorithm = mhd.algorithms.dsgd(label_smoothing=SMOOTHING, push_sum=True, **settings)
    first, found, metrics = trajectory(algorithm, graph, start=scattered)
    shares = (graph + np.eye(K)) / (graph.sum(axis=0) + 1)
    how = settings.get("averaging_rate", 1.0), settings.get("gossip_rounds", 1)
    x, m, weights = first, [np.zeros_like(a) for a in first], np.ones(K)
    quotients = lambda x: [a / weights.reshape((K,) + (1,) * (a.ndim - 1)) for a in x]
    for step, batch in enumerate(batches()):
        *x, weights = rounds([*x, weights], shares, *how)
        x, m = nesterov_step(x, m, gradients(quotients(x), batch), RATES[step])
        assert_close(found[step], quotients(x))
        np.testing.assert_array_equal(metrics[step]["messages"]["weights"], how[1] * graph)
    np.testing.assert_allclose(weights.sum(), K)
    assert (graph is DIRECTED_RING) == (abs(weights - 1).max() < 1e-12)


def test_the_consensus_model_of_push_sum_is_the_mean_that_it_keeps(float64):
    still = mhd.optim.SGD(1e-12, 0.0, weight_decay=0.0, schedule="constant").build(20)
    algorithm, batch = mhd.algorithms.dsgd(label_smoothing=SMOOTHING, push_sum=True), batches()[0]
    state = scattered(algorithm.init(jax.random.key(0), tiny_clients(K, optimizer=still), batch))
    after, _ = jax.jit(algorithm.train_step)(state, batch, jnp.asarray(ONE_WAY))
    found = parameters(groups.consensus(after, algorithm.consensus, num_active=K))
    for start, now, model in zip(parameters(state), parameters(after), found, strict=True):
        np.testing.assert_allclose(model, np.broadcast_to(start.mean(0), now.shape), atol=1e-6)
        assert abs(now.mean(axis=0) - start.mean(axis=0)).max() > 1e-3  # the quotients' plain mean


def test_push_sum_on_a_regular_undirected_graph_is_gossip(float64):
    _, found, _ = trajectory(mhd.algorithms.dsgd(push_sum=True), RING, start=scattered)
    _, expected, _ = trajectory(mhd.algorithms.dsgd(), RING, start=scattered)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_what_push_sum_cannot_average_is_refused():
    clients = mhd.make_clients("digits", 4)
    push_sum = mhd.algorithms.dsgd(push_sum=True)
    mhd.simulate(DIRECTED_RING, clients, push_sum, steps=1)
    apart = np.zeros((4, 4))  # two pairs, each with its ways back
    apart[[0, 1, 2, 3], [1, 0, 3, 2]] = 1
    prepare(apart, clients, push_sum)
    chain = np.eye(4, k=1)
    with pytest.raises(mhd.ConfigError, match="client 0 of custom hears client 1, whom nothing"):
        prepare(chain, clients, push_sum)
    ways = [mhd.topology.as_topology(graph, 4) for graph in (chain, chain.T)]
    there_and_back = mhd.topology.switch([(0, ways[0]), (7, ways[1])])
    prepare(there_and_back, clients, push_sum, steps=8)
    with pytest.raises(mhd.ConfigError, match="whom nothing reaches from 0"):
        prepare(there_and_back, clients, push_sum, steps=7)
    with pytest.raises(mhd.ConfigError, match=r"dsgd needs all .* graph without push_sum"):
        prepare(DIRECTED_RING, clients, push_sum, faults=mhd.Faults(offline=0.5))
    with pytest.raises(mhd.ConfigError, match=r"dsgd needs all .*'quarantine' .* the weights of"):
        prepare(DIRECTED_RING, clients, push_sum, on_nonfinite="quarantine")
    prepare("ring", clients, "dsgd", on_nonfinite="quarantine")
    with pytest.raises(mhd.ConfigError, match="no mixing 'metropolis_hastings'"):
        mhd.algorithms.dsgd(push_sum=True, mixing="metropolis_hastings")


@pytest.mark.parametrize("name", ["dsgd", "qg_dsgd"])
def test_without_neighbours_gossip_is_local_training(name, float64):
    """The same as `isolated` from the same parameters."""
    everyone = tiny_clients(K, optimizer=OPTIMIZER)
    state = ALGORITHMS[name]().init(jax.random.key(0), everyone, batches()[0])
    nobody = np.zeros((K, K), np.float32)
    one, _, _ = trajectory(ALGORITHMS[name](), nobody)
    _, apart, _ = trajectory(ALGORITHMS[name](), nobody)
    alone = mhd.algorithms.isolated(label_smoothing=0.0)
    step = jax.jit(alone.train_step)
    for batch, found in zip(batches(), apart, strict=True):
        state, _ = step(state, batch, jnp.asarray(nobody))
        for actual, expected in zip(found, parameters(state), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    assert all((a == a[:1]).all() for a in one)


def test_what_cannot_be_averaged_is_refused():
    mixed_clients = mhd.make_clients("digits", 4, "mlp:2,cnn:2")
    for name in ("dsgd", "qg_dsgd", "fedavg"):
        with pytest.raises(mhd.ConfigError, match="clients 0, 1: mlp; clients 2, 3: cnn"):
            mhd.simulate("ring", mixed_clients, name, steps=1)
    alike = mhd.make_clients("digits", 4)
    with pytest.raises(mhd.ConfigError, match=r"needs mhd_jax\.optim\.SGD with momentum"):
        mhd.simulate("ring", alike, "qg_dsgd", optimizer=mhd.optim.SGD(momentum=0.0), steps=1)
    one_way = np.eye(4, k=1) + np.eye(4, k=-3)
    with pytest.raises(mhd.ConfigError, match="clients 0 and 1 of custom are joined one way only"):
        mhd.simulate(one_way, alike, "dsgd", steps=1)
    turning = lambda step: jnp.roll(jnp.eye(4), step % 3 + 1, axis=1)
    with pytest.raises(mhd.ConfigError, match="joined one way only"):
        mhd.simulate(turning, alike, "dsgd", steps=1)
    mhd.simulate(one_way, alike, "fedavg", steps=1)  # the graph plays no part


# Distributed Distillation.


def logits_of(x, inputs):
    w, v, b = x
    return inputs @ w @ v + b


def softmax(x, inputs):
    z = logits_of(x, inputs)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def pull_gradient(x, inputs, target):
    """∇ ½ mean_x ‖s(x) − z(x)‖² by hand, through the softmax's Jacobian diag(s) − s sᵀ."""
    w, v, _ = x
    s = softmax(x, inputs)
    gap = s - target
    dz = s * (gap - (s * gap).sum(axis=1, keepdims=True)) / len(inputs)
    return [inputs.T @ (dz @ v.T), (inputs @ w).T @ dz, dz.sum(axis=0)]


def reference_batches(clients):
    """Batches whose public samples are rows of the clients' own public set."""
    everything = clients.data.inputs[clients.public].astype(np.float64)
    rng = np.random.default_rng(1)
    for batch in batches():
        rows = rng.permutation(len(everything))[:5]
        yield (
            dataclasses.replace(
                batch,
                public_inputs=jnp.asarray(everything[rows]),
                public_indices=jnp.asarray(rows, jnp.int32),
            ),
            everything,
        )


@pytest.mark.parametrize(
    ("graph", "rho", "model"),
    [(RING, 0.8, Linear()), (STAR, 3.0, Linear()), (RING, 0.8, Dropping())],
)
def test_distributed_distillation_follows_the_equations(graph, rho, model, float64):
    """Private samples alone are seen in training mode, with dropout."""
    clients = tiny_clients(K, model, OPTIMIZER, public_fraction=0.3)
    algorithm = mhd.algorithms.distributed_distillation(label_smoothing=SMOOTHING, rho=rho)
    steps = list(reference_batches(clients))
    state = algorithm.init(jax.random.key(0), clients, steps[0][0])
    everything = steps[0][1]
    x, w = parameters(state), mixing_matrix(graph, "metropolis_hastings")
    m = [np.zeros_like(a) for a in x]
    own = lambda i: [a[i] for a in x]
    z = np.stack([softmax(own(i), everything) for i in range(K)])
    said = z.copy()
    np.testing.assert_allclose(state.extra["estimates"], z, atol=1e-6)
    train_step = jax.jit(algorithm.train_step)
    for step, (batch, _) in enumerate(steps):
        rows, inputs = np.asarray(batch.public_indices), np.asarray(batch.public_inputs)
        g = gradients(x, batch, dropout_of(model, step))
        pulls = [pull_gradient(own(i), inputs, z[i, rows]) for i in range(K)]
        g = [a + rho * np.stack(b) for a, b in zip(g, zip(*pulls, strict=True), strict=True)]
        x, m = nesterov_step(x, m, g, RATES[step])
        now = np.stack([softmax(own(i), inputs) for i in range(K)])
        z[:, rows] = mixed(w, z[:, rows]) + now - said[:, rows]
        said[:, rows] = now

        state, _ = train_step(state, batch, jnp.asarray(graph))
        for actual, expected in zip(parameters(state), x, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(state.extra["estimates"], z, atol=1e-6)
        np.testing.assert_allclose(state.extra["previous_decisions"], said, atol=1e-6)
        # The invariant, for every x, and whatever the minibatch was.
        np.testing.assert_allclose(
            state.extra["estimates"].sum(axis=0),
            state.extra["previous_decisions"].sum(axis=0),
            atol=1e-6,
        )


# FedMD.


def digest_gradient(x, inputs, consensus, kind):
    """∇ mean |z − z̃| over samples and classes, or ∇ mean_x CE(softmax z, softmax z̃), by hand."""
    w, v, _ = x
    if kind == "mae":
        dz = np.sign(logits_of(x, inputs) - consensus) / consensus.size
    else:
        target = np.exp(consensus - consensus.max(axis=1, keepdims=True))
        target /= target.sum(axis=1, keepdims=True)
        dz = (softmax(x, inputs) - target) / len(inputs)
    return [inputs.T @ (dz @ v.T), (inputs @ w).T @ dz, dz.sum(axis=0)]


@pytest.mark.parametrize("kind", ["mae", "kl"])
def test_fedmd_follows_the_equations(kind, float64):
    """Two rounds of two digest steps and one revisit step."""
    algorithm = mhd.algorithms.fedmd(
        label_smoothing=SMOOTHING, digest_steps=2, revisit_steps=1, digest_loss=kind
    )
    x, found, metrics = trajectory(algorithm, RING)
    assert any((a != a[:1]).any() for a in x)  # unlike parameters have a consensus to find
    m = [np.zeros_like(a) for a in x]
    for step, batch in enumerate(batches()):
        if step % 3 == 0:
            start = x
        if step % 3 < 2:
            inputs = np.asarray(batch.public_inputs)
            consensus = np.mean(
                [logits_of([a[i] for a in start], inputs) for i in range(K)], axis=0
            )
            each = [digest_gradient([a[i] for a in x], inputs, consensus, kind) for i in range(K)]
            g = [
                np.stack(parts) + DECAY * a
                for parts, a in zip(zip(*each, strict=True), x, strict=True)
            ]
        else:
            g = gradients(x, batch)
        x, m = nesterov_step(x, m, g, RATES[step])
        for actual, expected in zip(found[step], x, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(metrics[step]["messages"]["predictions"], 2 * (step % 3 < 2))


# CCL.


def cross_entropy_and_features_gradient(x, inputs, labels, mask, factors, at_features):
    """∇CE as above, plus what a gradient at the features [B, D] adds to the backbone."""
    first, *rest = loss_gradient(x, inputs, labels, mask, factors)
    return [first + inputs.T @ (factors * at_features), *rest]


def class_sums(features, labels, mask):
    sums = np.zeros((NUM_CLASSES, features.shape[1]))
    counts = np.zeros(NUM_CLASSES)
    for row, label, real in zip(features, labels, mask, strict=True):
        sums[label] += real * row
        counts[label] += real
    return sums, counts


@pytest.mark.parametrize(
    ("graph", "settings", "model"),
    [
        (RING, {}, Linear()),
        (STAR, {"averaging_rate": 0.9, "mixing": "metropolis_hastings", "lambda_m": 0.7}, Linear()),
        (STAR, {"lambda_m": 0.0, "lambda_d": 1.3, "quasi_global": False}, Linear()),
        (RING, {"lambda_m": 0.5, "lambda_d": 0.0}, Linear()),
        (STAR, {"gossip_rounds": 3, "averaging_rate": 0.8}, Linear()),
        (RING, {"lambda_m": 0.7}, Dropping()),
    ],
)
def test_ccl_follows_the_equations(graph, settings, model, float64):
    """A client's own features are of training mode, with dropout; cross features are not."""
    clients = tiny_clients(K, model, OPTIMIZER)
    algorithm = mhd.algorithms.ccl(label_smoothing=SMOOTHING, **settings)
    first, found, metrics = trajectory(algorithm, graph, clients, start=scattered)
    w = mixing_matrix(graph, settings.get("mixing", "uniform"))
    gamma = settings.get("averaging_rate", 1.0)
    lambda_m, lambda_d = settings.get("lambda_m", 0.1), settings.get("lambda_d", 0.1)
    x, m, previous = first, [np.zeros_like(a) for a in first], RATES[0]
    for step, batch in enumerate(batches()):
        inputs, labels, mask = (np.asarray(a) for a in (batch.inputs, batch.labels, batch.mask))
        factors, before = dropout_of(model, step), x
        x = rounds(x, w, gamma, settings.get("gossip_rounds", 1))
        if settings.get("quasi_global", True):
            m = [b - (a - old) / previous for b, a, old in zip(m, x, before, strict=True)]
        each = []
        for i in range(K):
            neighbours = np.flatnonzero(graph[i])
            size = mask[i].sum()
            f = factors[i] * (inputs[i] @ x[0][i])
            at = np.zeros_like(f)
            model_variant = 0.0
            for j in neighbours:
                f_ij = inputs[i] @ before[0][j]
                scale = mask[i][:, None] / (size * f.shape[1])
                model_variant += (scale * (f - f_ij) ** 2).sum()
                at += lambda_m * 2 * scale * (f - f_ij)
            sums, counts = class_sums(f, labels[i], mask[i])
            for j in neighbours:  # j's samples through i's model before gossip
                more, number = class_sums(inputs[j] @ before[0][i], labels[j], mask[j])
                sums, counts = sums + more, counts + number
            centres = np.zeros_like(sums)
            np.divide(sums, counts[:, None], out=centres, where=counts[:, None] > 0)
            gap = f - centres[labels[i]]
            data_variant = (scale * gap**2).sum()
            at += lambda_d * 2 * scale * gap
            each.append(
                cross_entropy_and_features_gradient(
                    [a[i] for a in x], inputs[i], labels[i], mask[i], factors[i], at
                )
            )
            for name, value, weight in (
                ("model_variant_loss", model_variant, lambda_m),
                ("data_variant_loss", data_variant, lambda_d),
            ):
                assert (name in metrics[step]) == (weight > 0)
                if weight:
                    np.testing.assert_allclose(metrics[step][name][i], value, rtol=1e-6)
        g = [
            np.stack(parts) + DECAY * a for parts, a in zip(zip(*each, strict=True), x, strict=True)
        ]
        x, m = nesterov_step(x, m, g, RATES[step])
        previous = RATES[step]
        assert_close(found[step], x)
        sent = metrics[step]["messages"]
        np.testing.assert_array_equal(sent["weights"], settings.get("gossip_rounds", 1) * graph)
        if lambda_d:
            np.testing.assert_array_equal(sent["features"], graph)


@pytest.mark.parametrize(("quasi_global", "base"), [(True, "qg_dsgd"), (False, "dsgd")])
def test_ccl_without_its_losses_is_gossip(quasi_global, base, float64):
    bare = mhd.algorithms.ccl(lambda_m=0.0, lambda_d=0.0, quasi_global=quasi_global)
    _, found, _ = trajectory(bare, RING, start=scattered)
    _, expected, _ = trajectory(ALGORITHMS[base](), RING, start=scattered)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_ccl_sends():
    clients, batch = tiny_clients(K, optimizer=OPTIMIZER), tiny_batch(K)  # F = 4, D = 5, C = 3
    algorithm = mhd.algorithms.ccl()
    state = algorithm.init(jax.random.key(0), clients, batch)
    weights = 4 * (4 * 5 + 5 * 3 + 3)
    (group,) = state.groups
    sent = algorithm.message(state, batch, group)
    assert sent.keys() == {"weights", "features"}
    assert bytes_by_type(sent["weights"]) == {"weights": weights}
    assert bytes_by_type(sent["features"]) == {"class features": 4 * (3 * 5 + 3)}
    no_data_variant = mhd.algorithms.ccl(lambda_d=0.0)
    assert no_data_variant.message(state, batch, group).keys() == {"weights"}
