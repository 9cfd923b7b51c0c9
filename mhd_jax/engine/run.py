"""`Run`: a prepared run, with its compiled steps, its evaluation and its counts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mhd_jax.clients import Clients
from mhd_jax.core import modes, multihost
from mhd_jax.core.client_axis import Execution, everywhere, is_traced, under
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import Algorithm, Batch, LocalSteps, Metrics, Presence, PyTree, State, Terms
from mhd_jax.data.batching import BatchSpec, DeviceData, draw_batch
from mhd_jax.engine import densities, local_steps, memory, programs
from mhd_jax.engine.faults import FaultPlan, Tally
from mhd_jax.engine.origins import starting_from
from mhd_jax.engine.samples import Samples, ToEvaluate
from mhd_jax.engine.start import initial_carry
from mhd_jax.engine.steps import (
    Carry,
    answers,
    carry_shardings,
    count_correct,
    dispatch,
)
from mhd_jax.engine.stream import Block, Stream
from mhd_jax.exchange import diagnostics
from mhd_jax.exchange.messages import Messages
from mhd_jax.runs.records import jsonable
from mhd_jax.topology import distances
from mhd_jax.topology.graphs import Topology
from mhd_jax.training import groups, optim
from mhd_jax.training.metrics import beta_priv, beta_sh, head_names


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The constant parts of a run: everything that does not change during training.

    Attributes:
      algorithm, topology: the resolved algorithm and graph.
      plan: the faults; None if nothing fails.
      quarantine: whether clients that diverge are removed, instead of stopping the run.
      optimizers: the description of the optimizer of each group of clients.
      everyone: the clients as given.
      clients: the clients that train: pooled into one, or padded to fill the devices.
      num_active: how many of `clients` are not padding.
      spec: the sizes of a step's batch.
      execution: how the client axis is computed.
      client_chunk: the user's choice; None if `execution` may choose what fits.
      steps: the number of training steps.
      seed: the seed of training.
      samples: what clients train and are evaluated on, which is placed when first used.
      carry: shapes, types and shardings of everything that evolves.
      origin: what the clients start from, see `mhd_jax.engine.origins`; None if they draw all.
      settings: the settings that determine the results, for `config.json`.
    """

    algorithm: Algorithm
    topology: Topology
    plan: FaultPlan | None
    quarantine: bool
    optimizers: tuple[optim.Optimizer, ...]
    everyone: Clients
    clients: Clients
    num_active: int
    spec: BatchSpec
    execution: Execution
    client_chunk: int | None
    steps: int
    seed: int
    samples: Samples
    carry: Carry
    settings: Mapping[str, Any]
    origin: Mapping[str, Any] | None = None

    @property
    def data(self) -> DeviceData | Block:
        """The training data on the devices; of data that are streamed, the block of step 0."""
        return self.samples.data

    @property
    def stream(self) -> Stream | None:
        """The stream of training data that stay on the host; None for data on the devices."""
        return self.samples.stream

    @property
    def test(self) -> ToEvaluate:
        """The test samples."""
        return self.samples.test

    @property
    def validation(self) -> ToEvaluate | None:
        """The validation samples; None if there are none."""
        return self.samples.validation

    @modes.standard()
    def init(self, init: Any = None) -> State:
        """The clients at step 0.

        Args:
          init: what to start from, instead of parameters drawn from the seed, as for `simulate`:
            parameters group by group, for example, as `[group.params for group in state.groups]`
            lists them. Optimizers start anew.

        Raises:
          ConfigError: nothing fits the clients.
        """
        if init is None:
            return self.start().state
        clients = self.clients.first(self.num_active)
        clients, _ = starting_from(clients, init, self.carry.state.groups)
        clients = clients.padded(self.execution.num_shards)
        return dataclasses.replace(self, clients=clients).start().state

    @modes.standard()
    def batch(self, state: State) -> Batch:
        """The samples of a state's step: a pure function, which a jitted loop may call.

        Raises:
          ConfigError: the samples stay on the host, or clients fail, which is `simulate`'s to do.
        """
        _require_draws_by_hand(self.samples.on_host, self.carry.tally is not None)
        with under(self.execution):
            return draw_batch(self.data, state.key, state.client_ids, state.step, self.spec)

    @modes.standard()
    def graph(self, step: Array | int) -> Array:
        """The adjacency matrix A(t) of a step, [K, K]; clients that only fill devices have no edge."""
        with under(self.execution):
            graph = self.topology.schedule(self.topology.adjacency, jnp.asarray(step, jnp.int32))
            inactive = self.clients.num_clients - graph.shape[0]
            return jnp.pad(everywhere(graph), (0, inactive))

    @modes.standard()
    def train_step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        """One step of all clients, as `simulate` takes it: pure, and with its choice of devices.

        Args:
          state: from `init`, or from the step before.
          batch: from `batch`, or a `mhd_jax.core.types.Batch` of your own arrays.
          graph: A(t) [K, K], from `graph` or your own; A[i, j] > 0 where i may learn from j. Its
            diagonal does not count: nobody is a neighbour of its own.

        Returns:
          The next state, and the step's `mhd_jax.core.types.Metrics`.

        Raises:
          ConfigError: the batch says who is there, which is `simulate`'s to do.
        """
        if batch.presence is not None:
            raise ConfigError(
                "who is there at a step is simulate's to do, by faults or participation; leave "
                "presence out of the batch."
            )
        if self.execution.mesh is None or is_traced((state, batch, graph)):
            return self._step(state, batch, graph)
        return self._compiled_step(state, batch, graph)

    @functools.cached_property
    def _compiled_step(self) -> Callable[..., tuple[State, Metrics]]:
        return jax.jit(self._step)

    def _step(self, state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        own = dataclasses.replace(self.execution, near=None, most_neighbours=None)
        with under(own):  # a graph may be the user's own
            graph = jnp.where(jnp.eye(len(graph), dtype=bool), 0, graph)
            after, found = self.algorithm.train_step(state, batch, graph)
            if self.execution.mesh is not None:
                places = carry_shardings(self.carry, self.execution).state
                after = jax.lax.with_sharding_constraint(after, places)
            return after, Metrics.of(found)

    @modes.standard()
    def predict(self, state: State, inputs: PyTree) -> Array:
        """Logits [K, N, H, C] of all clients on samples as the data set stores them, [N, ...]."""
        with under(self.execution):
            logits = self.algorithm.predict(state, self.spec.preparation(inputs))
        return logits[: self.num_active]

    def start(self) -> Carry:
        """Returns the carry at the start of a new run: the clients, and what the engine sums up."""
        return initial_carry(
            self.algorithm,
            self.clients,
            self.data,
            self.spec,
            self.seed,
            self.execution,
            may_fail=self.plan is not None,
            quarantine=self.quarantine,
        )

    @property
    def runs(self) -> tuple[Run]:
        """The run alone, where `mhd_jax.engine.joint_runs.Together` has several."""
        return (self,)

    def join(self, carries: Sequence[Carry]) -> Carry:
        """Returns the only carry, where joint runs stack theirs."""
        (carry,) = carries
        return carry

    def split(self, tree: PyTree) -> list[PyTree]:
        """Returns `tree` as the only part, where joint runs have one each."""
        return [tree]

    def fitted(self, carry: Carry) -> Run:
        """Returns the run, with smaller chunks of clients if its compiled step would not fit."""
        return memory.fitted(self, carry)

    def advance(self, carry: Carry, num_steps: int) -> Carry:
        """Takes `num_steps` steps and returns the new carry; `carry` is donated."""
        if self.stream is None:
            return self._dispatch(carry, self.data, num_steps)
        step = int(carry.state.step)
        if num_steps == 0:
            return self._dispatch(carry, self.stream.block_at(step)[0], 0)
        end = step + num_steps
        before: Array | None = None
        while step < end:
            block, left = self.stream.block_at(step)
            taken = min(left, end - step)
            carry = self._dispatch(carry, block, taken)
            step += taken
            if before is not None:  # at most two blocks are on the device: more would fill it
                before.block_until_ready()
            before = carry.count + 0  # a copy, since the next dispatch donates the carry
        return carry

    def lower(self, carry: Carry) -> jax.stages.Lowered:
        """Returns the lowered program of `advance`, not compiled; `carry` may be shapes only."""
        data, adjacency = self.samples.data_shapes, self.topology.adjacency
        count = jnp.int32(1)
        return dispatch.lower(
            carry, data, adjacency, count, self.plan, **self.static(), local=self.local
        )

    def _dispatch(self, carry: Carry, data: DeviceData | Block, num_steps: int) -> Carry:
        adjacency, count = self.topology.adjacency, jnp.int32(num_steps)
        return dispatch(carry, data, adjacency, count, self.plan, **self.static(), local=self.local)

    @property
    def local(self) -> LocalSteps | None:
        """The steps that each client takes ahead of the next; None where all step together."""
        if self.carry.tally is not None or self.samples.on_host:
            return None
        pays_off = local_steps.pay_off(self.execution, self.carry.state)
        return self.algorithm.local if pays_off else None

    def static(self) -> dict[str, Any]:
        """Returns the static arguments of the program of `advance`."""
        return {
            "train_step": self.algorithm.train_step,
            "schedule": self.topology.schedule,
            "spec": self.spec,
            "execution": self.execution,
        }

    def means(self, carry: Carry) -> dict[str, float | None]:
        """Returns metrics as means over clients and the steps they took; None without steps."""
        sums, count, tally = multihost.fetch((carry.sums, carry.count, carry.tally))
        taken = int(count) if tally is None else float(np.mean(tally.trained[: self.num_active]))
        return {
            name: float(np.mean(np.atleast_1d(total)[: self.num_active]))
            / (taken if np.ndim(total) else int(count))
            if taken
            else None
            for name, total in sums.items()
        }

    def non_finite(self, carry: Carry) -> dict[str, int]:
        """Returns the count of non-finite messages since the last evaluation, if there is one."""
        counts = {name: n for name, n in carry.sums.items() if name == "non_finite"}
        return {
            name: int(n[: self.num_active].sum()) for name, n in multihost.fetch(counts).items()
        }

    def messages(self, carry: Carry) -> dict[str, np.ndarray]:
        """Returns counts of messages since the start, by kind.

        Counts are of messages that client i received from j, int64 [K, K], or that client i
        exchanged with a server, int64 [K].
        """
        return {
            kind: count.astype(np.int64)[(slice(self.num_active),) * count.ndim]
            for kind, count in multihost.fetch(carry.messages).items()
        }

    def diagnostics(self, carry: Carry) -> dict[str, Any]:
        """Returns diagnostics of who learned from whom, for a summary; {} if not recorded."""
        if carry.diagnostics is None:
            return {}
        sums = multihost.fetch(carry.diagnostics)
        if "followed" not in sums:
            return {}
        received = self.messages(carry)["predictions"]
        return {"diagnostics": diagnostics.means(sums, received, self.num_active)}

    def faults(self, carry: Carry) -> dict[str, Any]:
        """Returns counts of the faults that happened, for a summary; {} in runs without faults."""
        if carry.tally is None:
            return {}
        tally = jax.tree.map(lambda a: a[: self.num_active], multihost.fetch(carry.tally))
        found: dict[str, Any] = {}
        if self.plan is not None:
            found |= {
                "links_lost": int(tally.lost.sum()),
                "steps_missed": tally.missed,
                "steps_unreachable": tally.unreachable,
            }
        if self.quarantine:
            found["quarantined"] = self.quarantined(carry.tally)
        return {"faults": found}

    def quarantined(self, tally: Tally) -> dict[int, int]:
        """Returns the clients that diverged, with the step at which each did."""
        steps = multihost.fetch(tally.quarantined)[: self.num_active]
        return {int(i): int(steps[i]) for i in np.flatnonzero(steps >= 0)}

    def diverged(self, sums: Terms) -> np.ndarray:
        """Returns the numbers of the clients whose loss is not finite; of a loss of all, of all."""
        losses = multihost.fetch(sums["loss"])
        losses = np.broadcast_to(losses, (self.clients.num_clients,))[: self.num_active]
        return np.flatnonzero(~np.isfinite(losses))

    def per_class_accuracy(self, state: State, samples: ToEvaluate) -> np.ndarray:
        """Returns accuracies by class [K, H, C]; NaN for a class without samples."""
        counts = [
            count_correct(
                state,
                part,
                predict=self.algorithm.predict,
                preparation=self.spec.preparation,
                num_classes=self.clients.num_classes,
                execution=self.execution,
            )
            for part in samples.parts()
        ]
        correct, total = multihost.fetch(
            jax.tree.map(lambda first, *others: sum(others, first), *counts)
        )
        correct = correct[: self.num_active]
        return np.divide(correct, total, out=np.full(correct.shape, np.nan), where=total > 0)

    def logits(self, state: State, samples: ToEvaluate) -> np.ndarray:
        """Returns the logits of all clients on samples, [K, N, H, C], on the host."""
        return self._answers(state, samples, self.algorithm.predict)

    def density(self, state: State) -> dict[str, Any]:
        """Returns what density outputs have learned, for a summary; {} if the algorithm has none."""
        if self.algorithm.density is None:
            return {}
        clients = self.clients
        found = self._answers(state, self.test, self.algorithm.density)
        public = None
        if len(clients.public):  # else it is another data set, whose labels are not ours
            rows = clients.data.labels[clients.public]
            public = np.bincount(rows, minlength=clients.num_classes) / len(rows)
        private = clients.label_distributions * clients.learns_labels[:, None]
        own, labels = private[: self.num_active], clients.data.test_labels
        return {"density": densities.summarized(found, labels, own, public)}

    def _answers(
        self, state: State, samples: ToEvaluate, function: Callable[[State, PyTree], Array]
    ) -> np.ndarray:
        """Returns a function of inputs, [K, N, …], for all samples, on the host."""
        static = {
            "predict": function,
            "preparation": self.spec.preparation,
            "execution": self.execution,
        }
        found = []
        for part in samples.parts():
            masks = multihost.fetch(part.mask)
            for chunk, mask in enumerate(masks):
                inputs = jax.tree.map(lambda a, chunk=chunk: a[chunk], part.inputs)
                logits = multihost.fetch(answers(state, inputs, **static))
                found.append(logits[: self.num_active, mask])
        return np.concatenate(found, axis=1)

    def accuracies(self, per_class: np.ndarray) -> dict[str, Any]:
        """Returns β_sh and β_priv by head, as means over clients and for each client.

        With adversaries, "honest" holds the means over all other clients. `per_class` are
        accuracies [K, H, C].
        """
        own_labels = self.clients.label_distributions[: self.num_active]
        betas = {"beta_sh": beta_sh(per_class), "beta_priv": beta_priv(per_class, own_labels)}
        names = head_names(per_class.shape[1])
        honest = np.setdiff1d(np.arange(self.num_active), list(self.clients.adversaries))

        def means(rows: np.ndarray | slice) -> dict[str, dict[str, float | None]]:
            return {
                metric: {name: _mean(values[rows, h]) for h, name in enumerate(names)}
                for metric, values in betas.items()
            }

        each = {
            metric: {name: values[:, h] for h, name in enumerate(names)}
            for metric, values in betas.items()
        }
        return {
            **means(slice(None)),
            **({"honest": means(honest)} if self.clients.adversaries else {}),
            "per_client": jsonable(each),
        }

    def hops_to_classes(self) -> np.ndarray:
        """Returns the hops from each client to the next with data of a class, int [K, C].

        −1 stands for classes that no path leads to.
        """
        clients = self.everyone.pooled() if self.algorithm.pooled else self.everyone
        return distances.to_classes(
            distances.edges_of(self.topology, self.steps), clients.labelled_counts()
        )

    def consensus(self, state: State) -> dict[str, Any] | None:
        """Returns β_sh and β_priv of the consensus model; None if the algorithm has none."""
        if self.algorithm.consensus is None:
            return None
        weigh = self.algorithm.consensus
        consensus = _consensus(state, weigh=weigh, num_active=self.num_active)
        found = self.accuracies(self.per_class_accuracy(consensus, self.test))
        return {metric: found[metric] for metric in ("beta_sh", "beta_priv")}

    @functools.cached_property
    def programs(self) -> dict[str, str]:
        """Digests of the run's programs, see `mhd_jax.engine.programs`."""
        return programs.digests(
            self.algorithm,
            self.clients.first(self.num_active),
            self.spec,
            has_presence=self.carry.tally is not None,
            execution=self.execution,
        )

    @functools.cached_property
    def senders(self) -> dict[tuple[int, ...], Messages]:
        """Shapes of a message of each kind, by the clients of the group that sends it."""
        state = self.carry.state
        batch = batch_shapes(self.carry, self.samples.data_shapes, self.spec)
        return {
            tuple(i for i in group.members if i < self.num_active): self.algorithm.message(
                state, batch, group
            )
            for group in state.groups
        }


def _require_draws_by_hand(streams: bool, fails: bool) -> None:
    """Raises `ConfigError` where a batch is not a function of the state alone."""
    if streams:
        raise ConfigError(
            "the samples stay on the host, from which simulate streams them; set "
            "data_placement='device', or make a mhd_jax.Batch of your own arrays."
        )
    if fails:
        raise ConfigError("faults and quarantine are simulate's to do; leave them out.")


def batch_shapes(carry: Carry, data: DeviceData | Block, spec: BatchSpec) -> Batch:
    """Returns the shapes of a step's batch; `data` may be shapes only."""
    state, draw = carry.state, functools.partial(draw_batch, spec=spec)
    batch = jax.eval_shape(draw, data, state.key, state.client_ids, state.step)
    if carry.tally is None:
        return batch
    there: Any = jax.ShapeDtypeStruct((state.num_clients,), bool)
    return dataclasses.replace(batch, presence=Presence(there, there))


def _mean(values: np.ndarray) -> float | None:
    """Returns the mean of the values that are not NaN; None if all are."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


_consensus = jax.jit(groups.consensus, static_argnames=("weigh", "num_active"))
