"""What clients learn to predict, with the losses and scores that follow: classes, or numbers.

An algorithm whose losses are those of `state.task` learns both. For an output z(x) of a head, a
target y and another client's prediction t(x):

                          classes (C outputs)             numbers (D outputs, standardised)
    prediction            softmax(z / T)                  z
    private loss          CE(softmax z, y)                ½ mean_d (z_d − y_d)²
    distillation          CE(softmax(z / T), t)           ½ mean_d (z_d − t_d)²
    score of a sample     1 if argmax z = y, else 0       1 − mean_d (z_d − y_d)²

Half the squared error is, like the cross-entropy, a negative log-likelihood (of a Gaussian with
deviation 1), and its gradient z − y is that of the cross-entropy with numbers for probabilities, so
that learning rates and weights of one task suit the other. Numbers are standardised by the training samples' mean and deviation, so that their mean score over
samples is the share of the targets' variance that a head explains: 1 is perfect, 0 is what their
mean explains, and it may be negative.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array


class Task(Protocol):
    """What the heads' outputs [..., C] mean; C is D for numbers."""

    @property
    def has_classes(self) -> bool:
        """Whether predictions are probabilities of classes."""

    def predictions(self, outputs: Array, temperature: float = 1.0) -> Array:
        """Returns what outputs [..., C] predict, the form in which clients teach each other."""

    def decisions(self, outputs: Array) -> Array:
        """Returns what outputs [..., C] say at last, a class [...] or numbers [..., D]."""

    def private_losses(
        self, outputs: Array, targets: Array, label_smoothing: float, label_set: Array | None
    ) -> Array:
        """Returns the private loss of each sample, [N].

        Args:
          outputs: of one head, [N, C].
          targets: classes, int [N], or numbers, [N, D].
          label_smoothing: mass spread uniformly over the classes.
          label_set: the client's classes, bool [C]; None is all.
        """

    def distances(
        self, outputs: Array, predictions: Array, temperature: float, label_set: Array | None
    ) -> Array:
        """Returns the distillation of each output [..., C] towards predictions [..., C], [...]."""

    def scores(self, outputs: Array, targets: Array) -> Array:
        """Returns the score of each output [..., C] against targets as in `private_losses`, [...]."""

    def in_own_units(self, values: np.ndarray) -> np.ndarray:
        """Returns outputs or targets [..., C] of numbers in the units of the data; others as given."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classification: an output is a logit of each class."""

    @property
    def has_classes(self) -> bool:
        """See `Task`."""
        return True

    def predictions(self, outputs: Array, temperature: float = 1.0) -> Array:
        """See `Task`."""
        return jax.nn.softmax(outputs / temperature)

    def decisions(self, outputs: Array) -> Array:
        """See `Task`."""
        return outputs.argmax(axis=-1)

    def private_losses(
        self, outputs: Array, targets: Array, label_smoothing: float, label_set: Array | None
    ) -> Array:
        """See `Task`."""
        wanted = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
        if label_set is None:
            wanted = optax.smooth_labels(wanted, label_smoothing)
        else:
            share = label_smoothing / label_set.sum()
            wanted = (1 - label_smoothing) * wanted + jnp.where(label_set, share, 0)
        return optax.softmax_cross_entropy(outputs, wanted)

    def distances(
        self, outputs: Array, predictions: Array, temperature: float, label_set: Array | None
    ) -> Array:
        """See `Task`."""
        if label_set is not None:
            predictions = jnp.where(label_set, predictions, 0)
        return optax.softmax_cross_entropy(outputs / temperature, predictions)

    def scores(self, outputs: Array, targets: Array) -> Array:
        """See `Task`."""
        return outputs.argmax(axis=-1) == targets

    def in_own_units(self, values: np.ndarray) -> np.ndarray:
        """See `Task`."""
        return values


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Regression: an output is a number, standardised; it has no temperature and no label set.

    Attributes:
      mean, deviation: of the D numbers of the training samples, in their own units.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def has_classes(self) -> bool:
        """See `Task`."""
        return False

    def predictions(self, outputs: Array, temperature: float = 1.0) -> Array:
        """See `Task`."""
        del temperature
        return outputs

    def decisions(self, outputs: Array) -> Array:
        """See `Task`."""
        return outputs

    def private_losses(
        self, outputs: Array, targets: Array, label_smoothing: float, label_set: Array | None
    ) -> Array:
        """See `Task`."""
        del label_smoothing, label_set
        return jnp.square(outputs - targets).mean(axis=-1) / 2

    def distances(
        self, outputs: Array, predictions: Array, temperature: float, label_set: Array | None
    ) -> Array:
        """See `Task`."""
        del temperature, label_set
        return jnp.square(outputs - predictions).mean(axis=-1) / 2

    def scores(self, outputs: Array, targets: Array) -> Array:
        """See `Task`."""
        return 1 - jnp.square(outputs - targets).mean(axis=-1)

    def in_own_units(self, values: np.ndarray) -> np.ndarray:
        """See `Task`."""
        return (values * np.array(self.deviation) + np.array(self.mean)).astype(np.float32)

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Returns numbers [..., D] in their own units as heads learn them, float32."""
        return ((values - np.array(self.mean)) / np.array(self.deviation)).astype(np.float32)


CLASSES = Classes()
