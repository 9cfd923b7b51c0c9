"""Algorithms that average parameters or predictions, against NumPy trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.core.random import Purpose
from mhd_jax.core.types import Presence
from mhd_jax.engine.prepare import prepare
from mhd_jax.exchange.messages import bytes_by_type
from mhd_jax.training import groups
from tests.builders import (
    NUM_CLASSES,
    Dropping,
    Linear,
    dropped,
    softmax,
    take_steps,
    thinned,
    tiny_batch,
    tiny_clients,
    with_params,
)

K, STEPS = 4, 6
RATES = 0.1 * 0.5 * (1 + np.cos(np.pi * np.arange(STEPS) / 20))  # cosine over 20 steps
BETA, DECAY, SMOOTHING = 0.9, 1e-2, 0.1
OPTIMIZER = mhd.optim.SGD(0.1, BETA, nesterov=True, weight_decay=DECAY).build(20)
STILL = mhd.optim.SGD(1e-12, 0.0, weight_decay=0.0, schedule="constant").build(20)
RING = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], np.float32)
STAR = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.float32)
NO_DROPOUT = np.ones(K)


def through_model(x, inputs, dz, factors=1.0):
    """Gradients of a linear model W (F × D), V (D × C), b where those of its logits are dz [N, C].

    `factors` of the hidden layer are dropout's.
    """
    w, v, _ = x
    return [inputs.T @ (factors * (dz @ v.T)), (factors * (inputs @ w)).T @ dz, dz.sum(axis=0)]


def logits_of(x, inputs, factors=1.0):
    w, v, b = x
    return factors * (inputs @ w) @ v + b


def loss_gradient(x, inputs, labels, mask, factors=1.0):
    """∇CE to smooth labels, by hand."""
    targets = (1 - SMOOTHING) * np.eye(NUM_CLASSES)[labels] + SMOOTHING / NUM_CLASSES
    p = softmax(logits_of(x, inputs, factors))
    return through_model(x, inputs, (p - targets) * (mask / mask.sum())[:, None], factors)


def batches():
    return [tiny_batch(K, seed=step, dtype=jnp.float64) for step in range(STEPS)]


def of(x, i):
    """One client's arrays."""
    return [a[i] for a in x]


def stacked(each):
    """The clients' lists of arrays as a list of arrays [K, …]."""
    return [np.stack(parts) for parts in zip(*each, strict=True)]


def zeros_like(x):
    return [np.zeros_like(a) for a in x]


def decayed(each, x):
    """Gradients of all clients as a list of arrays [K, …], with weight decay."""
    return [g + DECAY * a for g, a in zip(stacked(each), x, strict=True)]


def gradients(x, batch, factors=NO_DROPOUT):
    seen = batch.inputs, batch.labels, batch.mask, factors
    return decayed(
        [loss_gradient(of(x, i), *(np.asarray(b[i]) for b in seen)) for i in range(K)], x
    )


def dropout_of(model, step):
    """What a model's private pass multiplies embeddings by, [K, B, D] or ones [K]."""
    return dropped(Purpose.DROPOUT, step, 6) if isinstance(model, Dropping) else NO_DROPOUT


def parameters(state):
    """W, V and b [K, …] of linear models with one head."""
    params = state.groups[0].params
    heads = params["heads"]
    found = params["backbone"]["Dense_0"]["kernel"], heads["kernel"][:, 0], heads["bias"][:, 0]
    return list(map(np.asarray, found))


def trajectory(algorithm, graph, clients=None, start=None, optimizer=OPTIMIZER, presence=None):
    """Parameters before and after every step of the algorithm itself, and the metrics."""
    everyone = clients or tiny_clients(K, optimizer=optimizer)
    seen = [batch.replace(presence=presence) for batch in batches()]
    state = start and start(algorithm.init(jax.random.key(0), everyone, seen[0]))
    states, metrics = take_steps(algorithm, everyone, jnp.asarray(graph), seen, state)
    first, *found = map(parameters, states)
    return first, found, metrics


def scattered(state):
    """The same state with clients that differ."""
    noise = np.random.default_rng(0)
    return with_params(state, lambda a: a + 0.3 * noise.normal(size=a.shape))


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
    sent = settings.get("gossip_rounds", 1) * graph
    for now, told, x in zip(found, metrics, expected, strict=True):
        assert_close(now, x)
        np.testing.assert_array_equal(told["messages"]["weights"], sent)


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
    x, m = first, zeros_like(first)
    for batch, rate, previous in zip(batches(), rates, before, strict=True):
        start, x = x, rounds(x, w, averaging_rate, gossip_rounds)
        if quasi_global:
            m = [b - (a - old) / previous for b, a, old in zip(m, x, start, strict=True)]
        x, m = nesterov_step(x, m, gradients(x, batch), rate)
        yield x


def assert_close(actual, expected, **tolerance):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-6, "atol": 1e-6} | tolerance)


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
    how = {"mu": mu, "gossip_rounds": gossip_rounds}
    algorithm = mhd.algorithms.qg_dsgd(label_smoothing=SMOOTHING, **how)
    first, found, _ = trajectory(algorithm, RING)
    w = mixing_matrix(RING, "uniform")
    x, buffer = first, zeros_like(first)
    for step, batch in enumerate(batches()):
        g = gradients(x, batch)
        m = [BETA * b + slope for b, slope in zip(buffer, g, strict=True)]
        half = [
            a - RATES[step] * (slope + BETA * moment)
            for a, slope, moment in zip(x, g, m, strict=True)
        ]
        assert_close(found[step], half)
        following = rounds(half, w, 1.0, gossip_rounds)
        buffer = [
            mu * b + (1 - mu) * (a - new) / RATES[step]
            for b, a, new in zip(buffer, x, following, strict=True)
        ]
        x = following


RATE = mhd.optim.SGD(0.1).rate(20)
PARTS = {"backbone": "w", "heads": {"kernel": "v", "bias": "b"}}  # labels of W, V and b
ADAM_AND_SGD = {"w": optax.adam(0.01), "v": optax.adam(0.03), "b": optax.sgd(0.05)}


@pytest.mark.parametrize(
    ("name", "optimizer", "etas"),
    [
        ("qg_dsgd", optax.adam(0.01), [0.01, 0.01, 0.01]),
        ("ccl", optax.adam(0.01), [0.01, 0.01, 0.01]),
        ("qg_dsgd", optax.partition(ADAM_AND_SGD, PARTS), [0.01, 0.03]),
    ],
    ids=["qg_dsgd", "ccl", "parts"],
)
def test_quasi_global_moments_of_adam(name, optimizer, etas, float64):
    """The QGM authors' Adam: both moments follow the normalised move of parameters after mixing.

    The norm is over the parameters that have moments, of which b has none in parts.
    """
    weights = {"lambda_m": 0, "lambda_d": 0} if name == "ccl" else {}
    algorithm = ALGORITHMS[name](label_smoothing=SMOOTHING, averaging_rate=0.8, **weights)
    adam, n = optax.chain(optax.add_decayed_weights(DECAY), optimizer), len(etas)
    first, found, _ = trajectory(algorithm, RING, optimizer=adam)
    w = mixing_matrix(RING, "uniform")
    x, m, v = first, zeros_like(first[:n]), zeros_like(first[:n])
    for step, batch in enumerate(batches()):
        g = gradients(x, batch)
        ms = [(0.9 * a + 0.1 * b) / (1 - 0.9 ** (step + 1)) for a, b in zip(m, g[:n], strict=True)]
        vs = [
            (0.999 * a + 1e-3 * b * b) / (1 - 0.999 ** (step + 1))
            for a, b in zip(v, g[:n], strict=True)
        ]
        after = [
            a - eta * b / (np.sqrt(c) + 1e-8)
            for eta, a, b, c in zip(etas, x[:n], ms, vs, strict=True)
        ] + [a - 0.05 * b for a, b in zip(x[n:], g[n:], strict=True)]
        assert_close(found[step], after)
        following = rounds(after, w, 0.8, 1)
        moves = [a - b for a, b in zip(x[:n], following[:n], strict=True)]
        norms = [np.sqrt(sum((d[i] ** 2).sum() for d in moves)) + 1e-8 for i in range(K)]
        moves = [np.stack([d[i] / norms[i] for i in range(K)]) for d in moves]
        m = [0.9 * a + 0.1 * d for a, d in zip(m, moves, strict=True)]
        v = [0.999 * a + 1e-3 * d * d for a, d in zip(v, moves, strict=True)]
        x = following


def told_sgd(rate, momentum, nesterov=True):
    """An optimizer of optax whose state tells its learning rate."""
    return optax.inject_hyperparams(optax.sgd)(
        learning_rate=rate, momentum=momentum, nesterov=nesterov
    )


def where_backbone(is_it):
    return lambda params: {name: (name == "backbone") == is_it for name in params}


SPLIT_BUFFERS = [
    optax.masked(optax.trace(BETA, nesterov=True), where_backbone(is_it)) for is_it in (True, False)
]


@pytest.mark.parametrize(
    "theirs",
    [
        [told_sgd(RATE, BETA)],
        [*SPLIT_BUFFERS, optax.inject_hyperparams(optax.scale_by_learning_rate)(RATE)],
    ],
    ids=["whole", "split"],
)
def test_quasi_global_momentum_of_an_optax_optimizer_that_tells_its_rate(theirs, float64):
    algorithm = mhd.algorithms.qg_dsgd(label_smoothing=SMOOTHING)
    theirs = optax.chain(optax.add_decayed_weights(DECAY), *theirs)
    first, found, _ = trajectory(algorithm, RING, start=scattered, optimizer=theirs)
    for now, x in zip(found, gossip(first, RING, RATES, quasi_global=True), strict=True):
        assert_close(now, x)


@pytest.mark.parametrize("mu", [None, 0.8])
def test_each_part_of_the_parameters_has_its_own_quasi_global_momentum(mu, float64):
    """W and V have optimizers with momentum of their own; b has one without, and is averaged."""
    parts = {"w": told_sgd(RATE, BETA), "v": told_sgd(0.02, 0.5), "b": optax.sgd(0.05)}
    theirs = optax.chain(optax.add_decayed_weights(DECAY), optax.partition(parts, PARTS))
    algorithm = mhd.algorithms.qg_dsgd(label_smoothing=SMOOTHING, averaging_rate=0.7, mu=mu)
    first, found, _ = trajectory(algorithm, RING, optimizer=theirs)
    w, betas, last = mixing_matrix(RING, "uniform"), [BETA, 0.5, 0.0], [RATES[0], 0.02, 0.05]
    x, mixed_before, m, buffer = first, first, zeros_like(first), zeros_like(first)
    for batch, rate, now in zip(batches(), RATES, found, strict=True):
        start, x = x, rounds(x, w, 0.7, 1)
        if mu is None:
            m = [b - (a - old) / eta for b, a, old, eta in zip(m, x, start, last, strict=True)]
        else:
            moves = [(old - a) / eta for old, a, eta in zip(mixed_before, x, last, strict=True)]
            m = buffer = [mu * b + (1 - mu) * d for b, d in zip(buffer, moves, strict=True)]
        mixed_before, last = x, [rate, 0.02, 0.05]
        each = list(zip(x, m, gradients(x, batch), betas, last, strict=True))
        m = [beta * b + g for _, b, g, beta, _ in each]
        x = [a - eta * (g + beta * (beta * b + g)) for a, b, g, beta, eta in each]
        assert_close(now, x)


UNCLEAR = {
    "inject_hyperparams": optax.sgd(0.1, momentum=BETA),
    "its momentum and its": optax.partition(  # W's rate is unknown, and is not V's
        {"w": optax.sgd(0.1, momentum=BETA), "v": told_sgd(0.1, BETA), "b": optax.sgd(0.1)}, PARTS
    ),
    "tells its momentum": optax.lion(1e-3),  # one moment
    "a larger batch_size": optax.MultiSteps(told_sgd(0.1, BETA), 2).gradient_transformation(),
    "several.*apply_every": optax.chain(told_sgd(0.1, BETA), optax.apply_every(2)),
    "one momentum of each": optax.chain(optax.trace(0.5), told_sgd(0.1, BETA)),
    "all of Adam's": optax.partition(
        {"w": optax.adam(0.1), "v": told_sgd(0.1, BETA), "b": optax.set_to_zero()}, PARTS
    ),
    "the parameter's shape": optax.flatten(told_sgd(0.1, BETA)),
}


@pytest.mark.parametrize("says", UNCLEAR)
def test_optimizers_whose_momentum_is_unclear_are_refused(says):
    clients = tiny_clients(K, optimizer=UNCLEAR[says])
    with pytest.raises(mhd.ConfigError, match=says) as raised:
        mhd.algorithms.qg_dsgd().init(jax.random.key(0), clients, tiny_batch(K))
    assert "\n" not in str(raised.value)


def test_a_round_of_fedavg_begins_without_momentum_in_any_part(float64):
    """Whether Adam's moments or the buffers of several optimizers."""
    parts = {"w": optax.adam(0.01), "v": told_sgd(0.1, BETA), "b": optax.sgd(0.1, momentum=BETA)}
    adam = optax.adam(0.01)
    for optimizer, count in ((adam, 6), (optax.partition(parts, PARTS), 4)):
        for reset in (True, False):
            algorithm = mhd.algorithms.fedavg(local_steps=3, reset_momentum=reset)
            clients = tiny_clients(K, optimizer=optimizer)
            states, _ = take_steps(algorithm, clients, jnp.asarray(RING), batches()[:3])
            found = [
                np.asarray(array)
                for name in ("mu", "nu", "trace")
                for _, tree in optax.tree_utils.tree_get_all_with_path(
                    states[-1].groups[0].opt_state, name
                )
                for array in jax.tree.leaves(tree)
            ]
            assert len(found) == count
            assert all((array == 0).all() == reset for array in found)
            if optimizer is adam:  # whose moments are corrected by the steps since they were 0
                taken = optax.tree_utils.tree_get(states[-1].groups[0].opt_state, "count")
                np.testing.assert_array_equal(taken, [0 if reset else 3] * K)


@pytest.mark.parametrize(
    ("settings", "round_steps"),
    thinned(
        [
            ({"local_steps": 3}, 3),
            ({"local_steps": 2, "reset_momentum": False}, 2),
            # 3.6 batches of 6 for the average client, who has 10.75 samples
            ({"local_epochs": 2.0}, 4),
            ({"local_epochs": 1.0, "reset_momentum": False}, 2),
            ({"local_epochs": 0.01}, 1),
        ],
        2,
    ),
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
    x, m = first, zeros_like(first)
    for step, batch in enumerate(batches()):
        x, m = nesterov_step(x, m, gradients(x, batch), RATES[step])
        averages = (step + 1) % round_steps == 0
        if averages:
            w = np.tile(sizes / sizes.sum(), (K, 1))
            x = [mixed(w, a) for a in x]
            if settings.get("reset_momentum", True):
                m = zeros_like(m)
        assert_close(found[step], x)
        np.testing.assert_array_equal(metrics[step]["messages"]["weights"], 2 * averages)


def test_a_round_of_fedavg_is_of_steps_or_of_epochs():
    with pytest.raises(mhd.ConfigError, match="give local_steps or local_epochs, not both"):
        mhd.algorithms.fedavg(local_steps=3, local_epochs=1.0)


@pytest.mark.parametrize("mixing", ["uniform", "metropolis_hastings"])
def test_gossip_keeps_the_mean(mixing, float64):
    """With a doubly stochastic W and no learning, only the spread changes."""
    algorithm = mhd.algorithms.dsgd(mixing=mixing)
    first, found, _ = trajectory(algorithm, RING, start=scattered, optimizer=STILL)
    for before, after in zip(first, found[-1], strict=True):
        np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-6)
        assert after.std(axis=0).max() < 0.2 * before.std(axis=0).max()


def means(x):
    """The mean over clients, for each of them."""
    return [np.broadcast_to(a.mean(axis=0), a.shape) for a in x]


def test_one_round_on_a_complete_graph_is_the_mean(float64):
    complete, dsgd = 1 - np.eye(K, dtype=np.float32), mhd.algorithms.dsgd()
    first, found, _ = trajectory(dsgd, complete, start=scattered, optimizer=STILL)
    assert_close(found[0], means(first))


# i hears j at [i, j]; client 0 is heard by two, so that no way of weighing rows keeps the mean.
ONE_WAY = np.array([[0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], np.float32)
DIRECTED_RING = np.roll(np.eye(K, dtype=np.float32), 1, axis=1)


@pytest.mark.parametrize("graph", [DIRECTED_RING, ONE_WAY], ids=["ring", "uneven"])
def test_push_sum_finds_the_exact_mean_on_directed_graphs(graph, float64):
    algorithm = mhd.algorithms.dsgd(push_sum=True, gossip_rounds=20)
    first, found, _ = trajectory(algorithm, graph, start=scattered, optimizer=STILL)
    assert_close(found[-1], means(first), atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "settings"),
    [(ONE_WAY, {}), (ONE_WAY, {"averaging_rate": 0.7, "gossip_rounds": 2}), (DIRECTED_RING, {})],
)
def test_push_sum_follows_the_equations(graph, settings, float64):
    algorithm = mhd.algorithms.dsgd(label_smoothing=SMOOTHING, push_sum=True, **settings)
    first, found, metrics = trajectory(algorithm, graph, start=scattered)
    shares = (graph + np.eye(K)) / (graph.sum(axis=0) + 1)
    how = settings.get("averaging_rate", 1.0), settings.get("gossip_rounds", 1)
    x, m, weights = first, zeros_like(first), np.ones(K)
    quotients = lambda x: [a / weights.reshape((K,) + (1,) * (a.ndim - 1)) for a in x]
    for step, batch in enumerate(batches()):
        *x, weights = rounds([*x, weights], shares, *how)
        x, m = nesterov_step(x, m, gradients(quotients(x), batch), RATES[step])
        assert_close(found[step], quotients(x))
        np.testing.assert_array_equal(metrics[step]["messages"]["weights"], how[1] * graph)
    np.testing.assert_allclose(weights.sum(), K)
    assert (graph is DIRECTED_RING) == (abs(weights - 1).max() < 1e-12)


def test_the_consensus_model_of_push_sum_is_the_mean_that_it_keeps(float64):
    algorithm, batch = mhd.algorithms.dsgd(label_smoothing=SMOOTHING, push_sum=True), batches()[0]
    clients = tiny_clients(K, optimizer=STILL)
    state = scattered(algorithm.init(jax.random.key(0), clients, batch))
    (_, after), _ = take_steps(algorithm, clients, jnp.asarray(ONE_WAY), [batch], state)
    start, now = parameters(state), parameters(after)
    assert_close(
        parameters(groups.consensus(after, algorithm.consensus, num_active=K)), means(start)
    )
    for one, other in zip(means(start), means(now), strict=True):
        assert abs(one - other).max() > 1e-3  # the quotients' plain mean


BARE = {"lambda_m": 0.0, "lambda_d": 0.0}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mhd.algorithms.dsgd(push_sum=True), mhd.algorithms.dsgd()),  # where the graph is regular
        (mhd.algorithms.ccl(**BARE, quasi_global=False), mhd.algorithms.dsgd()),
        (mhd.algorithms.ccl(**BARE), mhd.algorithms.qg_dsgd()),
    ],
)
def test_special_cases_of_gossip_are_other_algorithms(one, other, float64):
    found, expected = (trajectory(each, RING, start=scattered)[1] for each in (one, other))
    for now, then in zip(found, expected, strict=True):
        assert_close(now, then, rtol=1e-12, atol=1e-14)


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


def test_what_cannot_be_averaged_is_refused():
    mixed_clients = mhd.make_clients("digits", 4, "mlp:2,cnn:2")
    for name in ("dsgd", "qg_dsgd", "fedavg"):
        with pytest.raises(mhd.ConfigError, match="clients 0, 1: mlp; clients 2, 3: cnn"):
            mhd.simulate("ring", mixed_clients, name, steps=1)
    alike = mhd.make_clients("digits", 4)
    with pytest.raises(mhd.ConfigError, match=r"mhd_jax\.optim\.SGD with momentum"):
        mhd.simulate("ring", alike, "qg_dsgd", optimizer=mhd.optim.SGD(momentum=0.0), steps=1)
    one_way = np.eye(4, k=1) + np.eye(4, k=-3)
    with pytest.raises(mhd.ConfigError, match="clients 0 and 1 of custom are joined one way only"):
        mhd.simulate(one_way, alike, "dsgd", steps=1)
    turning = lambda step: jnp.roll(jnp.eye(4), step % 3 + 1, axis=1)
    with pytest.raises(mhd.ConfigError, match="joined one way only"):
        mhd.simulate(turning, alike, "dsgd", steps=1)
    mhd.simulate(one_way, alike, "fedavg", steps=1)  # the graph plays no part


# Distributed Distillation.


def pull_gradient(x, inputs, target):
    """∇ ½ mean_x ‖s(x) − z(x)‖² by hand, through the softmax's Jacobian diag(s) − s sᵀ."""
    s = softmax(logits_of(x, inputs))
    gap = s - target
    return through_model(x, inputs, s * (gap - (s * gap).sum(axis=1, keepdims=True)) / len(inputs))


def on_public_set(everything):
    """Batches whose public samples are rows of the clients' own public set."""
    rng = np.random.default_rng(1)
    for batch in batches():
        rows = jnp.asarray(rng.permutation(len(everything))[:5], jnp.int32)
        yield batch.replace(public_inputs=jnp.asarray(everything)[rows], public_indices=rows)


@pytest.mark.parametrize(
    ("graph", "rho", "model"),
    [(RING, 0.8, Linear()), (STAR, 3.0, Linear()), (RING, 0.8, Dropping())],
)
def test_distributed_distillation_follows_the_equations(graph, rho, model, float64):
    """Private samples alone are seen in training mode, with dropout."""
    clients = tiny_clients(K, model, OPTIMIZER, public_fraction=0.3)
    algorithm = mhd.algorithms.distributed_distillation(label_smoothing=SMOOTHING, rho=rho)
    everything = clients.data.inputs[clients.public].astype(np.float64)
    seen = list(on_public_set(everything))
    states, _ = take_steps(algorithm, clients, jnp.asarray(graph), seen)
    x, w = parameters(states[0]), mixing_matrix(graph, "metropolis_hastings")
    m = zeros_like(x)
    said_of = lambda inputs: np.stack([softmax(logits_of(of(x, i), inputs)) for i in range(K)])
    z = said_of(everything)
    said = z.copy()
    np.testing.assert_allclose(states[0].extra["estimates"], z, atol=1e-6)
    for step, (batch, state) in enumerate(zip(seen, states[1:], strict=True)):
        rows, inputs = np.asarray(batch.public_indices), np.asarray(batch.public_inputs)
        pulls = stacked([pull_gradient(of(x, i), inputs, z[i, rows]) for i in range(K)])
        g = gradients(x, batch, dropout_of(model, step))
        g = [own + rho * pull for own, pull in zip(g, pulls, strict=True)]
        x, m = nesterov_step(x, m, g, RATES[step])
        now = said_of(inputs)
        z[:, rows] = mixed(w, z[:, rows]) + now - said[:, rows]
        said[:, rows] = now
        assert_close(parameters(state), x)
        kept = [np.asarray(state.extra[name]) for name in ("estimates", "previous_decisions")]
        assert_close(kept, [z, said], rtol=0)
        # The invariant, for every x, and whatever the minibatch was.
        np.testing.assert_allclose(*(a.sum(axis=0) for a in kept), atol=1e-6)


# FedMD.


def digest_gradient(x, inputs, consensus, kind):
    """∇ mean |z − z̃| over samples and classes, or ∇ mean_x CE(softmax z, softmax z̃), by hand."""
    z = logits_of(x, inputs)
    if kind == "mae":
        return through_model(x, inputs, np.sign(z - consensus) / consensus.size)
    return through_model(x, inputs, (softmax(z) - softmax(consensus)) / len(inputs))


@pytest.mark.parametrize("kind", ["mae", "kl"])
def test_fedmd_follows_the_equations(kind, float64):
    """Two rounds of two digest steps and one revisit step."""
    algorithm = mhd.algorithms.fedmd(
        label_smoothing=SMOOTHING, digest_steps=2, revisit_steps=1, digest_loss=kind
    )
    x, found, metrics = trajectory(algorithm, RING)
    assert any((a != a[:1]).any() for a in x)  # unlike parameters have a consensus to find
    m = zeros_like(x)
    for step, batch in enumerate(batches()):
        if step % 3 == 0:
            start = x
        if step % 3 < 2:
            inputs = np.asarray(batch.public_inputs)
            consensus = np.mean([logits_of(of(start, i), inputs) for i in range(K)], axis=0)
            each = [digest_gradient(of(x, i), inputs, consensus, kind) for i in range(K)]
            g = decayed(each, x)
        else:
            g = gradients(x, batch)
        x, m = nesterov_step(x, m, g, RATES[step])
        assert_close(found[step], x)
        np.testing.assert_array_equal(metrics[step]["messages"]["predictions"], 2 * (step % 3 < 2))


# CCL.


def class_sums(features, labels, mask):
    """Sums and numbers of the features of each class [C, D], [C]."""
    of_class = np.eye(NUM_CLASSES)[labels] * mask[:, None]
    return of_class.T @ features, of_class.sum(axis=0)


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
    x, m, previous = first, zeros_like(first), RATES[0]
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
            w_i, *rest = loss_gradient(of(x, i), inputs[i], labels[i], mask[i], factors[i])
            each.append([w_i + inputs[i].T @ (factors[i] * at), *rest])
            for name, value, weight in (
                ("model_variant_loss", model_variant, lambda_m),
                ("data_variant_loss", data_variant, lambda_d),
            ):
                assert (name in metrics[step]) == (weight > 0)
                if weight:
                    np.testing.assert_allclose(metrics[step][name][i], value, rtol=1e-6)
        x, m = nesterov_step(x, m, decayed(each, x), RATES[step])
        previous = RATES[step]
        assert_close(found[step], x)
        sent = metrics[step]["messages"]
        np.testing.assert_array_equal(sent["weights"], settings.get("gossip_rounds", 1) * graph)
        if lambda_d:
            np.testing.assert_array_equal(sent["features"], graph)


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


# IDKD.

UNEQUAL = mhd.partition.primary_labels(1, 5.0)


def labels_by(x, inputs, threshold, temperature):
    """The soft labels of all clients [K, P, C], 0 where one is not sure enough."""
    s = np.stack([softmax(logits_of(of(x, i), inputs) / temperature) for i in range(K)])
    return np.where(s.max(axis=2, keepdims=True) > threshold, s, 0)


def combined_label(labels, samples, choice):
    """The label [C] of a sample from those [n, C] of clients with so many samples by class [n, C]."""
    has = labels.any(axis=1)
    if not has.any():
        return np.zeros(NUM_CLASSES)
    if choice == "mean":
        return labels[has].mean(axis=0)
    of_class = [n[label.argmax()] for n, label in zip(samples[has], labels[has], strict=True)]
    return labels[has][np.argmax(of_class)]


def union_gradient(x, private, inputs, targets, num_samples, num_public):
    """Of the mean loss over private samples and labelled public ones, as a step estimates it."""
    has = targets.any(axis=1)
    public = num_public * has.mean()
    w = public / (num_samples + public)
    g = [(1 - w) * a for a in loss_gradient(x, *private)]
    if not has.any():
        return g
    dz = (softmax(logits_of(x, inputs[has])) - targets[has]) / has.sum()
    return [a + w * b for a, b in zip(g, through_model(x, inputs[has], dz), strict=True)]


@pytest.mark.parametrize(
    ("graph", "settings"),
    [
        (RING, {"threshold": 0.7}),
        (STAR, {"threshold": 0.6, "temperature": 2.0, "label_choice": "most_samples"}),
        (STAR, {"threshold": 0.0, "averaging_rate": 0.5, "mixing": "metropolis_hastings"}),
    ],
)
def test_idkd_follows_the_equations(graph, settings, float64):
    clients = tiny_clients(K, optimizer=OPTIMIZER, public_fraction=0.3, partition=UNEQUAL)
    everything = clients.data.inputs[clients.public].astype(np.float64)
    batches_seen, start = list(on_public_set(everything)), 2
    algorithm = mhd.algorithms.idkd(label_smoothing=SMOOTHING, start_step=start, **settings)
    begun = scattered(algorithm.init(jax.random.key(0), clients, batches_seen[0]))
    states, metrics = take_steps(algorithm, clients, jnp.asarray(graph), batches_seen, begun)
    how = {"threshold": 0.8, "temperature": 1.0, "label_choice": "mean", **settings}
    choice, sure = how["label_choice"], (how["threshold"], how["temperature"])
    w, rate = mixing_matrix(graph, how.get("mixing", "uniform")), how.get("averaging_rate", 1.0)
    samples = clients.label_counts()
    x = parameters(begun)
    m, known = zeros_like(x), np.zeros((K, len(everything), NUM_CLASSES))
    drawn, sent_in_all = set(), 0
    for step, batch in enumerate(batches_seen):
        rows, inputs = np.asarray(batch.public_indices), np.asarray(batch.public_inputs)
        sent = np.zeros((K, K), int)
        if step == start:
            labellers = x
        if step >= start:
            labels = labels_by(labellers, inputs, *sure)
            for p in [p for p, row in enumerate(rows) if row not in drawn]:
                for i in range(K):
                    near = [i, *np.flatnonzero(graph[i])]
                    known[i, rows[p]] = combined_label(labels[near, p], samples[near], choice)
                sent += (graph * labels[:, p].any(axis=1)).astype(int)
            drawn |= set(rows)
        before, x = x, rounds(x, w, rate, 1)
        previous = RATES[max(step - 1, 0)]
        m = [b - (a - old) / previous for b, a, old in zip(m, x, before, strict=True)]
        g = gradients(x, batch)
        if step >= start:
            privates = [
                [np.asarray(a[i]) for a in (batch.inputs, batch.labels, batch.mask)]
                for i in range(K)
            ]
            g = [
                union_gradient(
                    of(x, i), privates[i], inputs, known[i, rows], samples[i].sum(), len(everything)
                )
                for i in range(K)
            ]
            g = decayed(g, x)
        x, m = nesterov_step(x, m, g, RATES[step])
        assert_close(parameters(states[step + 1]), x)
        np.testing.assert_array_equal(metrics[step]["messages"]["labels"], sent)
        np.testing.assert_array_equal(metrics[step]["messages"]["weights"], graph)
        sent_in_all += sent.sum()
    np.testing.assert_allclose(states[-1].extra["labels"], known, atol=1e-6)
    whole = len(drawn) * graph.sum()
    assert sent_in_all == whole if how["threshold"] == 0 else 0 < sent_in_all < whole


# FedProto.


def prototype_gradient(x, inputs, labels, mask, prototypes, weight):
    """∇ λ mean_x ‖φ(x) − C̄[y]‖² / D by hand, over samples of classes with a prototype."""
    features = inputs @ x[0]
    has = mask * ~np.isnan(prototypes[labels]).any(axis=1)
    gaps = np.where(has[:, None] > 0, features - prototypes[labels], 0)
    dh = weight * 2 * gaps / (features.shape[1] * mask.sum())
    return [inputs.T @ dh, np.zeros_like(x[1]), np.zeros_like(x[2])]


@pytest.mark.parametrize("weighting", thinned(["samples", "clients"], 2))
@pytest.mark.parametrize("graph", [RING, ONE_WAY], ids=["ring", "uneven"])
def test_fedproto_follows_the_equations(graph, weighting, float64):
    """Three rounds of two steps, the first of which has no prototypes."""
    algorithm = mhd.algorithms.fedproto(
        label_smoothing=SMOOTHING, local_steps=2, lambda_p=0.7, weighting=weighting
    )
    x, found, metrics = trajectory(algorithm, graph)
    m = zeros_like(x)
    prototypes = np.full((K, NUM_CLASSES, 5), np.nan)
    for step, batch in enumerate(batches()):
        if step % 2 == 0:
            sums, counts = np.zeros_like(prototypes), np.zeros((K, NUM_CLASSES))
        privates = [
            [np.asarray(a[i]) for a in (batch.inputs, batch.labels, batch.mask)] for i in range(K)
        ]
        pulls = [prototype_gradient(of(x, i), *privates[i], prototypes[i], 0.7) for i in range(K)]
        for i, (inputs, labels, mask) in enumerate(privates):
            more = class_sums(inputs @ x[0][i], labels, mask)
            sums[i], counts[i] = sums[i] + more[0], counts[i] + more[1]
        own = gradients(x, batch)
        g = [a + b for a, b in zip(own, stacked(pulls), strict=True)]
        x, m = nesterov_step(x, m, g, RATES[step])
        assert_close(found[step], x)
        sent = np.zeros((K, K), int)
        if step % 2 == 1:
            sent = (graph * (counts > 0).sum(axis=1)).astype(int)
            for i in range(K):
                near = [i, *np.flatnonzero(graph[i])]
                for c in range(NUM_CLASSES):
                    have = [j for j in near if counts[j, c] > 0]
                    if have:
                        means = [sums[j, c] / counts[j, c] for j in have]
                        by = counts[have, c] if weighting == "samples" else None
                        prototypes[i, c] = np.average(means, axis=0, weights=by)
        np.testing.assert_array_equal(metrics[step]["messages"]["prototypes"], sent)
    assert not np.isnan(prototypes).any()
