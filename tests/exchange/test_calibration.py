"""Confidence that is calibrated on validation samples, and means that it weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax.exchange import calibration
from mhd_jax.exchange.selection import Candidates, confidence
from mhd_jax.training import groups
from tests.builders import NUM_CLASSES, softmax, tiny_clients

SIZES = {"steps": 5, "eval_every": 5, "batch_size": 4, "public_batch_size": 6, "progress": False}


def loss_at(temperature, logits, labels, weights):
    p = softmax(logits / temperature)[np.arange(len(labels)), labels]
    return -(weights * np.log(p)).sum()


def test_temperatures_minimise_the_loss(float64):
    """Against SciPy; a head that is always right gets the lowest temperature, none without samples."""
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 3, 80), rng.random(80)
    signal = 2 * np.eye(3)[labels][:, None]
    logits = signal * np.array([1.0, 0.6, 4.0])[:, None] + rng.normal(size=(80, 3, 3))
    logits[:, 2] = 9 * np.eye(3)[labels]
    found = calibration.temperatures(*map(jnp.asarray, (logits, labels, weights)))
    for head in (0, 1):
        best = scipy.optimize.minimize_scalar(
            loss_at,
            bounds=(1 / calibration.RANGE, calibration.RANGE),
            args=(logits[:, head], labels, weights),
            method="bounded",
        )
        np.testing.assert_allclose(found[head], best.x, rtol=1e-3)
    assert found[2] == pytest.approx(1 / calibration.RANGE, rel=1e-3)
    nothing = calibration.temperatures(jnp.asarray(logits), jnp.asarray(labels), jnp.zeros(80))
    np.testing.assert_array_equal(nothing, 1)


def test_confidence_is_compared_at_each_candidates_temperature(float64):
    rng = np.random.default_rng(0)
    logits, temperatures = rng.normal(size=(4, 9, 2, NUM_CLASSES)) * 3, rng.uniform(0.2, 5, (4, 2))
    valid = np.array([True, False, True, True])
    c = Candidates(
        *map(jnp.asarray, (logits, softmax(logits))),
        *(None, jnp.asarray(valid)),
        temperatures=jnp.asarray(temperatures),
    )
    sure = softmax(logits / temperatures[:, None, :, None]).max(axis=-1)
    np.testing.assert_allclose(confidence(c), sure, atol=1e-12)
    best = np.where(valid[:, None, None], sure, -1).argmax(axis=0)
    p = softmax(logits)
    chosen = np.take_along_axis(p, best[None, ..., None], axis=0)[0]
    np.testing.assert_allclose(exchange.most_confident(None, c), chosen, atol=1e-12)
    weights = np.where(valid[:, None, None], sure, 0)
    mean = (weights[..., None] * p).sum(axis=0) / weights.sum(axis=0)[..., None]
    weighted = exchange.TARGET_SELECTIONS["confidence_weighted"]
    np.testing.assert_allclose(weighted(None, c), mean, atol=1e-12)


@pytest.mark.slow
def test_a_run_fits_its_temperatures_every_few_steps(float64):
    """At step 3 of 5 for the last time, on samples with the client's own label frequencies."""
    clients = tiny_clients(4, public_fraction=0.2, validation_fraction=0.3, num_samples=200)
    algorithm = mhd.algorithms.mhd(num_aux_heads=1, calibrate_every=3, num_targets="all")
    sizes = {name: size for name, size in SIZES.items() if name != "progress"}
    run = mhd.prepare("ring", clients, algorithm, **sizes)
    state, step_of = run.init(), jax.jit(run.train_step)
    for step in range(5):
        if step == 3:
            logits = np.asarray(groups.predict(state, state.extra["calibration"].inputs[0]))
        state, _ = step_of(state, run.batch(state), run.graph(step))
    kept = state.extra["calibration"]
    samples, labels = clients.calibration_samples(512)
    np.testing.assert_array_equal(kept.inputs[0], samples)
    private, counts = clients.labelled_counts(), np.bincount(labels)
    for i in range(4):
        weights = (private[i] / private[i].sum() / counts)[labels]
        np.testing.assert_allclose(kept.weights[i], weights, rtol=1e-5)
        found = calibration.temperatures(*map(jnp.asarray, (logits[i], labels, weights)))
        np.testing.assert_allclose(kept.temperatures[i], found, rtol=1e-3)
    assert not np.allclose(kept.temperatures, 1)
    by_type = mhd.simulate("ring", clients, algorithm, **SIZES).summary["communication"]["by_type"]
    assert by_type["temperatures"] == 5 * 4 * 2 * 4  # steps, clients, neighbours, bytes


def test_without_validation_samples_there_is_nothing_to_calibrate_on():
    algorithm = mhd.algorithms.mhd(calibrate_every=3)
    with pytest.raises(mhd.ConfigError, match="there are none; set validation_fraction"):
        mhd.simulate("ring", tiny_clients(4, public_fraction=0.2), algorithm, **SIZES)


@pytest.mark.slow
def test_chunks_and_joint_runs_calibrate_alike():
    clients = tiny_clients(4, public_fraction=0.2, validation_fraction=0.3, num_samples=200)
    algorithm = mhd.algorithms.mhd(num_aux_heads=1, calibrate_every=2)
    alone = mhd.simulate("ring", clients, algorithm, client_chunk=2, **SIZES)
    (first, _) = mhd.simulate_seeds(["ring"] * 2, [clients] * 2, algorithm, seeds=(0, 1), **SIZES)
    for one, other in zip(*(jax.tree.leaves(r.state.extra) for r in (alone, first)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
