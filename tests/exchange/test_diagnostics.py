"""Who learned from whom."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax.exchange import diagnostics
from mhd_jax.exchange.selection import Candidates
from tests.builders import (
    NUM_CLASSES,
    public_outputs,
    softmax,
    take_steps,
    thinned,
    tiny_batch,
    tiny_clients,
)

K = 4
COMPLETE = 1 - jnp.eye(K)


@pytest.mark.parametrize(
    ("settings", "include_self"),
    [({"num_targets": 2}, True), ({"num_targets": "all", "include_self": False}, False)],
)
def test_a_step_tells_whose_predictions_were_taken(settings, include_self):
    """Sample by sample: the most confident of the teachers and, where it may, the client itself."""
    algorithm = mhd.algorithms.mhd(num_aux_heads=2, nu_emb=0.0, **settings)
    clients, batch = tiny_clients(K), tiny_batch(K)
    (state, _), (metrics,) = take_steps(algorithm, clients, COMPLETE, [batch])
    z = public_outputs(state, batch).logits  # [K, P, H, C]
    found = metrics["diagnostics"]
    expected, agreed = np.zeros((K, K, 2)), np.zeros((K, K))
    for i in range(K):
        heard = np.flatnonzero(metrics["messages"]["predictions"][i])
        for j in heard:
            agreed[i, j] = (z[i].argmax(-1) == z[j].argmax(-1))[:, :2].mean()
        candidates = [*heard, i] if include_self else list(heard)
        for p in range(7):
            for rank in range(2):
                sure = [softmax(z[j, p, rank]).max() for j in candidates]
                expected[i, candidates[int(np.argmax(sure))], rank] += 1 / 7
    np.testing.assert_allclose(found["followed"], expected, atol=1e-5)
    np.testing.assert_allclose(found["agreement"], agreed, atol=1e-5)
    np.testing.assert_allclose(found["confidence"], softmax(z).max(-1).mean(1), rtol=1e-4)


def test_a_mixture_counts_for_the_nearest():
    probabilities = jnp.asarray([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])[:, None, None]
    candidates = Candidates(
        jnp.log(probabilities), probabilities, None, jnp.asarray([True, True, False])
    )
    target = jnp.asarray([[[0.3, 0.4, 0.3]]])
    np.testing.assert_array_equal(diagnostics.followed(target, candidates), [[0], [1], [0]])
    nobody = dataclasses.replace(candidates, valid=jnp.zeros(3, bool))
    assert not diagnostics.followed(target, nobody).any()


def test_places_become_clients():
    """Two teachers, the client itself, and the teachers' heads of the same level."""
    teachers = exchange.Teachers(jnp.asarray([[2, 1], [0, 2], [1, 0]]), jnp.ones((3, 2), bool))
    slots = jnp.arange(1.0, 16.0).reshape(3, 5, 1)
    found = np.asarray(diagnostics.by_client(slots, teachers, own_included=True))[:, :, 0]
    expected = [[3, 2 + 5, 1 + 4], [6 + 9, 8, 7 + 10], [12 + 15, 11 + 14, 13]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("faults", thinned([None, mhd.Faults(stragglers={1: 2})], 3))
def test_a_summary_holds_shares(faults):
    algorithm, sizes = (
        mhd.algorithms.mhd(num_aux_heads=2),
        {"batch_size": 4, "steps": 6, "eval_every": 3},
    )
    found = mhd.simulate("ring", tiny_clients(K), algorithm, faults=faults, **sizes).summary
    found = found["diagnostics"]
    followed = np.array(found["followed"])
    assert followed.shape == (2, K, K)
    np.testing.assert_allclose(followed.sum(axis=-1), 1, rtol=1e-5)
    far = np.abs(np.arange(K)[:, None] - np.arange(K)) == 2
    assert not followed[:, far].any()
    agreement = np.array(found["agreement"], float)
    assert np.isnan(agreement[far]).all() and np.nanmax(agreement) <= 1
    confidence = np.array(found["confidence"])
    assert confidence.shape == (K, 3) and (confidence > 1 / NUM_CLASSES).all()
    assert (confidence <= 1).all()


def test_a_step_without_numbers_counts_for_no_confidence():
    """As that in which a client diverges."""
    teachers = exchange.Teachers(jnp.asarray([[1], [0]]), jnp.ones((2, 1), bool))
    seen = {
        "confidence": jnp.array([[0.5, 0.25], [0.75, jnp.nan]]),
        "followed": jnp.ones((2, 2, 1)),
    }
    found = diagnostics.of_step(seen, teachers, own_included=True)
    np.testing.assert_array_equal(found["confidence"], [[0.5, 0.25], [0, 0]])
    np.testing.assert_array_equal(found["steps"], [1, 0])
