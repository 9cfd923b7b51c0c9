"""Comparison of embeddings of different widths, by the setting `embedding_projection`.

- "none": embeddings of different widths are an error.
- "shared_width": the first D coordinates are compared, where D is the smallest width of all
  clients. Clients send only these.
- "linear": each client learns a linear map without bias from its own width to every other width,
  and compares its mapped embedding with its teacher's embedding. There is no map between equal
  widths. Maps are parameters of the client (`params["projections"]`): they are trained by its own
  loss and optimizer, and never sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from mhd_jax.core import random
from mhd_jax.core.client_axis import over_clients
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import GroupState, Outputs, Participants, PyTree, State
from mhd_jax.training import initial
from mhd_jax.training.groups import embedding_width, in_client_order, padded, take_members
from mhd_jax.training.passes import PullBack

EMBEDDING_PROJECTIONS = ("none", "linear", "shared_width")


def require_known(name: str, compares: bool) -> None:
    """Raises `ConfigError` for an unknown projection, or for one where no embeddings are compared."""
    if name not in EMBEDDING_PROJECTIONS:
        raise ConfigError(
            f"unknown embedding_projection {name!r}; choose one of "
            f"{', '.join(EMBEDDING_PROJECTIONS)}."
        )
    if name != "none" and not compares:
        raise ConfigError(
            "embedding_projection is about the embeddings' distillation, but nu_emb is 0; leave one "
            "of them out."
        )


def cut(outputs: Sequence[Outputs], width: int) -> list[Outputs]:
    """Outputs whose embeddings [..., D] are cut to [..., width]."""
    return [
        dataclasses.replace(one, embeddings=one.embeddings[..., :width])  # type: ignore[index]
        for one in outputs
    ]


def widths(state: State) -> np.ndarray:
    """Returns D, the embedding width, of each client, int [K]."""
    found = np.zeros(state.num_clients, int)
    for group in state.groups:
        found[list(group.members)] = embedding_width(group)
    return found


def require_equal_widths(state: State, why: str, instead: str) -> None:
    """Raises `ConfigError`, which lists the clients, if their embedding widths differ.

    Args:
      state: gives the widths.
      why: the beginning of the message, which says what needs one width.
      instead: what else may be done than to give the clients backbones of one width; may be empty.
    """
    if len(set(widths(state))) > 1:
        listed = "; ".join(
            f"clients {', '.join(map(str, group.members))}: {embedding_width(group)}"
            for group in state.groups
        )
        raise ConfigError(
            f"{why}, which must have one width, but they have {listed}; {instead}give the clients "
            "backbones of one embedding width."
        )


def with_projections(state: State, clients: Participants) -> State:
    """Adds maps to the parameters of a new state; if all widths are equal, there are none.

    Args:
      state: of the clients' start.
      clients: the clients, which may have arrays to start from.
    """
    targets = np.unique(widths(state))
    keys = random.client_keys(state.key, random.Purpose.PROJECTION, state.client_ids)

    def drawn(key: Array, width: int, dtype: Any) -> dict[str, Array]:
        return {
            str(target): nn.initializers.lecun_normal()(
                jax.random.fold_in(key, target), (width, target), dtype
            )
            for target in targets
            if target != width
        }

    groups = []
    for group, own in zip(state.groups, clients.groups, strict=True):
        width, dtype = embedding_width(group), group.params["heads"]["kernel"].dtype
        own_keys = take_members(keys, group.members, state.num_clients)
        maps = over_clients(lambda key, w=width, t=dtype: drawn(key, w, t))(own_keys)
        added, _ = initial.in_place({"projections": maps} if maps else {}, {}, own.start or {})
        params = {**group.params, **added}
        groups.append(dataclasses.replace(group, params=params))
    return dataclasses.replace(state, groups=tuple(groups))


def projections(state: State) -> tuple[PyTree, ...]:
    """Returns the maps of each group's clients."""
    return tuple(group.params["projections"] for group in state.groups)


def towards(
    state: State, projections: tuple[PyTree, ...], embeddings: Array, positions: Array
) -> Array:
    """Maps every client's embeddings to the widths of its teachers.

    Args:
      state: gives the widths.
      projections: the maps of each group.
      embeddings: [K, P, D], where D is the largest width; narrower ones are padded with zeros.
      positions: positions of the teachers, int32 [K, T].

    Returns:
      [K, T, P, D]; embeddings for narrower teachers are padded with zeros.
    """
    targets, target_of = np.unique(widths(state), return_inverse=True)
    views = []
    for group, maps in zip(state.groups, projections, strict=True):

        def seen(maps: PyTree, embedding: Array, group: GroupState = group) -> Array:
            own = embedding[:, : embedding_width(group)]
            each = [own @ maps[str(t)] if str(t) in maps else own for t in targets]
            return jnp.stack([padded(view, embedding.shape[-1]) for view in each])

        own = take_members(embeddings, group.members, state.num_clients)
        views.append(over_clients(seen)(maps, own))
    which = jnp.asarray(target_of)[positions]
    return over_clients(lambda views, which: views[which])(
        in_client_order(views, state.groups), which
    )


def mapped(
    state: State, outputs: Outputs, positions: Array, pull_back: PullBack
) -> tuple[Array, Callable[[Outputs, Array], Any]]:
    """Embeddings in the teachers' widths, and the pull back through the maps that brought them there.

    Args:
      state: with maps.
      outputs: the clients' own, [K, P, …].
      positions: of the teachers, int32 [K, T].
      pull_back: of gradients at `outputs`, see `mhd_jax.training.passes`.

    Returns:
      Embeddings [K, T, P, D], and a function of a loss's gradients at `outputs` and at them, which
      returns what `pull_back` does, the gradients of the maps included.
    """
    embeddings, through_maps = jax.vjp(
        lambda maps, embeddings: towards(state, maps, embeddings, positions),
        projections(state),
        outputs.embeddings,
    )

    def pull_back_all(at_outputs: Outputs, at_mapped: Array) -> Any:
        of_maps, at_embeddings = through_maps(at_mapped)
        gradients, stats, losses = pull_back(
            dataclasses.replace(at_outputs, embeddings=at_outputs.embeddings + at_embeddings)
        )
        gradients = tuple(
            {**own, "projections": maps} for own, maps in zip(gradients, of_maps, strict=True)
        )
        return gradients, stats, losses

    return embeddings, pull_back_all
