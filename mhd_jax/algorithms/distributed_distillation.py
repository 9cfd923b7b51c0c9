"""Distributed Distillation (D-Distillation): Bistritz, Mann and Bambos, NeurIPS 2020.

Clients seek consensus on soft decisions instead of parameters. s_i(x) is client i's softmax on a
sample of the reference set R, which is the public set, and z_i(x) its running estimate of the
average over all clients. At each step, with the reference minibatch R_t that all clients share,

    θ_i ← θ_i − η ( ∇CE_i + ρ · ∇ ½ mean_{x∈R_t} ‖s_i(x; θ_i) − sg z_i(x)‖² )
    z_i(x) ← Σ_j W[i,j] z_j(x) + s_i(x; θ_i new) − s_i^prev(x),   s_i^prev(x) ← s_i(x; θ_i new)

for x in R_t. This is dynamic average consensus, with Metropolis–Hastings weights W of an undirected
graph and z_i(0) = s_i^prev = s_i(θ_i(0)). After every step Σ_i z_i(x) = Σ_i s_i^prev(x) for all x.
Architectures may differ. The decisions of a client with a label set are 0 outside it. Nothing else
changes, so that the mass of z_i outside the set raises s_i equally for all classes inside.

With a compression Q, neighbours of j store a common copy ẑ_j of the estimate that j has sent so
far, and j sends only the difference, so that the error of one message is corrected in the next
(error feedback, as in Koloskova et al., ICML 2019). The sum Σ_j W[i,j] z_j(x) is replaced:

    ẑ_j(x) ← ẑ_j(x) + Q(z_j(x) − ẑ_j(x)),   Σ_j W[i,j] z_j(x) → z_i(x) + Σ_j W[i,j] ẑ_j(x) − ẑ_i(x)

The sums over clients do not change. The copies assume that all neighbours have received all
messages; on a time-varying graph, new neighbours get the copy at no cost.

For a regression, decisions are the standardised numbers themselves.

Decisions, estimates and the pull are computed in evaluation mode, so that z_i is compared with the
same s_i that enters it.

A client that is away keeps z_i and s_i^prev, so that the sums remain equal; one that never comes
back still contributes its last decisions.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax import exchange
from mhd_jax.algorithms.base import (
    algorithm_of,
    factory,
    require,
    require_at_least,
    require_label_smoothing,
)
from mhd_jax.core.client_axis import over_clients
from mhd_jax.core.tasks import Task
from mhd_jax.core.trees import where_rows
from mhd_jax.core.types import Algorithm, Batch, GroupState, Metrics, Outputs, Participants, State
from mhd_jax.data.dataset import in_parts
from mhd_jax.exchange import compression as compressions
from mhd_jax.exchange.compression import Compression
from mhd_jax.exchange.messages import Messages
from mhd_jax.topology.mixing import metropolis_hastings
from mhd_jax.training.groups import apply_gradients, init_state, output_shapes, predict
from mhd_jax.training.passes import private_and_public

_AT_ONCE = 500  # reference samples in one pass at initialization


@dataclasses.dataclass(frozen=True, eq=False)
class _DistributedDistillation:
    """The functions of the algorithm, and what they are made with.

    Attributes:
      rho, label_smoothing: see `distributed_distillation`.
      coded: the compression of the estimates; None sends them as they are.
    """

    rho: float
    coded: Compression | None
    label_smoothing: float

    def init(self, key: Array, clients: Participants, sample_batch: Batch) -> State:
        state = init_state(key, clients, sample_batch, num_heads=1)
        first = _decisions_on_reference_set(state, clients)
        extra = {"estimates": first, "previous_decisions": first}
        if self.coded is not None:
            extra["neighbour_copies"] = jnp.zeros_like(first)
        return dataclasses.replace(state, extra=extra)

    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        outputs, gradients_from = private_and_public(
            state, batch, self.label_smoothing, evaluates=True
        )
        here = state.extra["estimates"][:, batch.public_indices]
        pull = functools.partial(self.pull, task=state.task)
        at_outputs, terms = over_clients(jax.grad(pull, has_aux=True))(outputs, here)
        gradients, stats, losses = gradients_from(at_outputs)
        state = self.track(apply_gradients(state, gradients, stats), batch, graph, here)
        metrics = Metrics(
            losses + self.rho * terms,
            {"predictions": exchange.along_edges(graph)},
            {"private_loss": losses, "public_loss": terms},
        )
        return state, metrics

    def pull(self, outputs: Outputs, estimate: Array, task: Task) -> tuple[Array, Array]:
        """Returns a client's ρ · ½ mean_x ‖s_i(x) − z_i(x)‖², and the same without ρ."""
        gaps = jnp.square(task.predictions(outputs.logits[:, 0]) - estimate)
        term = gaps.sum(axis=-1).mean() / 2
        return self.rho * term, term

    def track(self, state: State, batch: Batch, graph: Array, here: Array) -> State:
        """Returns the state with new estimates z_i(x) of R_t, from those before, `here` [K, P, C]."""
        rows, extra = batch.public_indices, dict(state.extra)
        estimates, previous = extra["estimates"], extra["previous_decisions"]
        now = _decisions(state, batch)
        if batch.presence is not None:  # a client that is away or diverges keeps its decisions
            received_from = batch.presence.trains & exchange.all_finite(now)
            now = where_rows(received_from, now, previous[:, rows])
        weights = metropolis_hastings(graph)
        if self.coded is None:
            tracked = exchange.average_neighbours(here, weights)
        else:
            before = extra["neighbour_copies"][:, rows]
            copies = before + self.coded.arrived(here - before)
            tracked = here + exchange.average_neighbours(copies, weights) - copies
            extra["neighbour_copies"] = extra["neighbour_copies"].at[:, rows].set(copies)
        change = now - previous[:, rows]
        extra["estimates"] = estimates.at[:, rows].set(tracked + change)
        extra["previous_decisions"] = previous.at[:, rows].set(now)
        return dataclasses.replace(state, extra=extra)

    def message(self, state: State, batch: Batch, group: GroupState) -> Messages:
        encode = (self.coded or compressions.NONE).encode
        outputs = output_shapes(group, batch)
        return {"predictions": {"soft decisions": jax.eval_shape(encode, outputs.logits)}}


@factory
def distributed_distillation(
    rho: float = 1.0, compression: str = "none", label_smoothing: float = 0.0
) -> Algorithm:
    """Returns Distributed Distillation, which averages soft decisions by gossip.

    Args:
      rho: ρ, weight of the pull towards the network's average decisions.
      compression: compression of the estimates: "none", "float16" or "int8", with error feedback.
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1), 0 as in the
        paper. Comparisons on the command line give all algorithms 0.1.
    """
    require_at_least(0, rho=rho)
    require_label_smoothing(label_smoothing)
    coded = compressions.named(compression)
    require(
        not coded.ranks_classes,
        f"{compression} is for logits, but distributed_distillation sends estimates of soft "
        "decisions; choose float16 or int8.",
    )
    is_exact = coded is compressions.NONE
    return algorithm_of(
        _DistributedDistillation(rho, None if is_exact else coded, label_smoothing),
        public_batch="shared",
        undirected=True,
        remembers_public=True,
        needs_classes="",
        needs_everyone=""
        if is_exact
        else "with compression all neighbours must have received all messages; choose "
        "compression='none'",
    )


def _decisions(state: State, batch: Batch) -> Array:
    """Returns s_i(x) for the shared reference minibatch, [K, P, C]."""
    return state.task.predictions(predict(state, batch.public_inputs)[:, :, 0])


def _decisions_on_reference_set(state: State, clients: Participants) -> Array:
    """Returns s_i(x) for every x of the reference set, [K, M, C], computed in parts."""
    size = clients.num_public
    inputs = jax.tree.map(jnp.asarray, in_parts(clients.public_inputs, _AT_ONCE))
    prepare = clients.data.preparation
    logits = jax.lax.map(lambda part: predict(state, prepare(part)), inputs)  # [n, K, N, 1, C]
    joined = jnp.moveaxis(logits[:, :, :, 0], 0, 1)
    joined = joined.reshape(state.num_clients, -1, clients.num_outputs)
    return state.task.predictions(joined[:, :size])
