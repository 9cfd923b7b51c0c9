"""Losses, accuracies and optimizers against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from mhd_jax.data.preprocessing import PLAIN
from mhd_jax.engine.evaluation import evaluation_set
from mhd_jax.engine.steps import count_correct
from mhd_jax.exchange import diagnostics
from mhd_jax.training import losses, metrics
from tests.builders import take_steps, tiny_batch, tiny_clients

RNG = np.random.default_rng(0)


def test_private_cross_entropy_masks_and_smooths():
    logits, labels = RNG.normal(size=(4, 3)), np.array([0, 2, 1, 1])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for smoothing in (0.0, 0.2):
        soft = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
        each = -(soft * log_p).sum(-1)
        for mask in ([1, 1, 1, 1], [1, 0, 1, 0]):
            mask = np.array(mask, float)
            actual = losses.private_cross_entropy(
                jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), smoothing
            )
            np.testing.assert_allclose(actual, (each * mask).sum() / mask.sum(), rtol=1e-5)
    nothing = losses.private_cross_entropy(
        jnp.asarray(logits), jnp.asarray(labels), jnp.zeros(4), 0.0
    )
    assert nothing == 0


def test_a_dead_embedding_has_finite_gradients():
    gradient = jax.grad(
        lambda e: losses.embedding_distance(e, jnp.ones((1, 2, 3)), jnp.array([True]))
    )(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_embedding_distance_of_opposite_directions_is_four():
    own, valid = jnp.array([[3.0, 0.0]]), jnp.array([True, False])
    teachers = jnp.array([[[-5.0, 0.0]], [[jnp.nan, 0.0]]])
    np.testing.assert_allclose(losses.embedding_distance(own, teachers, valid), 4, rtol=1e-5)
    assert losses.embedding_distance(own, teachers, jnp.array([False, False])) == 0


def test_entropy_of_the_mean_prediction():
    constant = jnp.tile(jnp.array([50.0, 0, 0, 0]), (5, 1))
    spread = 50 * jnp.eye(4)
    np.testing.assert_allclose(diagnostics.prediction_entropy(constant), 0, atol=1e-6)
    np.testing.assert_allclose(diagnostics.prediction_entropy(spread), 1, rtol=1e-6)


def test_betas_by_their_definition():
    """Against a loop over samples, with a class that the test set lacks and a client without labels."""
    num_clients, num_heads, num_classes, n = 3, 2, 4, 37
    labels = RNG.integers(0, 3, n).astype(np.int32)  # class 3 has no test sample
    answers = RNG.integers(0, num_classes, (num_clients, n, num_heads))
    table = jnp.asarray(np.eye(num_classes)[answers])  # logits by client and sample

    inputs = np.arange(n, dtype=np.float32)[:, None]
    samples = evaluation_set(inputs, labels, labels, batch_size=10)
    assert samples.labels.shape == (4, 10)

    def predict(state, inputs):
        return jnp.take(table, inputs[:, 0].astype(int), axis=1)

    nobody = mhd.State(jnp.int32(0), jax.random.key(0), jnp.arange(num_clients), ())
    correct, total = count_correct(
        nobody, samples, predict=predict, preparation=PLAIN, num_classes=num_classes
    )
    np.testing.assert_array_equal(total, np.bincount(labels, minlength=4))
    with np.errstate(invalid="ignore"):
        per_class = np.asarray(correct) / np.asarray(total)
    distributions = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75], [0, 0, 0, 0]])
    sh, priv = metrics.beta_sh(per_class), metrics.beta_priv(per_class, distributions)
    for k in range(num_clients):
        for h in range(num_heads):
            accuracy = [
                np.mean([answers[k, i, h] == c for i in range(n) if labels[i] == c])
                for c in range(3)
            ]
            np.testing.assert_allclose(sh[k, h], np.mean(accuracy), rtol=1e-6)
            expected = {
                0: (accuracy[0] + accuracy[1]) / 2,
                1: accuracy[2],  # class 3 cannot be measured
                2: np.nan,
            }[k]
            np.testing.assert_allclose(priv[k, h], expected, rtol=1e-6)


def test_schedules():
    cosine = mhd.optim.SGD(learning_rate=1.0).rate(100)
    np.testing.assert_allclose([cosine(0), cosine(50), cosine(100)], [1, 0.5, 0], atol=1e-6)
    step = mhd.optim.SGD(learning_rate=1.0, schedule="step").rate(100)
    np.testing.assert_allclose(
        [step(0), step(49), step(51), step(76)], [1, 1, 0.1, 0.01], rtol=1e-6
    )
    decreasing = mhd.optim.SGD(learning_rate=2.0, schedule="decreasing")
    rates = np.array([decreasing.rate(10)(t) for t in (0, 100, 1500)])
    np.testing.assert_allclose(rates, [2, 2 / 2**0.75, 2 / 8], rtol=1e-6)
    assert decreasing.rate(10)(7) == decreasing.rate(10_000)(7)  # however long the run
    for warmup in (99, 100, 300):
        late = mhd.optim.SGD(2.0, schedule="decreasing", warmup_steps=warmup).rate(500)
        rates = [late(0), late(warmup - 1), late(warmup), late(warmup + 100)]
        np.testing.assert_allclose(rates, [2 / warmup, 2, 2, 2 / 2**0.75], rtol=1e-6)
    assert mhd.optim.SGD(learning_rate=1.0, schedule="step").rate(1)(0) == 1
    warm = mhd.optim.SGD(learning_rate=1.0, schedule="constant", warmup_steps=10).rate(100)
    np.testing.assert_allclose([warm(t) for t in (0, 4, 9, 10, 99)], [0.1, 0.5, 1, 1, 1], rtol=1e-6)
    then = mhd.optim.SGD(learning_rate=2.0, warmup_steps=4).rate(104)  # the schedule is whole
    cosine = mhd.optim.SGD(learning_rate=2.0).rate(100)
    np.testing.assert_allclose([then(t) for t in (0, 3, 4, 54)], [0.5, 2, cosine(0), cosine(50)])


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_its_equations(nesterov):
    settings = mhd.optim.SGD(0.1, 0.9, nesterov, weight_decay=0.01, schedule="constant")
    tx = settings.build(10)
    x, m = np.array([1.0, -2.0]), np.zeros(2)
    params = jnp.asarray(x)
    state = tx.init(params)
    for gradient in ([0.3, 0.1], [-0.2, 0.5], [0.0, 0.4]):
        g = np.array(gradient) + 0.01 * x
        m = 0.9 * m + g
        x = x - 0.1 * (g + 0.9 * m if nesterov else m)
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, x, rtol=1e-5)
    assert settings.build(10) is tx


def test_adamw_and_clipping_equal_their_equations():
    settings = mhd.optim.AdamW(0.1, 0.8, 0.9, 0.05, schedule="constant", clip_norm=0.5)
    tx = settings.build(10)
    x = np.array([1.0, -2.0])
    m, v = np.zeros(2), np.zeros(2)
    params = jnp.asarray(x)
    state = tx.init(params)
    for t, gradient in enumerate(([0.3, 0.1], [-3.0, 4.0], [0.0, 0.4]), start=1):
        g = np.array(gradient) * min(
            1, 0.5 / np.linalg.norm(gradient)
        )  # the second is 10 times too long
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        adam = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        x = x - 0.1 * (adam + 0.05 * x)
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, x, rtol=1e-4)
    assert settings.build(10) is tx


def test_each_client_clips_its_own_gradient():
    """At a rate of 1 no client moves farther than the norm, and one with a short gradient as far as it."""
    moves = []
    for clip_norm in (None, 0.5):
        optimizer = mhd.optim.SGD(
            1.0, 0.0, weight_decay=0.0, schedule="constant", clip_norm=clip_norm
        )
        started = tiny_clients(4, optimizer=optimizer.build(5))
        (before, after), _ = take_steps(
            mhd.algorithms.isolated(), started, jnp.zeros((4, 4)), [tiny_batch(4)]
        )
        change = jax.tree.map(jnp.subtract, before.groups[0].params, after.groups[0].params)
        moves.append(
            [jnp.concatenate([a[i].ravel() for a in jax.tree.leaves(change)]) for i in range(4)]
        )
    for free, clipped in zip(*moves, strict=True):
        norm = float(jnp.linalg.norm(free))
        np.testing.assert_allclose(clipped, free * min(1, 0.5 / norm), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
    ],
)
def test_bad_optimizers_are_refused(settings, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.optim.SGD(**settings)
