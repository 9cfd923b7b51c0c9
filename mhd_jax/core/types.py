"""The records that every part of the library shares.

Axis names used in all docstrings: K clients, B private batch, P public batch,
H = m + 1 heads (head 0 is the main head), C classes, D embedding width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from flax import struct

PyTree = Any
Metrics = dict[str, Any]  # arrays, and counts of messages by kind


@struct.dataclass
class Outputs:
    """A client's outputs on N samples: `logits` [N, H, C] and `embeddings` [N, D].

    For clients of unequal embedding width together, D is the largest, and narrower
    embeddings end in zeros. `embeddings` is None where they are not sent.
    """

    logits: jax.Array
    embeddings: jax.Array | None


class Model(Protocol):
    """One client's network, whose parameters live outside; see `mhd_jax.models.ClientModel`."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def pretext(self) -> Any:
        """The task that it learns from private images instead of labels; None learns from labels."""

    def init(self, key: jax.Array, inputs: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and other variables of one client, for a batch of samples."""

    def apply(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: PyTree,
        key: jax.Array | None = None,
        label_set: jax.Array | None = None,
    ) -> tuple[Outputs, PyTree]:
        """Outputs on samples, in training mode with a `key`, and the other variables afterwards."""

    def is_random(self, params: PyTree, inputs: PyTree) -> bool:
        """Whether a pass in training mode draws random numbers."""


class Participants(Protocol):
    """What algorithms know of the clients; see `mhd_jax.Clients`."""

    @property
    def groups(self) -> Sequence[Any]:
        """Clients by architecture, with models and optimizers."""

    @property
    def num_clients(self) -> int:
        """K."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def data(self) -> Any:
        """The data set, which prepares samples."""

    @property
    def num_public(self) -> int:
        """M, samples in the public set."""

    @property
    def public_inputs(self) -> PyTree:
        """The public set, arrays [M, ...] as stored."""

    @property
    def learns_labels(self) -> np.ndarray:
        """Which clients learn from private labels, bool [K]."""

    @property
    def label_sets(self) -> np.ndarray | None:
        """Which classes each client knows, bool [K, C]; None where all know all."""

    @property
    def adversaries(self) -> Mapping[int, str]:
        """What those send who misbehave, by client."""

    def label_counts(self) -> np.ndarray:
        """Private samples by client and class, int [K, C]."""

    def labelled_counts(self) -> np.ndarray:
        """Private samples from whose labels a client learns, by client and class, int [K, C]."""


@struct.dataclass
class Presence:
    """Which clients train, and which can be reached, in one step.

    Attributes:
      trains: who takes the step, bool [K]; the others stay as they are.
      reachable: whose messages can be received, made with the parameters that it has, bool [K].
    """

    trains: jax.Array
    reachable: jax.Array


@struct.dataclass
class Batch:
    """The samples that all clients see in one step.

    Attributes:
      inputs: private samples, a pytree of arrays [K, B, ...].
      labels: private labels, int32 [K, B].
      mask: 1 for real private samples and 0 for padding, float [K, B].
      public_inputs: public samples, [P, ...] when all clients share them,
        [K, P, ...] when each client draws its own.
      public_indices: positions of the public samples in the public set, int32
        [P] or [K, P].
      presence: which clients train and can be reached; None where all do at every step.
    """

    inputs: PyTree
    labels: jax.Array
    mask: jax.Array
    public_inputs: PyTree
    public_indices: jax.Array
    presence: Presence | None = None

    @property
    def public_is_shared(self) -> bool:
        """Whether all clients see the same public samples in this step."""
        return self.public_indices.ndim == 1


@struct.dataclass
class GroupState:
    """Clients of one architecture, stacked: every array has a leading axis of the group's size.

    `snapshots` are parameters and statistics of earlier steps, where an algorithm keeps some: arrays
    [k, slots, ...] of its own clients, or [K, slots, ...] that all clients keep of such.
    """

    params: PyTree
    stats: PyTree
    opt_state: PyTree
    model: Model = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    members: tuple[int, ...] = struct.field(pytree_node=False)
    snapshots: PyTree = ()


@struct.dataclass
class State:
    """Everything that evolves in a run.

    Attributes:
      step: number of steps taken, int32 [].
      key: the run's base key; it never changes, see `mhd_jax.core.random`.
      client_ids: who sits at each position of the client axis, int32 [K]. Keys
        derive from the id, so a client keeps its randomness wherever it sits.
      groups: clients by architecture; `members` gives their positions.
      label_sets: which classes each client knows, bool [K, C]; None where all know all. The
        whole is everyone's: receivers know their senders' sets.
      extra: what one algorithm keeps beside (consensus estimates, teacher pools); arrays
        [K, ...] live where their clients do.
    """

    step: jax.Array
    key: jax.Array
    client_ids: jax.Array
    groups: tuple[GroupState, ...]
    label_sets: jax.Array | None = None
    extra: PyTree = ()

    @property
    def num_clients(self) -> int:
        """K, the length of the client axis."""
        return self.client_ids.shape[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Algorithm:
    """One way of learning together, as pure and un-jitted functions.

    Attributes:
      init: `(key, clients, sample_batch) -> State`; raises `ConfigError` where the
        clients cannot take part (unequal architectures or embeddings, say).
      train_step: `(state, batch, adjacency [K, K]) -> (state, metrics)`. A metric is a
        scalar or has one entry per client [K]; `metrics["messages"]` counts the messages
        of this step that arrive, by kind ("predictions", "weights"): those of i from j, int32
        [K, K], or those between i and a server [K]. Where clients or links fail
        (`mhd_jax.engine.faults`), the graph is without the edges that do, and the engine gives
        parameters, statistics and optimizer states back to those who do not train; what is in
        `extra`, or goes through a server, is the algorithm's to keep sound by `batch.presence`. What messages
        were not finite, and are not learned from, `metrics["non_finite"]` may count.
        `metrics["diagnostics"]`, where there are any, are summed over the run (`mhd_jax.exchange.diagnostics`).
      predict: `(state, inputs [N, ...]) -> logits [K, N, H, C]`, in evaluation mode.
      message: `(state, batch, group) -> {kind: {type: arrays}}`, what a message of each kind
        from a client of `group`, one of the state's, consists of, in shapes (see
        `mhd_jax.exchange.messages`); arrays are not read.
      num_heads: H.
      public_batch: "shared" when all clients see the same public samples in a step,
        "independent" when each draws its own, None when it needs no public set.
      undirected: whether it averages over the graph, whose edges must then go both ways.
      strongly_connected: whether what goes out over the edges must be able to come back, by some
        way: clients that send and never receive lose their weight.
      consensus: `state -> weights [K]`, where a mean of the clients' parameters, by such weights,
        is a model of its own, which is evaluated at the end beside the clients'; None where not.
      remembers_public: whether it keeps something about each public sample, which must then
        look the same every time.
      num_snapshots: how many earlier parameters each client keeps, or others keep of it.
      falsifiable: whether clients may misbehave: their messages go through
        `mhd_jax.exchange.adversaries`, or there are none.
      pooled: whether one client holds all private data (the upper bound).
      nesterov: whether its paper's momentum is Nesterov's, which `mhd_jax.training.optim.SGD` then takes
        where `nesterov` is not given.
      needs_everyone: why it has no sound meaning where clients or links are missing; empty where
        it has one.
      name: filled in by the factory that made it.
      hyperparameters: filled in by it, too.
      factory: filled in by it, too.
    """

    init: Callable[[jax.Array, Participants, Batch], State]
    train_step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]]
    predict: Callable[[State, PyTree], jax.Array]
    message: Callable[[State, Batch, GroupState], Mapping[str, Mapping[str, PyTree]]]
    num_heads: int = 1
    public_batch: str | None = None
    undirected: bool = False
    strongly_connected: bool = False
    consensus: Callable[[State], jax.Array] | None = None
    remembers_public: bool = False
    num_snapshots: int = 0
    falsifiable: bool = False
    pooled: bool = False
    nesterov: bool = False
    needs_everyone: str = ""
    name: str = "unnamed"
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    factory: Callable[..., Algorithm] | None = None

    @property
    def may_augment_public(self) -> bool:
        """Whether public samples may look different from time to time."""
        return self.public_batch is not None and not self.remembers_public
