"""Compression: what arrives, what it costs, and what an error fed back makes up for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.exchange import compression, messages
from tests.builders import short, softmax, take_steps, tiny_batch, tiny_clients

LOGITS = jax.random.normal(jax.random.key(0), (5, 7, 10)) * 3


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("none", {"float32": 4 * 70}),
        ("float16", {"float16": 2 * 70}),
        ("int8", {"int8": 70, "float32": 4 * 7}),
        ("top_3", {"float32": 4 * 3 * 7, "uint8": 3 * 7}),
        ("top_99", {"float32": 4 * 70, "uint8": 70}),
    ],
)
def test_what_is_sent(name, sizes):
    coded = compression.named(name)
    sent = jax.eval_shape(coded.encode, LOGITS[0])
    assert messages.bytes_by_dtype({"logits": sent}) == sizes
    assert coded.arrived(LOGITS).shape == LOGITS.shape
    assert coded.arrived(LOGITS).dtype == LOGITS.dtype


def test_how_near_it_arrives():
    arrived = {
        name: np.asarray(compression.named(name).arrived(LOGITS))
        for name in ("none", "float16", "int8", "top_3", "top_10", "top_11")
    }
    exact = np.asarray(LOGITS)
    np.testing.assert_array_equal(arrived["none"], exact)
    np.testing.assert_allclose(arrived["float16"], exact, rtol=2**-11)
    half_a_step = np.abs(exact).max(axis=-1, keepdims=True) / 254
    assert (np.abs(arrived["int8"] - exact) <= half_a_step * 1.0001).all()
    for all_classes in ("top_10", "top_11"):
        np.testing.assert_allclose(softmax(arrived[all_classes]), softmax(exact), atol=1e-6)
    kept, probabilities = softmax(arrived["top_3"]), softmax(exact)
    order = np.argsort(-probabilities, axis=-1)
    best, rest = order[..., :3], order[..., 3:]
    take = np.take_along_axis
    np.testing.assert_allclose(take(kept, best, -1), take(probabilities, best, -1), atol=1e-6)
    shared = take(probabilities, rest, -1).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(take(kept, rest, -1), shared.repeat(7, -1), atol=1e-6)


@pytest.mark.parametrize("name", ["float16", "int8", "top_3"])
@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_what_is_not_finite_does_not_arrive_finite(name, poison):
    arrived = compression.named(name).arrived(LOGITS.at[2, 3, 4].set(poison))
    assert not jnp.isfinite(arrived[2, 3]).all()
    assert jnp.isfinite(arrived[:2]).all()


def test_equal_numbers_and_sure_answers_survive():
    sure = jnp.zeros((1, 10)).at[0, 3].set(1e4)
    for name in ("int8", "top_1", "top_3"):
        coded = compression.named(name)
        assert jnp.isfinite(coded.arrived(jnp.zeros((2, 10)))).all()
        assert coded.arrived(sure).argmax() == 3 and jnp.isfinite(coded.arrived(sure)).all()


@pytest.mark.parametrize("name", ["zip", "top_0", "top_", "top_3.5", 3])
def test_unknown_compressions_are_refused(name):
    with pytest.raises(mhd.ConfigError, match=r"choose none, float16, int8, or top_K"):
        mhd.algorithms.mhd(compression=name)


def test_where_classes_cannot_be_left_out():
    with pytest.raises(mhd.ConfigError, match="sends estimates of soft decisions"):
        mhd.algorithms.distributed_distillation(compression="top_3")
    with pytest.raises(mhd.ConfigError, match="keeps no logits that the mae digest"):
        mhd.algorithms.fedmd(compression="top_3")
    assert mhd.algorithms.fedmd(compression="top_3", digest_loss="kl")


@pytest.mark.parametrize("name", short(["float16", "int8"], "int8"))
def test_error_feedback_brings_consensus_in_spite_of_rounding(name, float64):
    """Clients that do not learn agree on the mean of their decisions, far below one message's error."""
    num_clients = 4
    still = mhd.optim.SGD(1e-300, 0.0, weight_decay=0.0, schedule="constant").build(100)
    clients = tiny_clients(num_clients, optimizer=still, public_fraction=0.3)
    rows = np.arange(7)
    batch = tiny_batch(num_clients, dtype=jnp.float64).replace(
        public_inputs=jnp.asarray(clients.data.inputs[clients.public][rows], jnp.float64),
        public_indices=jnp.asarray(rows, jnp.int32),
    )
    algorithm = mhd.algorithms.distributed_distillation(compression=name)
    ring = jnp.asarray(mhd.topology.ring(num_clients).at(0))
    (first, *states), _ = take_steps(algorithm, clients, ring, [batch] * 40)
    mean = np.asarray(first.extra["previous_decisions"][:, rows].mean(axis=0))
    estimates = np.stack([state.extra["estimates"][:, rows] for state in states])
    np.testing.assert_allclose(estimates.mean(axis=1), np.stack([mean] * 40), atol=1e-9)
    spread = np.abs(estimates - mean).max(axis=(1, 2, 3))
    one_message = np.abs(compression.named(name).arrived(jnp.asarray(mean)) - mean).max()
    assert spread[0] > 1e-2 and spread[-1] < 1e-3 * one_message
