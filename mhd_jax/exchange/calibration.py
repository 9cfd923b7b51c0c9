"""Calibrated confidence: a temperature of each client and head, fitted on validation samples.

A head whose predictions are softmax(z) is more confident than it is right. Its temperature T is the
one for which softmax(z/T) explains labels best that it was not trained on,

    T_i^k = argmin_T Σ_x p_i(y) / n(y) · CE(softmax(z_i^k(x) / T), y)

(Guo et al., ICML 2017, arXiv 1706.04599), and max softmax(z/T) is its confidence. The sum is over the
run's validation samples, of which n(y) have label y; p_i are the frequencies of client i's private
labels, so that a client needs validation samples of its own classes alone. T is fitted anew every
few steps, and sent along with predictions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from mhd_jax.core.client_axis import in_any_run, over_clients
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import Participants, PyTree, State
from mhd_jax.training.groups import all_params, all_stats, forward

_MOST_SAMPLES = 512
RANGE = 5.0  # T is in 1/5 … 5, since few samples may all be right
_HALVINGS = 25


@struct.dataclass
class Calibration:
    """The temperatures of all heads, and the samples on which they are fitted.

    Attributes:
      temperatures: T, [K, H].
      weights: p_i(y)/n(y) of each sample, [K, V].
      inputs, labels: V validation samples as models take them, [1, V, ...], and labels, [1, V].
    """

    temperatures: Array
    weights: Array
    inputs: PyTree
    labels: Array


def start(clients: Participants, num_heads: int) -> Calibration:
    """Returns temperatures 1, and up to 512 of the clients' validation samples.

    Raises:
      ConfigError: there is no validation set.
    """
    inputs, labels = clients.calibration_samples(_MOST_SAMPLES)
    if not len(labels):
        raise ConfigError(
            "calibrate_every fits temperatures on validation samples, and there are none; set "
            "validation_fraction, to 0.1 say, or leave calibrate_every out."
        )
    counts = np.bincount(labels, minlength=clients.num_classes)
    private = clients.labelled_counts().astype(float)
    shares = private / np.maximum(private.sum(axis=1, keepdims=True), 1)
    return Calibration(
        temperatures=jnp.ones((len(shares), num_heads)),
        weights=jnp.asarray(shares[:, labels] / counts[labels], jnp.float32),
        inputs=jax.tree.map(lambda a: jnp.asarray(a)[None], inputs),
        labels=jnp.asarray(labels, jnp.int32)[None],
    )


def renewed(state: State, every: int) -> State:
    """Returns the state in which temperatures are fitted anew, at every `every`-th step."""
    calibration: Calibration = state.extra["calibration"]

    def fit() -> Array:
        inputs = jax.tree.map(lambda a: a[0], calibration.inputs)
        outputs, _ = forward(state, all_params(state), all_stats(state), inputs, shared_inputs=True)
        fitted = over_clients(temperatures, (0, None, 0))(
            outputs.logits, calibration.labels[0], calibration.weights
        )
        return fitted.astype(calibration.temperatures.dtype)

    due = in_any_run(state.step % every == 0)
    found = jax.lax.cond(due, fit, lambda: calibration.temperatures)
    kept = dataclasses.replace(calibration, temperatures=found)
    return dataclasses.replace(state, extra={**state.extra, "calibration": kept})


def temperatures(logits: Array, labels: Array, weights: Array) -> Array:
    """Returns T of one client's heads, [H]; 1 where no sample has a weight.

    The loss is convex in 1/T, and its derivative is the weighted mean of Σ_c p_c z_c − z_y, which
    grows with 1/T; so it is bisected.

    Args:
      logits: [V, H, C].
      labels: int [V].
      weights: [V].
    """
    logits = logits - logits.max(axis=-1, keepdims=True)  # so that what is impossible stays so
    of_label = jnp.take_along_axis(logits, labels[:, None, None], axis=-1)[..., 0]  # [V, H]

    def slope(inverse: Array) -> Array:  # [H] -> [H]
        mean = (jax.nn.softmax(inverse[:, None] * logits) * logits).sum(axis=-1)
        return (weights[:, None] * (mean - of_label)).sum(axis=0)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        falls = slope(jnp.exp(middle)) < 0  # with growing 1/T the loss still falls
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    widest = jnp.full(logits.shape[1], jnp.log(RANGE), logits.dtype)
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (-widest, widest))
    return jnp.where(weights.sum() > 0, jnp.exp(-(low + high) / 2), 1)
