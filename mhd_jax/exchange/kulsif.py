"""KuLSIF, kernel least squares for the ratio of two densities: Kanamori, Suzuki and Sugiyama, 2012.

Given samples y_1 … y_m of a density p and x_1 … x_n of a density q, the estimate of p/q is

    r = argmin_r  1/2n Σ_a r(x_a)² − 1/m Σ_b r(y_b) + λ/2 ‖r‖²

over the functions of a Gaussian kernel k(x, y) = exp(−‖x − y‖² / 2σ²), with λ = 1/√n. With h(x) =
mean_b k(x, y_b) and the matrix K of all k(x_a, x_b), its closed form is

    (K/n + λ) v = (h(x_1) … h(x_n)),    r(x) = (h(x) − mean_a v_a k(x, x_a)) / λ

in which v_a = r(x_a). (Machine Learning 86, "Statistical analysis of kernel-based least-squares
density-ratio estimation", has the same with α = −v/(nλ).)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from mhd_jax.core.types import PyTree


@struct.dataclass
class Denominator:
    """Samples of q, with what all ratios to q share.

    Attributes:
      samples: x_1 … x_n, [n, D].
      width: σ.
      regularisation: λ.
      cholesky: the lower Cholesky factor of K/n + λ, [n, n].
    """

    samples: Array
    width: Array
    regularisation: Array
    cholesky: Array

    @classmethod
    def of(cls, samples: Array, width: Array | float) -> Denominator:
        """Returns the denominator for samples [n, D] and the kernel's width σ."""
        count = len(samples)
        regularisation = jnp.asarray(count**-0.5, samples.dtype)
        width = jnp.asarray(width, samples.dtype)
        gram = gaussian(samples, samples, width) / count
        cholesky = jnp.linalg.cholesky(gram + regularisation * jnp.eye(count, dtype=gram.dtype))
        return cls(samples, width, regularisation, cholesky)


@struct.dataclass
class Ratio:
    """The estimate of p/q.

    Attributes:
      denominator: of q.
      samples: y_1 … y_m, [m, D].
      there: which of the m are samples, bool [m].
      at_denominator: v, [n].
    """

    denominator: Denominator
    samples: Array
    there: Array
    at_denominator: Array

    @classmethod
    def fitted(cls, denominator: Denominator, samples: Array, there: Array) -> Ratio:
        """Returns the estimate for samples of p, those of [m, D] that are `there`, bool [m]."""
        h = _mean_kernel(denominator.samples, samples, there, denominator.width)
        v = jax.scipy.linalg.cho_solve((denominator.cholesky, True), h)
        return cls(denominator, samples, there, v)

    def __call__(self, points: Array) -> Array:
        """Returns r at points [N, D], [N]; negative values are possible."""
        q = self.denominator
        h = _mean_kernel(points, self.samples, self.there, q.width)
        seen = gaussian(points, q.samples, q.width) @ self.at_denominator / len(q.samples)
        return (h - seen) / q.regularisation


def gaussian(points: Array, others: Array, width: Array) -> Array:
    """Returns exp(−‖x − y‖² / 2σ²) for x of [N, D] and y of [M, D], [N, M]."""
    return jnp.exp(-squared_distances(points, others) / (2 * width**2))


def squared_distances(points: Array, others: Array) -> Array:
    """Returns ‖x − y‖² for x of [N, D] and y of [M, D], [N, M]."""
    centre = points.mean(axis=0)  # without which large common parts would cancel
    points, others = points - centre, others - centre
    products = jnp.matmul(points, others.T, precision="highest")
    sums = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    return jnp.maximum(sums - 2 * products, 0)


def median_distance(points: Array) -> Array:
    """Returns the median of ‖x − y‖ over pairs of points [N, D]; 1 if there is no distance."""
    first, second = jnp.triu_indices(len(points), 1)
    if first.size == 0:
        return jnp.ones((), points.dtype)
    found = jnp.sqrt(jnp.median(squared_distances(points, points)[first, second]))
    return jnp.where(found > 0, found, 1)


def features(inputs: PyTree) -> Array:
    """Returns samples, arrays [N, ...] of floats, as vectors [N, D]."""
    parts = [a.reshape(len(a), -1) for a in jax.tree.leaves(inputs)]
    return jnp.concatenate(parts, axis=1).astype(float)


def _mean_kernel(points: Array, samples: Array, there: Array, width: Array) -> Array:
    """Returns mean_b k(x, y_b) over the samples [m, D] that are there, at points [N, D]."""
    weights = there.astype(points.dtype)
    return gaussian(points, samples, width) @ (weights / jnp.maximum(weights.sum(), 1))
