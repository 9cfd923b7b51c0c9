"""DS-FL and Selective-FD against NumPy trajectories, their identities, and what they send."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.exchange.kulsif import Denominator, Ratio, median_distance
from mhd_jax.exchange.messages import bytes_by_type
from mhd_jax.training.groups import all_params, all_stats
from tests.builders import (
    NUM_CLASSES,
    Linear,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    softmax,
    take_steps,
    thinned,
    tiny_batch,
    tiny_clients,
    tiny_dataset,
    with_params,
)

K, P, STEPS, RATE = 4, 5, 12, 0.1
UNLABELLED = 3
COMPLETE = 1 - jnp.eye(K)
ONE_WAY = np.array([[0, 1, 0, 1], [0, 0, 2, 0], [1, 1, 0, 0], [1, 0, 1, 0]], np.float32)
STAR = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.float32)
SHORT = {"private_steps": 1, "distill_steps": 2}
BOTH = [
    mhd.algorithms.ds_fl(**SHORT),
    mhd.algorithms.ds_fl(cache_steps=100, **SHORT),
    mhd.algorithms.selective_fd(density_samples=8, most_ambiguous=2.0, **SHORT),
]
NAMED = pytest.mark.parametrize(
    "algorithm", thinned(BOTH, 3), ids=["ds_fl", "cached", "selective_fd"]
)


def clients_of(**kwargs):
    return tiny_clients(K, public_fraction=0.3, **kwargs)


def graph_at(step):
    """A graph with weights and edges one way, and one both ways, in turn."""
    return (ONE_WAY, STAR)[step % 2]


def batches(clients, dtype=jnp.float32, steps=STEPS):
    """Batches whose public samples are rows of the public set; the unlabelled client has no labels."""
    rng = np.random.default_rng(1)
    for step in range(steps):
        batch = tiny_batch(K, seed=step, dtype=dtype)
        rows = jnp.asarray(rng.permutation(clients.num_public)[:P], jnp.int32)
        public = jnp.asarray(clients.public_inputs[np.asarray(rows)], dtype)
        mask = batch.mask * jnp.asarray(clients.learns_labels, dtype)[:, None]
        yield batch.replace(mask=mask, public_inputs=public, public_indices=rows)


def scattered(state):
    """The same state with clients that differ, and which are sure enough to be sharpened."""
    noise = np.random.default_rng(0)
    return with_params(state, lambda a: a + 0.5 * noise.normal(size=a.shape))


def trajectory(algorithm, clients, dtype=jnp.float32, graph_of=graph_at, steps=STEPS):
    """The states before and after every step, and the metrics; the graph is another at each."""
    seen = list(batches(clients, dtype, steps))
    states = [scattered(algorithm.init(jax.random.key(0), clients, seen[0]))]
    step, metrics = jax.jit(algorithm.train_step), []
    for number, batch in enumerate(seen):
        state, found = step(states[-1], batch, jnp.asarray(graph_of(number)))
        states.append(state)
        metrics.append(found)
    return states, metrics, seen


# The equations in NumPy, for clients of one matrix W, and one head V, b.


def parameters(state):
    params = state.groups[0].params
    heads = params["heads"]
    found = params["backbone"]["Dense_0"]["kernel"], heads["kernel"][:, 0], heads["bias"][:, 0]
    return [list(map(np.asarray, arrays)) for arrays in zip(*found, strict=True)]


def logits_of(x, inputs):
    w, v, b = x
    return inputs @ w @ v + b


def descended(x, inputs, dz):
    """One step of gradient descent, where dz [N, C] is the gradient in the logits."""
    w, v, _ = x
    slopes = inputs.T @ dz @ v.T, (inputs @ w).T @ dz, dz.sum(axis=0)
    return [a - RATE * slope for a, slope in zip(x, slopes, strict=True)]


def after_private_step(x, batch, i):
    inputs, labels, mask = (np.asarray(a[i]) for a in (batch.inputs, batch.labels, batch.mask))
    gap = softmax(logits_of(x, inputs)) - np.eye(NUM_CLASSES)[labels]
    return descended(x, inputs, gap * (mask / max(mask.sum(), 1))[:, None])


def after_public_step(x, inputs, targets):
    """`targets` holds a distribution for each sample, or None where there is no target."""
    exist = [n for n, target in enumerate(targets) if target is not None]
    if not exist:
        return x
    inputs, wanted = inputs[exist], np.stack([targets[n] for n in exist])
    return descended(x, inputs, (softmax(logits_of(x, inputs)) - wanted) / len(exist))


def follow(states, metrics, seen, rule, private_steps, distill_steps):
    """Asserts that states and messages follow from a rule (step, i, batch, probabilities) ->
    (targets, number of samples received from each client)."""
    x = parameters(states[0])
    for step, batch in enumerate(seen):
        phase, expected = step % (private_steps + distill_steps), np.zeros((K, K))
        if phase == private_steps:
            start = x
        if phase < private_steps:
            x = [after_private_step(x[i], batch, i) for i in range(K)]
        else:
            inputs = np.asarray(batch.public_inputs)
            said = np.stack([softmax(logits_of(start[i], inputs)) for i in range(K)])
            learned = [rule(step, i, batch, said) for i in range(K)]
            expected = np.stack([received for _, received in learned])
            x = [after_public_step(x[i], inputs, learned[i][0]) for i in range(K)]
        for found, own in zip(parameters(states[step + 1]), x, strict=True):
            assert_trees_close(found, own, rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(metrics[step]["messages"]["predictions"], expected)
        assert not metrics[step]["non_finite"].any()


def senders_to(step, i):
    """The labelled neighbours of a client at a step."""
    return [j for j in np.flatnonzero(graph_at(step)[i]) if j != UNLABELLED]


def with_itself(senders, i):
    return [*senders, *([i] if i != UNLABELLED else [])]


SHARPENINGS = {
    "era": lambda p: softmax(p / 0.2),
    "enhanced_era": lambda p: p**3 / (p**3).sum(),
    "mean": lambda p: p,
}


@pytest.mark.parametrize(
    ("aggregation", "cache_steps"), [("era", 0), ("enhanced_era", 5), ("mean", 2), ("era", 100)]
)
def test_ds_fl_follows_the_equations(aggregation, cache_steps, float64):
    """On changing graphs, with a client that has no labels, with and without a cache."""
    clients = clients_of(objectives={UNLABELLED: "unlabelled"})
    algorithm = mhd.algorithms.ds_fl(
        private_steps=2,
        distill_steps=3,
        aggregation=aggregation,
        era_temperature=0.2,
        era_exponent=3.0,
        cache_steps=cache_steps,
    )
    states, metrics, seen = trajectory(algorithm, clients, jnp.float64)
    kept = {}  # by client and public sample, the step at which a target was made, and it

    def rule(step, i, batch, said):
        targets, received = [], np.zeros(K)
        senders = senders_to(step, i)
        for n, row in enumerate(np.asarray(batch.public_indices).tolist()):
            at, target = kept.get((i, row), (-1000, None))
            if step - at >= cache_steps:
                received[senders] += 1
                target = None
                if senders:
                    mean = said[with_itself(senders, i), n].mean(axis=0)
                    target = SHARPENINGS[aggregation](mean)
                    kept[i, row] = step, target
            targets.append(target)
        return targets, received

    follow(states, metrics, seen, rule, 2, 3)
    received = sum(m["messages"]["predictions"].sum() for m in metrics)
    assert received > 0 and not any(
        m["messages"]["predictions"][:, UNLABELLED].any() for m in metrics
    )


def numpy_ratio(y, x, sigma):
    """KuLSIF by its published closed form, for samples y of p and x of q."""
    kernel = lambda a, b: np.exp(-((a[:, None] - b) ** 2).sum(axis=-1) / (2 * sigma**2))
    n, m, lam = len(x), len(y), len(x) ** -0.5
    right = -kernel(x, y).sum(axis=1) / (n * m * lam)
    alpha = np.linalg.solve(kernel(x, x) / n + lam * np.eye(n), right)
    return lambda z: kernel(z, x) @ alpha + kernel(z, y).mean(axis=1) / lam


def numpy_answers(clients, quantile, kernel_width, most):
    """Which public samples each labelled client answers for."""
    public = clients.public_inputs.astype(float)
    spaced = lambda rows, most: rows[
        np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)
    ]
    x = spaced(public, most)
    distances = np.sqrt(((x[:, None] - x) ** 2).sum(axis=-1))[np.triu_indices(len(x), 1)]
    answers = np.zeros((K, len(public)), bool)
    for i in range(K):
        own = spaced(np.flatnonzero(clients.owner == i), 2 * most)
        private = clients.data.inputs[own].astype(float)
        ratio = numpy_ratio(private[::2], x, kernel_width * np.median(distances))
        answers[i] = ratio(public) >= np.quantile(ratio(private[1::2]), quantile)
    answers[UNLABELLED] = False
    return answers


@pytest.mark.parametrize(
    ("quantile", "tau", "most"),
    [(0.25, 1.0, 3), pytest.param(0.0, 2.0, 100, marks=pytest.mark.slow)],
)
def test_selective_fd_follows_the_equations(quantile, tau, most, float64):
    clients = clients_of(
        objectives={UNLABELLED: "unlabelled"}, partition=mhd.partition.primary_labels(1, 5.0)
    )
    algorithm = mhd.algorithms.selective_fd(
        private_steps=2,
        distill_steps=3,
        ratio_quantile=quantile,
        most_ambiguous=tau,
        kernel_width=0.7,
        density_samples=most,
    )
    states, metrics, seen = trajectory(algorithm, clients, jnp.float64)
    answers = numpy_answers(clients, quantile, 0.7, most)
    np.testing.assert_array_equal(states[-1].extra["answers"], answers)
    assert 0.2 < answers[:UNLABELLED].mean() < 0.9
    dropped = []

    def rule(step, i, batch, said):
        targets, received = [], np.zeros(K)
        for n, row in enumerate(np.asarray(batch.public_indices).tolist()):
            senders = [j for j in senders_to(step, i) if answers[j, row]]
            received[senders] += 1
            target = None
            if senders:
                own = [j for j in with_itself(senders, i) if answers[j, row]]
                target = said[own, n].mean(axis=0)
                one_hot = np.eye(NUM_CLASSES)[target.argmax()]
                dropped.append(np.abs(target - one_hot).sum() >= tau)
                target = None if dropped[-1] else target
            targets.append(target)
        return targets, received

    follow(states, metrics, seen, rule, 2, 3)
    assert any(dropped) == (tau < 2) and not all(dropped)


# Density ratios.


def test_the_density_ratio_is_the_closed_form_and_the_least_squares(float64):
    rng = np.random.default_rng(0)
    y, x, z = (rng.normal(size=(size, 3)) + 1e3 for size in (7, 9, 11))
    there = np.arange(10) < 7  # padding does not count
    padded = jnp.asarray(np.concatenate([y, 50 * x[:3]]))
    ratio = Ratio.fitted(Denominator.of(jnp.asarray(x), 0.8), padded, jnp.asarray(there))
    np.testing.assert_allclose(ratio(jnp.asarray(z)), numpy_ratio(y, x, 0.8)(z), rtol=1e-8)

    points = np.concatenate([x, y])
    gram = np.exp(-((points[:, None] - points) ** 2).sum(axis=-1) / (2 * 0.8**2))
    lam = 9**-0.5

    def objective(values):
        norm = values @ np.linalg.solve(gram, values)
        return (values[:9] ** 2).mean() / 2 - values[9:].mean() + lam / 2 * norm

    best = np.asarray(ratio(jnp.asarray(points)))
    for _ in range(20):
        assert objective(best) < objective(best + 1e-3 * gram @ rng.normal(size=16))


def test_the_density_ratio_of_two_gaussians():
    """N(0.5, 0.7²) over N(0, 1), where both have samples, but for what λ smooths."""
    rng = np.random.default_rng(0)
    y, x = rng.normal(0.5, 0.7, size=(1000, 1)), rng.normal(size=(1000, 1))
    denominator = Denominator.of(jnp.asarray(x, jnp.float32), 0.5)
    ratio = Ratio.fitted(denominator, jnp.asarray(y, jnp.float32), jnp.ones(1000, bool))
    z = np.linspace(-1.5, 1.3, 30)
    true = np.exp(-((z - 0.5) ** 2) / (2 * 0.49) + z**2 / 2) / 0.7
    found = np.asarray(ratio(jnp.asarray(z[:, None], jnp.float32)))
    assert np.corrcoef(found, true)[0, 1] > 0.97
    np.testing.assert_allclose(found, true, atol=0.4)  # of values from 0.07 to 1.8


def test_the_median_distance():
    assert float(median_distance(jnp.array([[0.0], [1.0], [5.0]]))) == 4
    for alike in (jnp.ones((3, 2)), jnp.ones((1, 2))):
        assert float(median_distance(alike)) == 1


@pytest.mark.slow
def test_clients_answer_for_what_resembles_their_own_samples():
    """Three clients of one class each: blobs far apart."""
    clients = tiny_clients(
        3, num_samples=600, public_fraction=0.3, partition=mhd.partition.primary_labels(1, np.inf)
    )
    algorithm = mhd.algorithms.selective_fd(ratio_quantile=0.1)
    state = algorithm.init(jax.random.key(0), clients, tiny_batch(3))
    classes = clients.data.labels[clients.public]
    own = clients.label_counts().argmax(axis=1)
    for i in range(3):
        answered = np.asarray(state.extra["answers"][i])
        assert answered[classes == own[i]].mean() > 0.7
        assert answered[classes != own[i]].mean() < 0.05


def test_samples_without_distances_are_refused():
    rng = np.random.default_rng(0)
    words = mhd.data.arrays(rng.integers(0, 9, (60, 4)), np.arange(60) % 3, pixels=False)
    clients = tiny_clients(K)
    clients = dataclasses.replace(clients, data=words)
    with pytest.raises(mhd.ConfigError, match=r"by their distance, which int[0-9]+ has not; store"):
        mhd.algorithms.selective_fd().init(jax.random.key(0), clients, tiny_batch(K))


def test_private_inputs_are_evenly_spaced_and_bounded():
    clients = clients_of()
    inputs, there = clients.private_inputs(3)
    assert inputs.shape == (K, 3, 4) and there.all()
    for i in range(K):
        own = clients.data.inputs[clients.owner == i]
        np.testing.assert_array_equal(inputs[i], own[[0, (len(own) - 1) // 2, len(own) - 1]])
    everything, there = clients.padded(3).private_inputs(1000)
    sizes = clients.label_counts().sum(axis=1)
    np.testing.assert_array_equal(there.sum(axis=1), [*sizes, 0, 0])
    assert everything.shape[1] == sizes.max()


# Identities.


def test_on_the_complete_graph_all_learn_everybodys_mean():
    algorithm = mhd.algorithms.ds_fl(aggregation="mean", cache_steps=100, **SHORT)
    clients = clients_of()
    states, _, seen = trajectory(algorithm, clients, graph_of=lambda _: COMPLETE, steps=2)
    said = algorithm.predict(states[1], seen[1].public_inputs)[:, :, 0]
    mean = jax.nn.softmax(said).mean(axis=0)
    for labels in states[2].extra["cache"]["labels"]:
        np.testing.assert_allclose(labels[seen[1].public_indices], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_sharpens_by_one_or_keeps_for_one_step_changes_nothing():
    clients = clients_of()
    run = lambda **how: trajectory(mhd.algorithms.ds_fl(**SHORT, **how), clients)
    plain, counted, _ = run(aggregation="mean")
    powered, _, _ = run(aggregation="enhanced_era", era_exponent=1.0)
    assert_trees_close(all_params(powered[-1]), all_params(plain[-1]), rtol=1e-5, atol=1e-6)
    kept, as_often, _ = run(aggregation="mean", cache_steps=1)
    assert_trees_equal(all_params(kept[-1]), all_params(plain[-1]))
    assert_trees_equal([m["messages"] for m in as_often], [m["messages"] for m in counted])
    for exponent in (50.0, 1e4):  # neither underflows
        sharp, _, _ = run(aggregation="enhanced_era", era_exponent=exponent, cache_steps=100)
        labels = np.asarray(sharp[-1].extra["cache"]["labels"])
        made = np.asarray(sharp[-1].extra["cache"]["steps"]) >= 0
        np.testing.assert_allclose(labels[made].sum(axis=-1), 1, rtol=1e-5)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))


@NAMED
def test_a_client_without_neighbours_learns_nothing_from_public_samples(algorithm):
    clients = clients_of(model=Normed())
    empty = lambda _: np.zeros((K, K), np.float32)
    states, metrics, _ = trajectory(algorithm, clients, graph_of=empty, steps=3)
    learned = lambda state: (all_params(state), all_stats(state))
    assert_trees_equal(learned(states[3]), learned(states[1]))
    assert not np.allclose(
        *(all_stats(s)[0]["batch_stats"]["BatchNorm_0"]["mean"] for s in states[:2])
    )
    for found in metrics[1:]:
        np.testing.assert_array_equal(found["loss"], 0)
        assert not found["messages"]["predictions"].any()


@NAMED
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_what_is_not_finite_is_counted_and_ignored(algorithm, kind):
    """For all others it is as if nothing came from there."""
    silent = COMPLETE.at[:, 1].set(0)
    lied, counted, _ = trajectory(
        algorithm, clients_of(adversaries={1: kind}), graph_of=lambda _: COMPLETE, steps=4
    )
    quiet, _, _ = trajectory(algorithm, clients_of(), graph_of=lambda _: silent, steps=4)
    for i in (0, 2, 3):
        assert_trees_equal(of_client(lied[-1], i), of_client(quiet[-1], i))
    np.testing.assert_array_equal(counted[1]["non_finite"], [1, 0, 1, 1])
    believed, _, _ = trajectory(
        algorithm, clients_of(adversaries={1: "label_flip"}), graph_of=lambda _: COMPLETE, steps=4
    )
    assert not np.allclose(*(of_client(s[-1], 0)["heads"]["kernel"] for s in (believed, quiet)))


@pytest.mark.slow
def test_classes_that_nobody_knows_stay_impossible():
    """Clients 0 and 1 know classes 0 and 1; client 2 knows 1 and 2 and learns of them only 1."""
    sets = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1]], bool)
    clients = dataclasses.replace(clients_of(), label_sets=sets)
    graph = np.zeros((K, K), np.float32)
    graph[0, 1] = graph[2, 0] = 1
    for aggregation in ("era", "enhanced_era", "mean"):
        algorithm = mhd.algorithms.ds_fl(aggregation=aggregation, cache_steps=9, **SHORT)
        states, metrics, seen = trajectory(algorithm, clients, graph_of=lambda _: graph, steps=2)
        labels = states[2].extra["cache"]["labels"][:, seen[1].public_indices]
        np.testing.assert_array_equal(labels[0, :, 2], 0)
        assert (labels[0, :, :2] > 0).all() and (labels[2] > 0).all()
        z = algorithm.predict(states[1], seen[1].public_inputs)[2, :, 0]
        own = np.asarray(jax.nn.log_softmax(z))[:, 1:]
        loss = -(np.asarray(labels[2])[:, 1:] * own).sum(axis=-1).mean()
        np.testing.assert_allclose(metrics[1]["loss"][2], loss, rtol=1e-5)


@NAMED
def test_unlike_architectures_learn_from_each_other(algorithm):
    clients = clients_of(groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))])
    states, metrics, _ = trajectory(algorithm, clients, graph_of=lambda _: COMPLETE, steps=3)
    assert (np.asarray(metrics[1]["loss"]) > 0).all()
    for i in range(K):
        before, after = (of_client(s, i)["heads"]["kernel"] for s in states[1:3])
        assert np.abs(before - after).max() > 1e-5


# Bytes.


@pytest.mark.slow
def test_bytes_are_those_of_samples_that_cross():
    """A ring of 4, whose 14 public samples are all drawn: P = 6, C = 3 floats and an index."""
    clients = mhd.make_clients(tiny_dataset(), 4, Linear(), partition="iid", public_fraction=0.3)
    assert clients.num_public == 14

    def sent(algorithm, steps=12):
        sizes = {"batch_size": 4, "public_batch_size": 6, "steps": steps, "progress": False}
        return mhd.simulate("ring", clients, algorithm, **sizes).summary["communication"]

    rounds = {"private_steps": 1, "distill_steps": 1}
    always = sent(mhd.algorithms.ds_fl(**rounds))
    assert always["messages"] == {"predictions": 6 * 8 * 6}
    assert always["by_type"] == {"logits": 6 * 8 * 6 * 3 * 4}
    cached = sent(mhd.algorithms.ds_fl(cache_steps=1000, **rounds), steps=24)
    assert cached["messages"] == {"predictions": 8 * 14}
    assert cached["by_type"] == {"logits": 8 * 14 * 3 * 4, "indices": 8 * 14 * 4}


@pytest.mark.parametrize(
    ("compression", "size"),
    thinned([("none", 12), ("float16", 6), ("int8", 3 + 4), ("top_2", 2 * 4 + 2)], 2),
)
def test_a_message_is_about_one_sample(compression, size):
    clients, batch = clients_of(), tiny_batch(K)
    for name, more in (("ds_fl", {}), ("selective_fd", {"indices": 4})):
        algorithm = getattr(mhd.algorithms, name)(compression=compression)
        state = algorithm.init(jax.random.key(0), clients, batch)
        (message,) = algorithm.message(state, batch, state.groups[0]).values()
        assert bytes_by_type(message) == {"logits": size, **more}


def test_compressed_predictions_are_what_is_learned():
    clients = clients_of()
    run = lambda **how: take_steps(
        mhd.algorithms.ds_fl(**SHORT, **how), clients, COMPLETE, list(batches(clients, steps=3))
    )[0][-1]
    plain, half, coarse = (
        run(compression=how).groups[0].params for how in ("none", "float16", "top_1")
    )
    assert_trees_close(half, plain, rtol=1e-2, atol=1e-3)
    assert not np.allclose(coarse["heads"]["kernel"], plain["heads"]["kernel"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("ds_fl", {"aggregation": "max"}, "aggregation must be one of era, enhanced_era, mean"),
        ("ds_fl", {"era_temperature": 0.0}, "era_temperature must be positive"),
        ("ds_fl", {"era_exponent": -1.0}, "era_exponent must be positive"),
        ("ds_fl", {"cache_steps": -1}, "cache_steps must be at least 0"),
        ("ds_fl", {"private_steps": 0}, "private_steps must be at least 1"),
        ("selective_fd", {"distill_steps": 0}, "distill_steps must be at least 1"),
        ("selective_fd", {"ratio_quantile": 1.1}, r"ratio_quantile must be in \[0, 1\]"),
        ("selective_fd", {"most_ambiguous": 0.0}, r"most_ambiguous must be in \(0, 2\]"),
        ("selective_fd", {"kernel_width": 0.0}, "kernel_width must be positive"),
        ("selective_fd", {"density_samples": 0}, "density_samples must be at least 1"),
        ("selective_fd", {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(name, settings, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        getattr(mhd.algorithms, name)(**settings)
