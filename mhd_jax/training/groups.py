"""Groups of clients: those of one architecture compute together, and all meet in client order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mhd_jax.core import label_sets, random
from mhd_jax.core.client_axis import over_clients
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import all_finite, take_rows, where_rows
from mhd_jax.core.types import Batch, GroupState, Metrics, Outputs, Participants, PyTree, State
from mhd_jax.topology.mixing import average
from mhd_jax.training.losses import pretext_cross_entropy, private_cross_entropy


def take_members(tree: PyTree, members: tuple[int, ...], num_clients: int) -> PyTree:
    """Rows of a group's members of arrays [K, ...] in client order."""
    if members == tuple(range(num_clients)):
        return tree
    index = np.asarray(members)
    return jax.tree.map(lambda a: a[index], tree)


def in_client_order(parts: Sequence[PyTree], groups: Sequence[GroupState]) -> PyTree:
    """Joins per-group trees of arrays [k, ...] into one of arrays [K, ...] in client order."""
    members = [position for group in groups for position in group.members]
    if members == list(range(len(members))) and len(parts) == 1:
        return parts[0]
    order = np.argsort(members)
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[order], *parts)


def init_state(
    key: Array,
    clients: Participants,
    sample_batch: Batch,
    num_heads: int,
    same_start: bool | np.ndarray = False,
    starts_optimizers: bool = True,
) -> State:
    """Fresh clients: each draws its own parameters from its own key.

    Args:
      key: the run's base key.
      clients: `mhd_jax.clients.Clients` whose groups have an optimizer.
      sample_batch: a batch, for the shape of one client's inputs.
      num_heads: H.
      same_start: whether all draw from the first client's key instead, or whose key each draws
        from, int [K].
      starts_optimizers: whether to; who adds parameters does so after that, by `start_optimizers`.
    """
    client_ids = jnp.arange(clients.num_clients, dtype=jnp.int32)
    if isinstance(same_start, bool):
        drawn = jnp.zeros_like(client_ids) if same_start else client_ids
    else:
        drawn = jnp.asarray(same_start, jnp.int32)
    keys = random.client_keys(key, random.Purpose.INIT, drawn)
    sample = jax.tree.map(lambda a: a[0], sample_batch.inputs)
    groups = []
    for group in clients.groups:
        model = group.client_model(num_heads, clients.num_classes)
        members = np.asarray(group.members)
        params, stats = over_clients(model.init, in_axes=(0, None))(keys[members], sample)
        groups.append(GroupState(params, stats, (), model, group.optimizer, group.members))
    known = jax.tree.map(jnp.asarray, clients.label_sets)
    state = State(jnp.zeros((), jnp.int32), key, client_ids, tuple(groups), label_sets=known)
    return start_optimizers(state) if starts_optimizers else state


def start_optimizers(state: State) -> State:
    """The same clients, each with its optimizer's first state."""
    groups = [
        dataclasses.replace(group, opt_state=over_clients(group.optimizer.init)(group.params))
        for group in state.groups
    ]
    return dataclasses.replace(state, groups=tuple(groups))


def require_one_architecture(
    clients: Participants, why: str, among: Sequence[int] | None = None
) -> None:
    """Raises `ConfigError` where clients, all or `among` some, differ in architecture or label set."""
    found = []
    for group in clients.groups:
        members = [i for i in group.members if among is None or i in among]
        if members:
            found.append(f"clients {', '.join(map(str, members))}: {group.described}")
    if len(found) > 1:
        raise ConfigError(f"{why}, which needs one architecture, but they have {'; '.join(found)}.")
    label_sets.require_equal(clients.label_sets, why, among)


def all_params(state: State) -> tuple[PyTree, ...]:
    """Parameters group by group, the argument to differentiate by."""
    return tuple(group.params for group in state.groups)


def all_stats(state: State) -> tuple[PyTree, ...]:
    """Normalisation statistics group by group."""
    return tuple(group.stats for group in state.groups)


def forward(
    state: State,
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    inputs: PyTree,
    *,
    train: random.Purpose | None = None,
    shared_inputs: bool = False,
) -> tuple[Outputs, tuple[PyTree, ...]]:
    """Outputs of all clients in client order.

    Args:
      state: gives the models and, in training mode, the step's dropout keys.
      params: group by group, as `all_params` lists them.
      stats: group by group, as `all_stats` lists them.
      inputs: [K, N, ...], or [N, ...] with `shared_inputs`.
      train: which dropout keys a pass in training mode draws; None is evaluation mode.
      shared_inputs: whether all clients see the same samples.

    Returns:
      `Outputs` with logits [K, N, H, C] and embeddings [K, N, D] (narrower ones end in
      zeros), and the groups' statistics after the pass.
    """
    keys = None
    if train is not None:
        keys = random.client_keys(state.key, train, state.client_ids, state.step)
    in_axes = (0, 0, None if shared_inputs else 0, None if keys is None else 0, 0)
    outputs, new_stats = [], []
    for group, group_params, group_stats in zip(state.groups, params, stats, strict=True):

        def members(tree: PyTree, group: GroupState = group) -> PyTree:
            return take_members(tree, group.members, state.num_clients)

        group_outputs, updated = over_clients(group.model.apply, in_axes)(
            group_params,
            group_stats,
            inputs if shared_inputs else members(inputs),
            keys if keys is None else members(keys),
            members(state.label_sets),
        )
        outputs.append(group_outputs)
        new_stats.append(updated)
    return in_client_order(of_one_width(outputs), state.groups), tuple(new_stats)


def local_gradients(
    state: State,
    batch: Batch,
    loss: Callable[..., tuple[Array, Metrics]],
    context: tuple[PyTree, ...] = (),
) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...], Metrics]:
    """Every client's gradient of a loss on its private batch, in one pass for each client.

    Args:
      state, batch: of this step.
      loss: of one client, `(outputs, labels [B], mask [B], label_set [C], *context) -> (value,
        terms)`; `outputs` hold logits [B, H, C] and embeddings [B, D], from a pass in training
        mode, and `label_set` is None where all know all classes.
        A client with a pretext task has that task's loss instead, and one term, "private_loss".
      context: what else it needs, arrays [K, ...].

    Returns:
      Gradients and statistics after the pass, group by group, and the terms [K].
    """
    keys = random.client_keys(state.key, random.Purpose.DROPOUT, state.client_ids, state.step)
    gradients, new_stats, terms = [], [], []
    for group in state.groups:

        def one_client(
            params: PyTree,
            stats: PyTree,
            inputs: PyTree,
            labels: Array,
            mask: Array,
            key: Array,
            label_set: Array | None,
            *context: PyTree,
            group: GroupState = group,
        ) -> tuple[PyTree, PyTree, Metrics]:
            pretext = group.model.pretext
            if pretext is not None:
                inputs, labels = pretext.samples(jax.random.fold_in(key, 1), inputs)

            def value(params: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
                outputs, updated = group.model.apply(params, stats, inputs, key, label_set)
                if pretext is None:
                    total, parts = loss(outputs, labels, mask, label_set, *context)
                else:
                    head_outputs: Any = pretext.head.apply(
                        {"params": params["pretext"]}, outputs.embeddings
                    )
                    total = pretext_cross_entropy(pretext.logits(head_outputs), labels)
                    parts = {"private_loss": total}
                return total, (parts, updated)

            gradient, (parts, updated) = jax.grad(value, has_aux=True)(params)
            return gradient, updated, parts

        own = take_members(
            (batch.inputs, batch.labels, batch.mask, keys, state.label_sets, *context),
            group.members,
            state.num_clients,
        )
        gradient, updated, parts = over_clients(one_client)(group.params, group.stats, *own)
        gradients.append(gradient)
        new_stats.append(updated)
        terms.append(parts)
    return tuple(gradients), tuple(new_stats), in_client_order(terms, state.groups)


def private_gradients(
    state: State, batch: Batch, label_smoothing: float
) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...], Array]:
    """Every client's gradient of CE(z^0(x), y), or of its pretext task, on its private batch.

    Returns:
      Gradients and statistics after the pass, group by group, and the losses [K].
    """

    def loss(
        outputs: Outputs, labels: Array, mask: Array, label_set: Array | None
    ) -> tuple[Array, Metrics]:
        value = private_cross_entropy(
            outputs.logits[:, 0], labels, mask, label_smoothing, label_set
        )
        return value, {"private_loss": value}

    gradients, stats, terms = local_gradients(state, batch, loss)
    return gradients, stats, terms["private_loss"]


def forward_teachers(
    state: State,
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    teachers: Array,
    inputs: PyTree,
) -> Outputs:
    """Outputs of each client's teachers on the client's own samples, in evaluation mode.

    Args:
      state, params, stats: as for `forward`.
      teachers: positions of the teachers, int32 [K, T].
      inputs: [K, P, ...].

    Returns:
      `Outputs` with logits [K, T, P, H, C] and embeddings [K, T, P, D].
    """
    row_of = np.zeros(state.num_clients, np.int32)
    for group in state.groups:
        row_of[list(group.members)] = np.arange(len(group.members))

    def models(who: Array) -> list[PyTree]:  # one teacher's of each client, group by group
        rows = jnp.asarray(row_of)[who]
        return [
            take_rows((group_params, group_stats), jnp.minimum(rows, len(group.members) - 1))
            for group, group_params, group_stats in zip(state.groups, params, stats, strict=True)
        ]

    def one_of_each(who: Array) -> Outputs:
        return outputs_of_models(state, who, models(who), inputs)

    outputs = jax.lax.map(one_of_each, teachers.T)  # one teacher at a time bounds the memory
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), outputs)


def outputs_of_models(
    state: State,
    who: Array,
    models: Sequence[PyTree],
    inputs: PyTree,
    *,
    shared_inputs: bool = False,
) -> Outputs:
    """Outputs of a model for each client, which may be another client's, in evaluation mode.

    Args:
      state: gives the architectures and the label sets.
      who: whose model it is, int32 [K].
      models: for each group parameters and statistics of K models of its architecture; those of
        `who`'s own group count.
      inputs: [K, P, ...], or [P, ...] with `shared_inputs`.

    Returns:
      `Outputs` with logits [K, P, H, C] and embeddings [K, P, D].
    """
    group_of = np.zeros(state.num_clients, np.int32)
    for i, group in enumerate(state.groups):
        group_of[list(group.members)] = i
    known = take_rows(state.label_sets, who)
    parts = []  # every group's answer for all K; the model's own group is picked below
    for group, (params, stats) in zip(state.groups, models, strict=True):

        def apply(
            params: PyTree, stats: PyTree, inputs: PyTree, known: Any, group: GroupState = group
        ) -> Outputs:
            return group.model.apply(params, stats, inputs, label_set=known)[0]

        axes = (0, 0, None if shared_inputs else 0, 0)
        parts.append(over_clients(apply, axes)(params, stats, inputs, known))
    return over_clients(_pick_part)(jnp.asarray(group_of)[who], *of_one_width(parts))


def _pick_part(which: Array, *parts: Outputs) -> Outputs:
    return jax.tree.map(lambda *arrays: jax.lax.select_n(which, *arrays), *parts)


def of_one_width(outputs: Sequence[Outputs]) -> list[Outputs]:
    """Groups' outputs with embeddings as wide as the widest."""
    embeddings: list[Array] = [part.embeddings for part in outputs]  # type: ignore[misc]
    width = max(a.shape[-1] for a in embeddings)
    return [
        dataclasses.replace(part, embeddings=padded(a, width))
        for part, a in zip(outputs, embeddings, strict=True)
    ]


def padded(embeddings: Array, width: int) -> Array:
    """Embeddings [..., D] that end in zeros, [..., width]."""
    missing = width - embeddings.shape[-1]
    if missing == 0:
        return embeddings
    return jnp.pad(embeddings, [(0, 0)] * (embeddings.ndim - 1) + [(0, missing)])


def embedding_width(group: GroupState) -> int:
    """D of a group's clients."""
    return group.params["heads"]["kernel"].shape[2]


def output_shapes(group: GroupState, batch: Batch) -> Outputs:
    """Shapes of the outputs of a client of a group on a public batch: logits [P, H, C], embeddings [P, D]."""
    kernel = group.params["heads"]["kernel"]
    _, num_heads, width, num_classes = kernel.shape
    num_samples = batch.public_indices.shape[-1]

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct((num_samples, *sizes), kernel.dtype)

    return Outputs(shape(num_heads, num_classes), shape(width))


def apply_gradients(
    state: State, gradients: tuple[PyTree, ...], stats: tuple[PyTree, ...]
) -> State:
    """One optimizer step of every client, each with its own optimizer state."""
    groups = []
    for group, grads, new_stats in zip(state.groups, gradients, stats, strict=True):
        updates, opt_state = over_clients(group.optimizer.update)(
            grads, group.opt_state, group.params
        )
        params = optax.apply_updates(group.params, updates)
        groups.append(
            dataclasses.replace(group, params=params, stats=new_stats, opt_state=opt_state)
        )
    return dataclasses.replace(state, step=state.step + 1, groups=tuple(groups))


def keep_others(took: Array, after: State, before: State) -> State:
    """The state after a step, in which the groups of those who did not take it are as before.

    Snapshots are of what clients were, and stay.

    Args:
      took: who did, bool [K].
      after, before: the step.
    """
    groups = []
    for new, old in zip(after.groups, before.groups, strict=True):
        own = take_members(took, new.members, after.num_clients)
        kept = where_rows(
            own, (new.params, new.stats, new.opt_state), (old.params, old.stats, old.opt_state)
        )
        params, stats, opt_state = kept
        groups.append(dataclasses.replace(new, params=params, stats=stats, opt_state=opt_state))
    return dataclasses.replace(after, groups=tuple(groups))


def finite_params(state: State) -> Array:
    """Whose parameters and statistics are all finite, bool [K]."""
    parts = [all_finite((group.params, group.stats)) for group in state.groups]
    return in_client_order(parts, state.groups)


def predict(state: State, inputs: PyTree) -> Array:
    """Logits [K, N, H, C] of all clients on the same inputs [N, ...], in evaluation mode."""
    outputs, _ = forward(state, all_params(state), all_stats(state), inputs, shared_inputs=True)
    return outputs.logits


def averaged(state: State, weights: Array, among: Array | None = None) -> State:
    """Every client's parameters and statistics as Σ_j W[i, j] of the clients'; optimizers stay.

    Args:
      state: before.
      weights: W, row-stochastic [K, K]; 0 between clients of different groups.
      among: who takes part, bool [K], and has no weight for the others, who may hold anything and
        keep it; None takes all.
    """
    groups = []
    for group in state.groups:
        own = group.params, group.stats
        within = weights[np.ix_(group.members, group.members)]
        if among is None:
            params, stats = average(own, within)
        else:
            here = take_members(among, group.members, state.num_clients)
            sent = where_rows(here, own, jax.tree.map(jnp.zeros_like, own))
            params, stats = where_rows(here, average(sent, within), own)
        groups.append(dataclasses.replace(group, params=params, stats=stats))
    return dataclasses.replace(state, groups=tuple(groups))


def consensus(state: State, weigh: Callable[[State], Array], num_active: int) -> State:
    """The consensus model in every client's place: a mean of the first `num_active` clients' own.

    Args:
      state: of one architecture.
      weigh: what weight each has in it, see `Algorithm.consensus`.
      num_active: how many clients are real; the others only fill devices.
    """
    weights = jnp.where(jnp.arange(state.num_clients) < num_active, weigh(state), 0)
    return averaged(state, jnp.broadcast_to(weights / weights.sum(), (state.num_clients,) * 2))
