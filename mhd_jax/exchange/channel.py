"""The channel from teachers to students: what they send, what of it is false, and what is received."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core import neighbour_devices
from mhd_jax.core.client_axis import everywhere
from mhd_jax.core.trees import all_finite, of_one_client, take_rows
from mhd_jax.core.types import Batch, GroupState, Outputs, Presence, PyTree, State
from mhd_jax.exchange.compression import Compression
from mhd_jax.exchange.messages import Message
from mhd_jax.training import projection
from mhd_jax.training.groups import output_shapes


@dataclasses.dataclass(frozen=True)
class Channel:
    """How predictions on public samples cross an edge.

    Attributes:
      compression: how logits and embeddings are coded.
      num_heads: how many of a teacher's heads are sent, from the main head on.
      embeddings: whether embeddings are sent, too.
      density: whether density ratios are sent, too, with one count for each head.
      calibrated: whether a temperature is sent for each head.
      shared_width: whether they are cut to the smallest width of all clients.
    """

    compression: Compression
    num_heads: int
    embeddings: bool
    density: bool = False
    calibrated: bool = False
    shared_width: bool = False

    def received(
        self,
        state: State,
        outputs: Outputs,
        senders: Array | None = None,
        *,
        travels: bool = False,
    ) -> Outputs:
        """Teachers' outputs as students receive them: falsified by adversaries, coded and decoded.

        Args:
          state: gives the adversaries, the label sets and the widths of embeddings.
          outputs: of all clients, [K, P, …]; or of the `senders`, [K, T, P, …].
          senders: whose outputs they are, positions int32 [K, T]; None for all clients.
          travels: whether what is sent has to reach every device (`travels_to_all`); it is all that
            crosses devices.
        """
        outputs = self._sent(state, outputs, senders)
        label_sets = state.label_sets if senders is None else take_rows(state.label_sets, senders)
        return self._arrived(state, outputs, everywhere if travels else _stay, label_sets)

    def gathered(self, state: State, received: Outputs, positions: Array) -> Outputs:
        """What each client receives from teachers, [K, T, P, …], of what all send, [K, P, …].

        Args:
          state: gives the label sets and the widths of embeddings.
          received: from `received`, where `travels_to_all` says whether it travels.
          positions: of the teachers, int32 [K, T].
        """
        if not neighbour_devices.are_chosen():
            return take_rows(received, positions)

        def travel(sent: PyTree) -> PyTree:
            return neighbour_devices.rows_of_neighbours(sent, positions)

        # What has been received is coded once more, as it is the code that crosses devices.
        return self._arrived(state, received, travel, take_rows(state.label_sets, positions))

    def after(self, state: State, outputs: Outputs, presence: Presence | None) -> State:
        """The state once `outputs` [K, P, …] have been sent: adversaries may remember theirs."""
        if "adversaries" not in state.extra:
            return state
        reachable = None if presence is None else presence.reachable
        adversaries = state.extra["adversaries"].after(outputs, reachable)
        return dataclasses.replace(state, extra={**state.extra, "adversaries": adversaries})

    def message(self, state: State, batch: Batch, group: GroupState) -> Message:
        """Shapes of what one client of a group sends; with the samples' indices, if these are its own."""

        def encoded(outputs: Outputs) -> dict[str, PyTree]:
            parts = self._parts(state, outputs)
            return {name: coding.encode(values) for name, (coding, values) in parts.items()}

        crossing = jax.eval_shape(encoded, output_shapes(group, batch))
        for name, are_sent in (("counts", self.density), ("temperatures", self.calibrated)):
            if are_sent:
                crossing[name] = jax.ShapeDtypeStruct((self.num_heads,), jnp.float32)
        if not batch.public_is_shared:
            crossing["indices"] = of_one_client(batch.public_indices)
        return crossing

    def _sent(self, state: State, outputs: Outputs, senders: Array | None) -> Outputs:
        adversaries = state.extra.get("adversaries")
        if adversaries is None:
            return outputs
        return adversaries.sent(outputs, senders)

    def _arrived(
        self,
        state: State,
        outputs: Outputs,
        travel: Callable[[PyTree], PyTree],
        label_sets: Array | None,
    ) -> Outputs:
        """Outputs once their code has travelled; `label_sets` [..., C] are of those who sent them."""
        known = {"logits": None if label_sets is None else label_sets[..., None, None, :]}
        parts = {
            name: coding.arrived(values, travel, known.get(name))
            for name, (coding, values) in self._parts(state, outputs).items()
        }
        return Outputs(parts["logits"], parts.get("embeddings"), parts.get("density"))

    def _parts(self, state: State, outputs: Outputs) -> dict[str, tuple[Compression, Array]]:
        """What is sent of outputs [..., P, H, C], [..., P, D] and [..., P, H], and each part's code."""
        parts = {"logits": (self.compression, outputs.logits[..., : self.num_heads, :])}
        if self.embeddings:
            embeddings: Array = outputs.embeddings  # type: ignore[assignment]
            if self.shared_width:
                embeddings = embeddings[..., : projection.widths(state).min()]
            parts["embeddings"] = (self.compression.for_numbers, embeddings)
        if self.density:
            density: Array = outputs.density  # type: ignore[assignment]
            parts["density"] = (self.compression.for_numbers, density[..., : self.num_heads])
        return parts


def travels_to_all(batch: Batch) -> bool:
    """Returns whether predictions on public samples that all share go to all devices at once."""
    return batch.public_is_shared and not neighbour_devices.are_chosen()


def known_finite(received: Outputs) -> Array:
    """Which clients' messages are finite, bool [K].

    If only neighbours' devices exchange: as each client sees it, [K, K], of itself and its neighbours.
    """
    finite = all_finite(received)
    if neighbour_devices.are_chosen():
        finite = neighbour_devices.seen_by_neighbours(finite)
    return finite


def _stay(sent: PyTree) -> PyTree:
    return sent
