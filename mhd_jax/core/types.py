"""The records that all parts of the library share.

Axis names in all docstrings: K clients, B samples of a private batch, P samples of a public
batch, H = m + 1 heads (head 0 is the main head), C classes (or the numbers of a regression),
D embedding width.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import optax
from flax import struct

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.tasks import CLASSES, Task

PyTree = Any
Terms = dict[str, jax.Array]  # of a loss, or other numbers of a step, by name


@struct.dataclass
class Outputs:
    """A client's outputs on N samples: `logits` [N, H, C] and `embeddings` [N, D].

    Where clients of different embedding widths are stacked, D is the largest width, and narrower
    embeddings are padded with zeros. `embeddings` is None where they are not sent. `density` [N, H]
    are logarithms of density ratios (`mhd_jax.exchange.density`); None where heads have none.
    """

    logits: jax.Array
    embeddings: jax.Array | None
    density: jax.Array | None = None


class Model(Protocol):
    """The network of one client, without its parameters; see `mhd_jax.models.ClientModel`."""

    @property
    def num_outputs(self) -> int:
        """C, the outputs of a head."""

    @property
    def pretext(self) -> Any:
        """The pretext task that replaces the private labels; None for a client with labels."""

    def init(self, key: jax.Array, inputs: PyTree) -> tuple[PyTree, PyTree]:
        """Returns initial parameters and statistics of one client for a sample batch."""

    def apply(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: PyTree,
        key: jax.Array | None = None,
        label_set: jax.Array | None = None,
    ) -> tuple[Outputs, PyTree]:
        """Returns outputs on samples and the updated statistics; a `key` selects training mode."""

    def has_modes(self, params: PyTree, stats: PyTree, inputs: PyTree) -> bool:
        """Returns whether a pass in training mode computes something else than one in evaluation."""


class Participants(Protocol):
    """The part of `mhd_jax.Clients` that algorithms use."""

    @property
    def groups(self) -> Sequence[Any]:
        """Groups of clients of one architecture, with their models and optimizers."""

    @property
    def num_clients(self) -> int:
        """K, the number of clients."""

    @property
    def num_classes(self) -> int:
        """C, the number of classes, or of the ranges of a regression's targets."""

    @property
    def num_outputs(self) -> int:
        """The outputs of a head: C classes, or D numbers."""

    @property
    def task(self) -> Task:
        """What they learn to predict: classes, or numbers."""

    @property
    def data(self) -> Any:
        """The data set, including how its samples are prepared."""

    @property
    def num_public(self) -> int:
        """M, the number of samples in the public set."""

    @property
    def public_inputs(self) -> PyTree:
        """The public set, arrays [M, ...] as stored, before preparation."""

    def calibration_samples(self, most: int) -> tuple[PyTree, np.ndarray]:
        """Returns up to `most` validation samples as models take them, [V, ...], and labels [V]."""

    @property
    def learns_labels(self) -> np.ndarray:
        """Which clients learn from private labels, bool [K]."""

    @property
    def label_sets(self) -> np.ndarray | None:
        """The label sets of the clients, bool [K, C]; None if all have all classes."""

    @property
    def adversaries(self) -> Mapping[int, str]:
        """The kind of falsified predictions that each adversary sends, by client."""

    def label_counts(self) -> np.ndarray:
        """Returns the number of private samples by client and class, int [K, C]."""

    def private_inputs(self, most: int) -> tuple[PyTree, np.ndarray]:
        """Returns up to `most` private samples of each client as stored, and which there are."""

    def labelled_counts(self) -> np.ndarray:
        """Returns `label_counts`, but zeros for clients that do not learn from labels."""


@struct.dataclass
class Presence:
    """Which clients train, and which can be reached, in one step.

    Attributes:
      trains: which clients take the step, bool [K]; the others keep their parameters.
      reachable: which clients can send and be received, with their current parameters, bool [K].
    """

    trains: jax.Array
    reachable: jax.Array


@struct.dataclass
class Batch:
    """The private and public samples of all clients in one step.

    Attributes:
      inputs: private samples, a pytree of arrays [K, B, ...].
      labels: private labels, int32 [K, B]; of a regression, standardised numbers [K, B, D].
      mask: 1 for real private samples and 0 for padding, float [K, B].
      public_inputs: public samples, [P, ...] when all clients share them,
        [K, P, ...] when each client draws its own.
      public_indices: positions of the public samples in the public set, int32
        [P] or [K, P].
      presence: which clients train and can be reached; None where all always do.
    """

    inputs: PyTree
    labels: jax.Array
    mask: jax.Array
    public_inputs: PyTree
    public_indices: jax.Array
    presence: Presence | None = None

    @property
    def public_is_shared(self) -> bool:
        """Whether all clients have the same public samples in this step."""
        return self.public_indices.ndim == 1


@struct.dataclass
class GroupState:
    """The k clients of one architecture, stacked: every array has a leading axis of length k.

    `snapshots` are parameters and statistics of earlier steps, if the algorithm stores any: arrays
    [k, slots, ...] with snapshots of the group's clients, or [K, slots, ...] with those that each
    of all K clients stores of clients of this architecture.
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
    """The complete state of a run, which every step maps to the next.

    Attributes:
      step: number of steps taken, int32 [].
      key: the run's base key, which never changes; see `mhd_jax.core.random`.
      client_ids: the id of the client at each position of the client axis, int32 [K]. Random keys
        derive from the id, so that a client's draws do not depend on its position.
      groups: clients by architecture; `members` gives their positions.
      label_sets: the classes of each client, bool [K, C]; None if all have all. Every device has
        all rows: receivers know their senders' label sets.
      extra: further state of the algorithm (consensus estimates, teacher pools); arrays [K, ...]
        are stored on the devices of their clients.
      task: what clients learn to predict, with its losses (`mhd_jax.core.tasks`).
    """

    step: jax.Array
    key: jax.Array
    client_ids: jax.Array
    groups: tuple[GroupState, ...]
    label_sets: jax.Array | None = None
    extra: PyTree = ()
    task: Task = struct.field(pytree_node=False, default=CLASSES)

    @property
    def num_clients(self) -> int:
        """K, the length of the client axis, including clients that only pad it."""
        return self.client_ids.shape[0]


@struct.dataclass
class Metrics(Mapping[str, Any]):
    """What a step reports, also as a mapping by name. A number is of each client, [K], or of all, [].

    Attributes:
      loss: the loss of each client, [K].
      messages: counts of the messages received in this step by kind ("predictions", "weights"):
        those that i receives from j, int32 [K, K], or those between i and a server, int32 [K].
      terms: the terms of the loss, and other numbers worth a mean over steps, by name.
      non_finite: counts of messages that were not finite, and which clients therefore ignored; None
        where they are not counted.
      diagnostics: what is summed over the run, see `mhd_jax.exchange.diagnostics`; None if nothing.
    """

    loss: jax.Array
    messages: dict[str, jax.Array]
    terms: Terms = struct.field(default_factory=dict)
    non_finite: jax.Array | None = None
    diagnostics: Terms | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Metrics:
        """Returns the record of metrics given as a dictionary: all other names are terms."""
        if isinstance(given, Metrics):
            return given
        own = [field.name for field in dataclasses.fields(cls) if field.name != "terms"]
        terms = {name: value for name, value in given.items() if name not in own}
        return cls(terms=terms, **{name: given[name] for name in own if name in given})

    def numbers(self) -> Terms:
        """Returns all numbers by name, without messages and diagnostics."""
        counted = {} if self.non_finite is None else {"non_finite": self.non_finite}
        return {"loss": self.loss, **self.terms, **counted}

    def __getitem__(self, name: str) -> Any:
        return self._by_name()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name())

    def __len__(self) -> int:
        return len(self._by_name())

    def _by_name(self) -> dict[str, Any]:
        recorded = {} if self.diagnostics is None else {"diagnostics": self.diagnostics}
        return {**self.numbers(), "messages": self.messages, **recorded}


@dataclasses.dataclass(frozen=True)
class LocalSteps:
    """The two parts of `Algorithm.train_step`, if clients take steps alone between exchanges.

    Attributes:
      step: `(state, batch) -> (state, metrics)`, the part before the exchange. It depends on nothing
        but the groups, the step count and private samples, as it may be called for one client,
        without `extra` and public samples; its metrics are all numbers of `train_step`, [K].
      until_exchange: `state -> int32 []`, how many steps from this state on end in an exchange.
      exchange: `state -> (state, messages)`, the part after the last of these steps.
    """

    step: Callable[[State, Batch], tuple[State, Metrics]]
    until_exchange: Callable[[State], jax.Array]
    exchange: Callable[[State], tuple[State, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Algorithm:
    """An algorithm of decentralized learning, as pure functions that are not jitted.

    Attributes:
      init: `(key, clients, sample_batch) -> State`; raises `ConfigError` if the clients cannot
        run the algorithm (because of unequal architectures or embedding widths, for example).
      train_step: `(state, batch, adjacency [K, K]) -> (state, metrics)`; metrics are a `Metrics`, or
        a dictionary of its fields and terms, `{"loss": …, "messages": …, "my_term": …}`. Where
        clients or links fail (`mhd_jax.engine.faults`), failed edges are removed from the graph,
        and the engine restores parameters, statistics and optimizer states of clients that do not
        train; the algorithm itself must handle `extra`, and messages through a server, by
        `batch.presence`.
      predict: `(state, inputs [N, ...]) -> logits [K, N, H, C]`, in evaluation mode.
      message: `(state, batch, group) -> {kind: {type: arrays}}`, the shapes of the arrays in a
        message of each kind from a client of `group`, one of the state's groups (see
        `mhd_jax.exchange.messages`); the values of the arrays are not used.
      num_heads: H, the number of heads of each client.
      public_batch: "shared" if all clients have the same public samples in a step,
        "independent" if each draws its own, None if the algorithm needs no public set.
      undirected: whether the algorithm averages over the graph in a way that needs every edge in
        both directions.
      strongly_connected: whether every edge must lie on a directed cycle: with push-sum, clients
        that send and never receive lose their weight.
      consensus: `state -> weights [K]` of a weighted mean of the clients' parameters, a model
        which is evaluated at the end beside the clients' models; None if there is no such model.
      remembers_public: whether the algorithm stores something about each public sample, which
        must then not be augmented.
      num_snapshots: the number of earlier models that are stored by each client or of each client.
      falsifiable: whether clients may be adversaries: their messages pass through
        `mhd_jax.exchange.adversaries`, or the algorithm sends no messages.
      pooled: whether one client holds all private data (the upper bound).
      density: `(state, inputs [N, ...]) -> [K, N, H]`, logarithms of the density ratios by which
        teachers are weighted (`mhd_jax.exchange.density`), in evaluation mode; None if there are
        none.
      nesterov: whether the algorithm's paper uses Nesterov momentum, the default of
        `mhd_jax.training.optim.SGD` in its runs.
      needs_classes: the reason why the algorithm learns no numbers; empty if its losses are those of
        `State.task`, so that it learns both.
      needs_everyone: the reason why the algorithm is not sound if clients or links fail; empty if
        it is.
      local: the parts of `train_step`, if clients take several steps between exchanges, which they
        then do one client after the other where this is faster; None otherwise.
      parts: a hashable dataclass whose method is `train_step`, if runs that differ in its numbers
        (fields annotated `float` or `float | None`) may share a program: methods compute with a
        number, which may be traced, and never compare it, but with None. None if none may differ.
      name: set by the factory that made the algorithm.
      hyperparameters: set by the factory.
      factory: the factory itself, set by it.
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
    density: Callable[[State, PyTree], jax.Array] | None = None
    nesterov: bool = False
    needs_classes: str = (
        "it does not say that it can: use the losses of state.task, and declare needs_classes=''"
    )
    needs_everyone: str = ""
    local: LocalSteps | None = None
    parts: Any = None
    name: str = "unnamed"
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    factory: Callable[..., Algorithm] | None = None

    def __post_init__(self):
        if self.public_batch not in ("shared", "independent", None):
            raise ConfigError(
                f"public_batch of {self.name} must be 'shared', 'independent' or None, not "
                f"{self.public_batch!r}."
            )

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        given = textwrap.wrap(f"{self.name}({options})", 99, subsequent_indent="    ")
        return "\n".join([*given, *_source(self.factory)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def may_augment_public(self) -> bool:
        """Whether public samples may be augmented, and so differ each time they are drawn."""
        return self.public_batch is not None and not self.remembers_public


def _source(factory: Callable[..., Any] | None, most: int = 12) -> list[str]:
    """Returns the first lines of what the module of an algorithm says: its paper and its equations."""
    module = sys.modules.get(getattr(factory, "__module__", ""))
    lines = inspect.cleandoc(module.__doc__ or "").splitlines() if module is not None else []
    return (
        lines
        if len(lines) <= most
        else [*lines[:most], f"… help({factory.__module__}) has it all."]
    )
