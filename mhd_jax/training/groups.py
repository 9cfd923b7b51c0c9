"""Passes, gradients and updates of clients in groups of one architecture.

Each group is computed in one vectorized program; results of all groups are joined in client order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mhd_jax.core import label_sets, random
from mhd_jax.core.client_axis import over_clients, part_of
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import all_finite, of_one_client, take_rows, where_rows
from mhd_jax.core.types import Batch, GroupState, Outputs, Participants, PyTree, State, Terms
from mhd_jax.topology.mixing import average, average_for_all
from mhd_jax.training import initial
from mhd_jax.training.losses import pretext_cross_entropy, private_loss


def take_members(tree: PyTree, members: tuple[int, ...], num_clients: int) -> PyTree:
    """Returns the rows of a group's members, [k, ...], of arrays [K, ...] in client order."""
    if members == tuple(range(num_clients)):
        return tree
    index = np.asarray(members)
    return jax.tree.map(lambda a: a[index], tree)


def in_client_order(parts: Sequence[PyTree], groups: Sequence[GroupState]) -> PyTree:
    """Joins a tree of arrays [k, ...] per group into a tree of arrays [K, ...] in client order."""
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
    density: str | None = None,
) -> State:
    """Returns the state before the first step.

    Each client draws its own parameters, or starts from those that its group has (`start`).

    Args:
      key: the run's base key.
      clients: `mhd_jax.clients.Clients` whose groups have an optimizer.
      sample_batch: a batch, for the shape of one client's inputs.
      num_heads: H, the number of heads.
      same_start: whether all clients draw from the first client's key, and so start alike; or for
        each client the client from whose key it draws, int [K].
      starts_optimizers: whether to initialize the optimizers; an algorithm that adds parameters
        calls `start_optimizers` afterwards instead.
      density: what heads have beside logits, see `mhd_jax.models.ClientModel`.
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
        model = group.client_model(num_heads, clients.num_outputs)
        model = dataclasses.replace(model, density=density)
        members = np.asarray(group.members)
        params, stats = over_clients(model.init, in_axes=(0, None))(keys[members], sample)
        if group.start is not None:
            params, stats = initial.in_place(params, stats, group.start)
        groups.append(GroupState(params, stats, (), model, group.optimizer, group.members))
    known = jax.tree.map(jnp.asarray, clients.label_sets)
    state = State(
        jnp.zeros((), jnp.int32), key, client_ids, tuple(groups), known, task=clients.task
    )
    return start_optimizers(state) if starts_optimizers else state


def start_optimizers(state: State) -> State:
    """Returns the state with each client's optimizer initialized for its parameters."""
    groups = [
        dataclasses.replace(group, opt_state=over_clients(group.optimizer.init)(group.params))
        for group in state.groups
    ]
    return dataclasses.replace(state, groups=tuple(groups))


def require_one_architecture(
    clients: Participants, why: str, among: Sequence[int] | None = None
) -> None:
    """Raises `ConfigError` if clients differ in architecture or label set.

    Args:
      clients: all clients.
      why: the beginning of the message, which says what needs equal architectures.
      among: the clients to compare; None compares all.
    """
    found = []
    for group in clients.groups:
        members = [i for i in group.members if among is None or i in among]
        if members:
            found.append(f"clients {', '.join(map(str, members))}: {group.described}")
    if len(found) > 1:
        raise ConfigError(f"{why}, which needs one architecture, but they have {'; '.join(found)}.")
    label_sets.require_equal(clients.label_sets, why, among)


def all_params(state: State) -> tuple[PyTree, ...]:
    """Returns the parameters of each group, the argument by which losses are differentiated."""
    return tuple(group.params for group in state.groups)


def all_stats(state: State) -> tuple[PyTree, ...]:
    """Returns the normalisation statistics of each group."""
    return tuple(group.stats for group in state.groups)


def models(state: State) -> dict[str, PyTree]:
    """Returns all parameters and statistics, as algorithms keep them from the start of a round."""
    return {"params": all_params(state), "stats": all_stats(state)}


def with_start(state: State, begins: Array) -> State:
    """Returns the state in which `extra["start"]` has the models of this step if a round `begins`."""
    start = jax.tree.map(
        lambda new, old: jnp.where(begins, new, old), models(state), state.extra["start"]
    )
    return dataclasses.replace(state, extra={**state.extra, "start": start})


def forward(
    state: State,
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    inputs: PyTree,
    *,
    train: random.Purpose | None = None,
    shared_inputs: bool = False,
) -> tuple[Outputs, tuple[PyTree, ...]]:
    """Returns outputs of all clients in client order, and the updated statistics.

    Args:
      state: gives the models and, in training mode, the step's dropout keys.
      params: parameters of each group, as from `all_params`.
      stats: statistics of each group, as from `all_stats`.
      inputs: [K, N, ...], or [N, ...] with `shared_inputs`.
      train: the purpose of the dropout keys of a pass in training mode; None is evaluation mode.
      shared_inputs: whether all clients have the same samples.

    Returns:
      `Outputs` with logits [K, N, H, C] and embeddings [K, N, D] (narrower ones are padded with
      zeros), and the statistics of each group after the pass.
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


def has_modes(group: GroupState, batch: Batch) -> bool:
    """Returns whether a group's training and evaluation mode differ."""
    return group.model.has_modes(*of_one_client((group.params, group.stats, batch.inputs)))


def local_gradients(
    state: State,
    batch: Batch,
    loss: Callable[..., tuple[Array, Terms]],
    context: tuple[PyTree, ...] = (),
    is_mean: bool = False,
) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...], Terms]:
    """Returns every client's gradient of a loss on its private batch, from one pass per client.

    Args:
      state: the state of this step.
      batch: the batch of this step.
      loss: the loss of one client, `(outputs, labels [B], mask [B], label_set [C], *context) ->
        (value, terms)`; `outputs` are logits [B, H, C] and embeddings [B, D] of a pass in
        training mode, and `label_set` is None if all clients have all classes. A client with a
        pretext task uses the loss of that task instead, and has one term, "private_loss".
      context: further arguments of the loss, trees of arrays [K, ...].
      is_mean: whether the loss and its terms are means over the samples that the mask keeps, and
        `context` is empty. Then a pass may be made of several, over parts of the batch.

    Returns:
      The gradients and the statistics after the pass, of each group, and the terms, [K].
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
        ) -> tuple[PyTree, PyTree, Terms]:
            pretext = group.model.pretext
            if pretext is not None:
                inputs, labels = pretext.samples(jax.random.fold_in(key, 1), inputs)

            def value(params: PyTree) -> tuple[Array, tuple[Terms, PyTree]]:
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

        part = part_of(batch.labels.shape[1])
        splits = is_mean and part < batch.labels.shape[1] and not group.model.pretext
        if splits and not has_modes(group, batch):
            one_client = _in_parts(one_client, part)

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


def _in_parts(one_client: Callable, part: int) -> Callable:
    """Returns `one_client` of `local_gradients` computed on `part` samples after the other.

    The gradient of a mean over samples is the mean of the parts' gradients, each weighted by its
    share of the samples that the mask keeps.
    """

    def accumulated(
        params: PyTree, stats: PyTree, inputs: PyTree, labels: Array, mask: Array, *rest: Any
    ) -> tuple[PyTree, PyTree, Terms]:
        samples = jax.tree.map(lambda a: a.reshape(-1, part, *a.shape[1:]), (inputs, labels, mask))
        shares = samples[2].sum(axis=1) / jnp.maximum(mask.sum(), 1)

        found, _, terms = jax.lax.map(lambda part: one_client(params, stats, *part, *rest), samples)
        mean = functools.partial(jnp.tensordot, shares, axes=1)
        return jax.tree.map(mean, found), stats, jax.tree.map(mean, terms)

    return accumulated


def private_gradients(
    state: State, batch: Batch, label_smoothing: float, density_weight: float | None = None
) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...], Array]:
    """Returns every client's gradient of its task's loss of z^0(x) and y on its private batch.

    A client with a pretext task uses the loss of that task instead. For the weight see
    `mhd_jax.training.losses.private_loss`.

    Returns:
      The gradients and the statistics after the pass, of each group, and the losses [K].
    """

    def loss(
        outputs: Outputs, labels: Array, mask: Array, label_set: Array | None
    ) -> tuple[Array, Terms]:
        value = private_loss(
            *(outputs, labels, mask, label_set),
            label_smoothing=label_smoothing,
            density_weight=density_weight,
            task=state.task,
        )
        return value, {"private_loss": value}

    gradients, stats, terms = local_gradients(state, batch, loss, is_mean=True)
    return gradients, stats, terms["private_loss"]


def forward_teachers(
    state: State,
    params: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
    teachers: Array,
    inputs: PyTree,
) -> Outputs:
    """Returns outputs of each client's teachers on the client's own samples, in evaluation mode.

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

    def models(who: Array) -> list[PyTree]:  # of one teacher of each client, for each group
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
    """Returns outputs of one model for each client, such as a teacher's, in evaluation mode.

    Args:
      state: gives the architectures and the label sets.
      who: for each client the client whose model is used, int32 [K].
      models: for each group, parameters and statistics of K models of its architecture; only
        those in the group of `who` are used.
      inputs: [K, P, ...], or [P, ...] with `shared_inputs`.
      shared_inputs: whether all models are evaluated on the same samples.

    Returns:
      `Outputs` with logits [K, P, H, C] and embeddings [K, P, D].
    """
    group_of = np.zeros(state.num_clients, np.int32)
    for i, group in enumerate(state.groups):
        group_of[list(group.members)] = i
    known = take_rows(state.label_sets, who)
    parts = []  # outputs of every architecture for all K; the right one is picked below
    for group, (params, stats) in zip(state.groups, models, strict=True):

        def apply(
            params: PyTree, stats: PyTree, inputs: PyTree, known: Any, group: GroupState = group
        ) -> Outputs:
            return group.model.apply(params, stats, inputs, label_set=known)[0]

        axes = (0, 0, None if shared_inputs else 0, 0)
        parts.append(over_clients(apply, axes)(params, stats, inputs, known))
    return over_clients(_pick_part)(jnp.asarray(group_of)[who], *of_one_width(parts))


def _pick_part(which: Array, *parts: Outputs) -> Outputs:
    def pick(*arrays: Array) -> Array:
        dtype = jnp.result_type(*arrays)  # clients may compute in unlike types
        return jax.lax.select_n(which, *(a.astype(dtype) for a in arrays))

    return jax.tree.map(pick, *parts)


def of_one_width(outputs: Sequence[Outputs]) -> list[Outputs]:
    """Returns the outputs of each group with embeddings padded to the largest width."""
    embeddings: list[Array] = [part.embeddings for part in outputs]  # type: ignore[misc]
    width = max(a.shape[-1] for a in embeddings)
    return [
        dataclasses.replace(part, embeddings=padded(a, width))
        for part, a in zip(outputs, embeddings, strict=True)
    ]


def padded(embeddings: Array, width: int) -> Array:
    """Pads embeddings [..., D] with zeros to [..., width]."""
    missing = width - embeddings.shape[-1]
    if missing == 0:
        return embeddings
    return jnp.pad(embeddings, [(0, 0)] * (embeddings.ndim - 1) + [(0, missing)])


def embedding_width(group: GroupState) -> int:
    """Returns D, the embedding width of a group's clients."""
    return group.params["heads"]["kernel"].shape[2]


def output_shapes(group: GroupState, batch: Batch) -> Outputs:
    """Returns the shapes of a client's public outputs: logits [P, H, C], embeddings [P, D], density [P, H]."""
    kernel = group.params["heads"]["kernel"]
    _, num_heads, width, num_classes = kernel.shape
    num_samples = batch.public_indices.shape[-1]

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct((num_samples, *sizes), kernel.dtype)

    density = shape(num_heads) if "density" in group.params else None
    return Outputs(shape(num_heads, num_classes), shape(width), density)


def _updated(
    optimizer: optax.GradientTransformation, grads: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Returns one client's parameters and optimizer state after a step.

    In one function, so that accelerators update a kernel as its gradient comes, in one pass.
    """
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def apply_gradients(
    state: State, gradients: tuple[PyTree, ...], stats: tuple[PyTree, ...]
) -> State:
    """Returns the state after one optimizer step of every client, with the given statistics."""
    groups = []
    for group, grads, new_stats in zip(state.groups, gradients, stats, strict=True):
        one_client = functools.partial(_updated, group.optimizer)
        params, opt_state = over_clients(one_client)(grads, group.opt_state, group.params)
        groups.append(
            dataclasses.replace(group, params=params, stats=new_stats, opt_state=opt_state)
        )
    return dataclasses.replace(state, step=state.step + 1, groups=tuple(groups))


def keep_others(took: Array, after: State, before: State) -> State:
    """Returns the state after a step, undone for the clients that do not take the step.

    Their parameters, statistics and optimizer states are restored; snapshots are not.

    Args:
      took: which clients take the step, bool [K].
      after: the state after the step of all clients.
      before: the state before it.
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
    """Returns which clients' parameters and statistics are all finite, bool [K]."""
    parts = [all_finite((group.params, group.stats)) for group in state.groups]
    return in_client_order(parts, state.groups)


def predict(state: State, inputs: PyTree) -> Array:
    """Returns logits [K, N, H, C] of all clients on inputs [N, ...], in evaluation mode."""
    outputs, _ = forward(state, all_params(state), all_stats(state), inputs, shared_inputs=True)
    return outputs.logits


def predict_density(state: State, inputs: PyTree) -> Array:
    """Returns density ratios' logarithms [K, N, H] on inputs [N, ...], in evaluation mode."""
    outputs, _ = forward(state, all_params(state), all_stats(state), inputs, shared_inputs=True)
    return outputs.density  # type: ignore[return-value]


def averaged(state: State, weights: Array, among: Array | None = None) -> State:
    """Replaces the parameters and statistics θ_i of every client by Σ_j W[i, j] θ_j.

    Optimizer states do not change.

    Args:
      state: the state before averaging.
      weights: W, row-stochastic [K, K]; 0 between clients of different groups.
      among: which clients take part, bool [K]. W must give the others no weight; they keep their
        parameters, which need not be finite. None is all clients.
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
    """Replaces every client's model by the consensus model, a mean of the active clients' models.

    Args:
      state: a state of one architecture.
      weigh: returns the clients' weights in the mean, see `Algorithm.consensus`.
      num_active: the number of active clients; later ones only pad the client axis.
    """
    (group,) = state.groups
    weights = jnp.where(jnp.arange(state.num_clients) < num_active, weigh(state), 0)
    params, stats = average_for_all((group.params, group.stats), weights / weights.sum())
    return dataclasses.replace(
        state, groups=(dataclasses.replace(group, params=params, stats=stats),)
    )
