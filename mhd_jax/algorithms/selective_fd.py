"""Selective-FD: Shao, Wu and Zhang, Nature Communications 2024, arXiv 2304.01731.

Training proceeds in rounds (`mhd_jax.algorithms.distillation_rounds`), in which clients learn the
average of predictions on public samples, and selectors leave out predictions that would mislead:

    S_j = {x : r_j(x) ≥ the q-quantile of r_j over j's held-out private samples}
    p̄_i(x) = mean_{j ∈ N(i) ∪ {i}, x ∈ S_j} softmax z_j(x)
    t_i(x) = p̄_i(x)   where ‖p̄_i(x) − onehot(argmax p̄_i(x))‖₁ < τ

Client j answers for the public samples S_j that its own data resembles: r_j is the KuLSIF estimate
(`mhd_jax.exchange.kulsif`) of the density of its private samples over that of the public
samples. The receiver drops ambiguous averages. On the complete graph the receiver is the paper's
server. Architectures may differ. Only answers cross edges: a message is the prediction for one
sample, with the sample's index. With label sets, a client's prediction for a class outside its set
is 0, and the distance is 2 (Σ_c p̄_i(x)_c − max_c p̄_i(x)_c) with all classes.

S_j is computed at the start, as in the authors' code, from inputs as models see them and not from
embeddings, so that it does not depend on the seed. It takes up to `density_samples` private samples
for the estimate, as many others for the quantile and as many public samples, evenly spaced in their
order; time is linear in the public set, and memory does not grow with it beyond one bit a sample
and client. A client with a single private sample, or without labels, never answers.

Departures from the authors' code, and choices (of the paper only the abstract could be read):

- The code multiplies by K/n + λ where the closed form needs its inverse; here it is the inverse.
- The code's denominator is uniform noise in the range of the pixels, which makes r_j an estimate of
  the private density alone. Here it is the public set, which is what r_j is about.
- The kernel's width is relative to the data: `kernel_width` times the median distance between public
  samples. In the code it is 5, for MNIST. λ = 1/√n and q = 0.25 are the code's.
- In the weakly skewed setting the code fits one estimator for each class of a client, which needs
  clients of known classes. Here a client has one estimator.
- The code has no selector of averages. The rule, by the distance from a one-hot label, is that of
  SCARLET's code (arXiv 2504.19602), which compares with Selective-FD; the default threshold keeps an
  average in which one class has more than half of the probability.
- A client learns nothing from samples for which no neighbour answers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import algorithm_of, factory, require, require_at_least
from mhd_jax.algorithms.distillation_rounds import (
    DistillationRounds,
    Predictions,
    Targets,
    channel_of,
    require_rounds,
)
from mhd_jax.core.client_axis import everywhere, over_clients
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import Algorithm, Batch, GroupState, Participants, PyTree, State
from mhd_jax.data.dataset import in_parts, take
from mhd_jax.exchange.kulsif import Denominator, Ratio, features, median_distance
from mhd_jax.exchange.messages import Messages

_AT_ONCE = 500  # public samples whose ratios are computed together


@dataclasses.dataclass(frozen=True, eq=False)
class _SelectiveFD(DistillationRounds):
    """The functions of the algorithm, and what they are made with, see `selective_fd`."""

    ratio_quantile: float
    most_ambiguous: float
    kernel_width: float
    density_samples: int

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        state = super().init(key, clients, sample_batch)
        answers = self.answers(clients) & state.extra["teaches"][:, None]
        return dataclasses.replace(state, extra={**state.extra, "answers": answers})

    def answers(self, clients: Participants) -> Array:
        """Returns which public samples each client's own data resembles, bool [K, M]."""
        _require_distances(clients)
        prepare, size = clients.data.preparation, clients.num_public
        rows = np.linspace(0, size - 1, min(self.density_samples, size)).astype(int)
        samples = (
            take(clients.public_inputs, rows),
            in_parts(clients.public_inputs, _AT_ONCE),
            *clients.private_inputs(2 * self.density_samples),
        )
        # All that follows is constant: without a barrier, the compiler computes it, and slowly.
        some, public, private, there = jax.lax.optimization_barrier(
            jax.tree.map(jnp.asarray, samples)
        )
        some = features(prepare(some))
        denominator = Denominator.of(some, self.kernel_width * median_distance(some))

        def of_one(stored: PyTree, there: Array, public: PyTree) -> Array:
            own = features(prepare(stored))
            ratio = Ratio.fitted(denominator, own[::2], there[::2])
            held_out = jnp.where(there[1::2], ratio(own[1::2]), jnp.nan)
            least = jnp.nanquantile(held_out, self.ratio_quantile)  # NaN where nothing is held out
            return jax.lax.map(lambda part: ratio(features(prepare(part))) >= least, public)

        found = over_clients(of_one, (0, 0, None))(private, there, public)
        return found.reshape(clients.num_clients, -1)[:, :size]

    def targets(
        self, state: State, batch: Batch, predictions: Predictions
    ) -> tuple[PyTree, Targets]:
        answers = everywhere(state.extra["answers"])[:, batch.public_indices]  # [K, P]
        kind = predictions.probabilities.dtype
        given, heard, averaged = (
            a.astype(kind) for a in (answers, predictions.heard, predictions.averaged)
        )
        count = exchange.average(given, averaged)
        answered = exchange.average(predictions.probabilities * given[..., None], averaged)
        mean = answered / jnp.maximum(count, 1)[..., None]
        ambiguity = 2 * (mean.sum(axis=-1) - mean.max(axis=-1))
        exist = (exchange.average(given, heard) > 0) & (ambiguity < self.most_ambiguous)
        crossing = predictions.asked * answers.sum(axis=1, dtype=jnp.int32)
        return state.extra, Targets(mean, exist, crossing)

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        index = jax.ShapeDtypeStruct((), jnp.int32)
        return {"predictions": {**self.message_of_a_sample(state, batch, group), "indices": index}}


@factory
def selective_fd(
    private_steps: int = 5,
    distill_steps: int = 5,
    ratio_quantile: float = 0.25,
    most_ambiguous: float = 1.0,
    kernel_width: float = 0.25,
    density_samples: int = 250,
    compression: str = "none",
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns Selective-FD, in which clients answer only for samples that resemble their own data.

    Args:
      private_steps: the number of steps of a round that learn from private data.
      distill_steps: the number of steps of a round that learn from the averages.
      ratio_quantile: q in [0, 1]: a client answers for a public sample whose density ratio is at
        least that of this share of its held-out private samples; 0 answers for most samples.
      most_ambiguous: τ in (0, 2]: averages at this L1 distance from a one-hot label, or farther,
        are left out; 2 leaves out none.
      kernel_width: the width σ of the Gaussian kernel, relative to the median distance between
        public samples.
      density_samples: the largest number of private samples of a client from which its density
        ratio is estimated, of those on which its quantile is taken, and of public samples in it.
      compression: compression of the predictions, see `mhd_jax.exchange.compression`.
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1), 0 as in the
        paper. Comparisons on the command line give all algorithms 0.1.

    Raises:
      ConfigError: a value is out of range, or (at `init`) samples have no distances, because they
        hold integers.
    """
    require_rounds(private_steps, distill_steps, label_smoothing)
    require(0 <= ratio_quantile <= 1, f"ratio_quantile must be in [0, 1], not {ratio_quantile}.")
    require(0 < most_ambiguous <= 2, f"most_ambiguous must be in (0, 2], not {most_ambiguous}.")
    require(kernel_width > 0, f"kernel_width must be positive, not {kernel_width}.")
    require_at_least(1, density_samples=density_samples)
    parts = _SelectiveFD(
        private_steps=private_steps,
        distill_steps=distill_steps,
        label_smoothing=label_smoothing,
        channel=channel_of(compression),
        ratio_quantile=ratio_quantile,
        most_ambiguous=most_ambiguous,
        kernel_width=kernel_width,
        density_samples=density_samples,
    )
    return algorithm_of(
        parts,
        public_batch="shared",
        remembers_public=True,
        falsifiable=True,
        needs_classes="it selects probabilities that are nearly one-hot",
    )


def _require_distances(clients: Participants) -> None:
    """Raises `ConfigError` unless all numbers of a prepared sample are floats."""
    kinds = {a.dtype for a in jax.tree.leaves(clients.data.samples(1))}
    whole = sorted(str(kind) for kind in kinds if not jnp.issubdtype(kind, jnp.floating))
    if whole:
        raise ConfigError(
            f"selective_fd compares samples of {clients.data.name} by their distance, which "
            f"{', '.join(whole)} has not; store floats or pixels (uint8), or choose ds_fl."
        )
