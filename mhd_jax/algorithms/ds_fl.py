"""DS-FL: Itahara et al., IEEE TMC 2021, arXiv 2008.06180; and SCARLET: arXiv 2504.19602.

Training proceeds in rounds (`mhd_jax.algorithms.distillation_rounds`): clients learn their private
labels, then predict public samples, average the predictions, sharpen the average, and learn it:

    p̄_i(x) = mean_{j ∈ N(i) ∪ {i}} softmax z_j(x)
    t_i(x) = softmax(p̄_i(x) / T)                   "era", entropy reduction aggregation
           = p̄_i(x)^β / Σ_c p̄_i(x)^β               "enhanced_era", SCARLET's
           = p̄_i(x)                                "mean"

N(i) are the neighbours at the step. On the complete graph this is the papers' server, which
averages all clients. Architectures may differ. With label sets, a client's prediction for a class
outside its set is 0, classes that none of the averaged clients knows keep probability 0, and a
client learns the part of the target inside its own set.

Soft labels may be cached (SCARLET). With `cache_steps` D > 0 a client keeps the target of each
public sample for D steps, the step at which it was made included: until then it asks no neighbour
about the sample, and learns the kept target. A message is the prediction for one sample, with the
index by which the receiver has asked for it.

Departures from the papers, of which only the abstracts could be read. The rest, T = 0.1 and the
rule by which cached labels expire included, is from SCARLET's public code, which has DS-FL too; no
code of DS-FL's authors was found. β = 2 is a choice: the code's settings have 1, no sharpening.

- In a round, the papers' clients go through a set of public samples several times; here each step
  draws a new public minibatch, and predictions for it cross edges in that step. The cached labels
  expire by steps, not by rounds.
- Each client caches its own targets. SCARLET's server holds one cache for all, and tells clients
  that were away what they missed; here such a client asks for what it lacks.
- The distillation uses the optimizer of the private steps, and evaluation mode.
- There is no server model.
- A client learns nothing from samples about which it has heard no neighbour, though the equations
  would let it sharpen its own predictions. Clients without private labels are not averaged.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
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
from mhd_jax.core.label_sets import masked
from mhd_jax.core.types import Algorithm, Batch, GroupState, Participants, PyTree, State
from mhd_jax.exchange.messages import Messages
from mhd_jax.training.groups import output_shapes

AGGREGATIONS = ("era", "enhanced_era", "mean")
_NEVER = -1


@dataclasses.dataclass(frozen=True, eq=False)
class _DSFL(DistillationRounds):
    """The functions of the algorithm, and what they are made with, see `ds_fl`."""

    aggregation: str
    era_temperature: float
    era_exponent: float
    cache_steps: int

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        state = super().init(key, clients, sample_batch)
        if self.cache_steps == 0:
            return state
        size = (clients.num_clients, clients.num_public)
        kind = output_shapes(state.groups[0], sample_batch).logits.dtype
        cache = {
            "labels": jnp.zeros((*size, clients.num_classes), kind),
            "steps": jnp.full(size, _NEVER, jnp.int32),
        }
        return dataclasses.replace(state, extra={**state.extra, "cache": cache})

    def targets(
        self, state: State, batch: Batch, predictions: Predictions
    ) -> tuple[PyTree, Targets]:
        made = self.aggregated(predictions, state.label_sets)
        hears = predictions.heard.any(axis=1)[:, None]  # [K, 1]
        if self.cache_steps == 0:
            exist = jnp.broadcast_to(hears, made.shape[:2])
            crossing = predictions.asked * jnp.int32(made.shape[1])
            return state.extra, Targets(made, exist, crossing)
        rows, cache = batch.public_indices, state.extra["cache"]
        labels, steps = (cache[name][:, rows] for name in ("labels", "steps"))
        fresh = (steps != _NEVER) & (state.step - steps < self.cache_steps)  # [K, P]
        renewed = hears & ~fresh
        labels = jnp.where(renewed[..., None], made, labels)
        steps = jnp.where(renewed, state.step, steps)
        cache = {
            "labels": cache["labels"].at[:, rows].set(labels),
            "steps": cache["steps"].at[:, rows].set(steps),
        }
        wanted = ~fresh & ~_repeated(rows)
        crossing = predictions.asked * wanted.sum(axis=1, dtype=jnp.int32)[:, None]
        return {**state.extra, "cache": cache}, Targets(labels, fresh | renewed, crossing)

    def aggregated(self, predictions: Predictions, label_sets: Array | None) -> Array:
        """Returns t_i(x), [K, P, C], which are zeros for a client that averages nobody."""
        among = predictions.averaged.astype(predictions.probabilities.dtype)
        count = among.sum(axis=1, keepdims=True)
        mean = exchange.average(predictions.probabilities, among / jnp.maximum(count, 1))
        if self.aggregation == "mean":
            return mean
        if self.aggregation == "enhanced_era":
            top = mean.max(axis=-1, keepdims=True)  # by which large exponents leave a number over
            powers = (mean / jnp.where(top > 0, top, 1)) ** self.era_exponent
            total = powers.sum(axis=-1, keepdims=True)
            return powers / jnp.where(total > 0, total, 1)
        known = None
        if label_sets is not None:
            known = (predictions.averaged[:, :, None] & label_sets).any(axis=1)[:, None]
        return jax.nn.softmax(masked(mean / self.era_temperature, known))

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        message = dict(self.message_of_a_sample(state, batch, group))
        if self.cache_steps > 0:
            message["indices"] = jax.ShapeDtypeStruct((), jnp.int32)
        return {"predictions": message}


def _repeated(rows: Array) -> Array:
    """Returns which samples of a batch [P] are there already, as at the end of an epoch, bool [P]."""
    return jnp.tril(rows[:, None] == rows, -1).any(axis=1)


@factory
def ds_fl(
    private_steps: int = 5,
    distill_steps: int = 5,
    aggregation: str = "era",
    era_temperature: float = 0.1,
    era_exponent: float = 2.0,
    cache_steps: int = 0,
    compression: str = "none",
    label_smoothing: float = 0.0,
) -> Algorithm:
    """Returns DS-FL, in which clients learn the sharpened average of their neighbours' predictions.

    Args:
      private_steps: the number of steps of a round that learn from private data.
      distill_steps: the number of steps of a round that learn from the averages.
      aggregation: how an average is sharpened: "era" by a softmax with temperature
        `era_temperature`, "enhanced_era" by the power `era_exponent`, "mean" not at all.
      era_temperature: T, 0.1 as in DS-FL; the smaller, the sharper.
      era_exponent: β; the larger, the sharper, and 1 is the mean.
      cache_steps: D, the number of steps for which a client keeps the target of a public sample;
        0 keeps none. It takes memory for the classes of all public samples of each client.
      compression: compression of the predictions, see `mhd_jax.exchange.compression`.
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1), 0 as in the
        papers. Comparisons on the command line give all algorithms 0.1.
    """
    require_rounds(private_steps, distill_steps, label_smoothing)
    require(
        aggregation in AGGREGATIONS,
        f"aggregation must be one of {', '.join(AGGREGATIONS)}, not {aggregation!r}.",
    )
    require(era_temperature > 0, f"era_temperature must be positive, not {era_temperature}.")
    require(era_exponent > 0, f"era_exponent must be positive, not {era_exponent}.")
    require_at_least(0, cache_steps=cache_steps)
    parts = _DSFL(
        private_steps=private_steps,
        distill_steps=distill_steps,
        label_smoothing=label_smoothing,
        channel=channel_of(compression),
        aggregation=aggregation,
        era_temperature=era_temperature,
        era_exponent=era_exponent,
        cache_steps=cache_steps,
    )
    return algorithm_of(
        parts,
        public_batch="shared",
        remembers_public=cache_steps > 0,
        falsifiable=True,
        needs_classes="it sharpens averages of probabilities",
    )
