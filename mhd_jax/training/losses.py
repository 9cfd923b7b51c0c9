"""Losses of one client, as functions of its outputs and its targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import Array

from mhd_jax.core.tasks import CLASSES, Task
from mhd_jax.core.types import Outputs

EMBEDDING_EPSILON = 1e-6


def private_loss(
    outputs: Outputs,
    labels: Array,
    mask: Array,
    label_set: Array | None = None,
    *,
    label_smoothing: float,
    density_weight: float | None = None,
    task: Task = CLASSES,
) -> Array:
    """Returns one client's loss on its private batch: its task's, of its main head.

    With a `density_weight` its density ratio d^0 (`mhd_jax.exchange.density`) is trained, too: the
    loss has the private half of a logistic regression, mean softplus(−d^0(x)), with this weight.

    Args:
      outputs: logits [B, H, C], and densities [B, H] if there is a weight.
      labels, label_set, label_smoothing: see `mhd_jax.core.tasks.Task.private_losses`.
      mask: the samples of which the mean is taken, float [B].
      density_weight: see above.
      task: what clients learn to predict.
    """
    losses = task.private_losses(outputs.logits[:, 0], labels, label_smoothing, label_set)
    loss = masked_mean(losses, mask)
    if density_weight is not None:
        own: Array = outputs.density[:, 0]  # type: ignore[index]
        loss += density_weight * masked_mean(jax.nn.softplus(-own), mask)
    return loss


def private_cross_entropy(
    logits: Array,
    labels: Array,
    mask: Array,
    label_smoothing: float,
    label_set: Array | None = None,
) -> Array:
    """Returns the mean of CE(z(x), y) over the samples of a private batch that the mask keeps.

    Args:
      logits: [B, C] of the main head.
      labels: int [B].
      mask: float [B].
      label_smoothing: mass spread uniformly over the classes (0 is the MHD paper's form).
      label_set: the client's classes, bool [C]; None is all classes.

    Returns:
      A scalar; 0 where the mask keeps nothing.
    """
    return masked_mean(CLASSES.private_losses(logits, labels, label_smoothing, label_set), mask)


def pretext_cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean cross-entropy of pretext logits [N, ...] and pretext labels, int [N]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def masked_mean(values: Array, mask: Array) -> Array:
    """Returns the mean of values [B] over samples that the mask [B] keeps; 0 if it keeps none."""
    mask = mask.astype(values.dtype)
    return (values * mask).sum() / jnp.maximum(mask.sum(), 1)


def distillation(
    logits: Array,
    targets: Array,
    temperature: float = 1.0,
    label_set: Array | None = None,
    task: Task = CLASSES,
) -> Array:
    """Returns T² Σ_k mean_x CE(softmax(z^k(x)/T), target^k(x)), the auxiliary term of MHD.

    The factor T² keeps the size of the gradient comparable between temperatures (Hinton et al.,
    2015); at the paper's T = 1 it has no effect. For a regression the cross-entropy is the task's
    squared error.

    Args:
      logits: [P, R, C] of the R heads that learn.
      targets: probabilities [P, R, C], constants.
      temperature: T.
      label_set: the client's classes, bool [C]; None is all classes. The targets' probabilities
        of other classes are left out, without renormalisation (see `mhd_jax.core.label_sets`).
      task: what clients learn to predict.
    """
    losses = task.distances(logits, targets, temperature, label_set)
    return temperature**2 * losses.mean(axis=0).sum()


def absolute_difference(logits: Array, targets: Array, label_set: Array | None) -> Array:
    """Returns `mean_x |z(x) − target(x)|`, the digest loss of FedMD.

    Args:
      logits: [P, C].
      targets: logits [P, C], constants.
      label_set: the classes over which the mean is taken, bool [C]; None is all classes. The mean
        over no class is 0.
    """
    differences = jnp.abs(logits - targets)
    if label_set is None:
        return differences.mean()
    inside = jnp.where(label_set, differences, 0).sum(axis=-1).mean()
    return inside / jnp.maximum(label_set.sum(), 1)


def normalise_embedding(embeddings: Array) -> Array:
    """Returns φ / ‖φ‖ along the last axis, with finite gradients where φ = 0."""
    squares = jnp.sum(jnp.square(embeddings), axis=-1, keepdims=True)
    return embeddings * jax.lax.rsqrt(squares + EMBEDDING_EPSILON)


def embedding_distance(embeddings: Array, teachers: Array, valid: Array) -> Array:
    """Returns mean_x mean_{j∈S} ‖ē(x) − ē_j(x)‖², the embedding term of MHD.

    Args:
      embeddings: [P, D] of the client; or [T, P, D], mapped to the width of each teacher.
      teachers: [T, P, D], constants.
      valid: which of the T rows are teachers, bool [T].

    Returns:
      A scalar; 0 if there is no teacher.
    """
    own = normalise_embedding(embeddings)
    teachers = normalise_embedding(jnp.where(valid[:, None, None], teachers, 0))
    weights = (valid / jnp.maximum(valid.sum(), 1)).astype(teachers.dtype)
    if embeddings.ndim == teachers.ndim:
        return jnp.einsum("t,tpd->pd", weights, jnp.square(own - teachers)).sum(axis=-1).mean()
    # The distance to their mean and their spread around it: T times less to differentiate.
    mean = jnp.einsum("t,tpd->pd", weights, teachers)
    spread = jnp.einsum("t,tpd->pd", weights, jnp.square(teachers)) - jnp.square(mean)
    distances = jnp.sum(jnp.square(own - mean) + spread, axis=-1)
    return jnp.where(valid.any(), distances.mean(), 0)
