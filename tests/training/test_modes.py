"""Training and evaluation mode: what is compared is of one mode, so that identities hold for every model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.core import random
from mhd_jax.core.random import Purpose
from mhd_jax.core.types import Presence
from tests.builders import (
    assert_trees_close,
    assert_trees_equal,
    of_client,
    short,
    take_steps,
    tiny_batch,
    tiny_clients,
    tiny_dataset,
)

K = 3
COMPLETE = 1 - jnp.eye(K)
A = mhd.algorithms


class Net(nn.Module):
    """With batch normalisation, dropout, both or neither."""

    batch_norm: bool = False
    dropout: bool = False
    scale: float = 1.0  # in evaluation mode

    @nn.compact
    def __call__(self, x, train: bool = False):
        h = nn.Dense(6)(x)
        if self.batch_norm:
            h = nn.BatchNorm(use_running_average=not train, momentum=0.5)(h)
        if self.dropout:
            h = nn.Dropout(0.5, deterministic=not train)(h)
        return nn.relu(h) * (1.0 if train else self.scale)


NETS = {
    "plain": Net(),
    "batch statistics": Net(batch_norm=True),
    "dropout": Net(dropout=True),
    "both": Net(batch_norm=True, dropout=True),
    "scaled": Net(scale=0.5),
}
nets = pytest.mark.parametrize("net", short(list(NETS), "both", "scaled"))


def params(state):
    return [(group.params, group.stats) for group in state.groups]


@pytest.mark.slow
@nets
def test_distributed_distillation_on_an_empty_graph_is_training_alone(net):
    """With R_t = R every estimate is the client's own decision, and nothing pulls."""
    who = mhd.make_clients(tiny_dataset(100), K, NETS[net], partition="iid", public_fraction=0.2)
    how = {
        "steps": 5,
        "eval_every": 5,
        "batch_size": 6,
        "public_batch_size": who.num_public,
        "optimizer": mhd.optim.SGD(0.1, weight_decay=0.0),
    }
    together = mhd.simulate(
        "empty", who, A.distributed_distillation(10.0, label_smoothing=0.0), **how
    )
    alone = mhd.simulate("empty", who, A.isolated(label_smoothing=0.0), **how)
    assert together.history[-1]["train"]["public_loss"] < 1e-12
    assert_trees_close(params(together.state), params(alone.state), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@nets
def test_fedmd_of_one_client_has_nothing_to_digest(net):
    algorithm, graph = A.fedmd(digest_steps=1, revisit_steps=1), jnp.zeros((1, 1))
    clients = tiny_clients(1, model=NETS[net])
    _, metrics = take_steps(algorithm, clients, graph, [tiny_batch(1)] * 3)
    losses = [float(found["loss"][0]) for found in metrics]
    # Digests, whose consensus is what the client says, and a revisit between them.
    assert losses[0] == losses[2] == 0 < losses[1]


@pytest.mark.slow
@nets
def test_a_pool_renewed_at_every_step_is_fresh_teachers(net):
    """Its only snapshot is a random neighbour as it is: the draw that is made without a pool."""
    shared = net != "plain"
    members = [(0, 1, 2)] if shared else [(0, 2), (1,)]
    clients = tiny_clients(K, groups=[(NETS[net], those) for those in members])
    batches = [tiny_batch(K, seed=step, shared=shared) for step in range(4)]
    settings = {"public_batch": "shared" if shared else "independent"}
    (fresh, one), (pooled, other) = (
        take_steps(A.mhd(**settings, **pool), clients, COMPLETE, batches)
        for pool in ({}, {"pool_size": 1, "pool_refresh": 1})
    )
    assert_trees_close(params(fresh[-1]), params(pooled[-1]), rtol=1e-4, atol=1e-5)
    assert_trees_equal([m["messages"] for m in one], [m["messages"] for m in other])


@nets
@pytest.mark.parametrize("updates", short([True, False], True))
def test_a_step_equals_a_loop_over_clients(net, updates):
    """Students of training mode with keys of their own, teachers of evaluation mode: a loop in JAX."""
    algorithm = A.mhd(
        num_targets="all",
        target_selection="mean",
        nu_emb=0.0,
        label_smoothing=0.0,
        public_updates_stats=updates,
    )
    batches = [tiny_batch(K, seed=step) for step in range(2)]
    states, _ = take_steps(algorithm, tiny_clients(K, model=NETS[net]), COMPLETE, batches)
    for before, batch, after in zip(states[:-1], batches, states[1:], strict=True):
        found = [params_and_stats(after, i) for i in range(K)]
        assert_trees_close(found, loop(before, batch, updates), rtol=1e-4, atol=1e-5)


def params_and_stats(state, i):
    return of_client(state, i), of_client(state, i, "stats")


def loop(state, batch, updates):
    """Parameters and statistics of each client after a step of plain SGD."""
    (group,) = state.groups
    apply = group.model.apply
    own = [params_and_stats(state, i) for i in range(K)]
    told = [apply(*model, batch.public_inputs)[0].logits for model in own]
    targets = jnp.stack([jax.nn.softmax(z[:, :-1]) for z in told]).mean(axis=0)
    private_keys, public_keys = (
        random.client_keys(state.key, purpose, jnp.arange(K), state.step)
        for purpose in (Purpose.DROPOUT, Purpose.PUBLIC_DROPOUT)
    )

    def one(i):
        theta, stats = own[i]

        def loss(theta):
            outputs, once = apply(theta, stats, batch.inputs[i], private_keys[i])
            each = optax.softmax_cross_entropy_with_integer_labels(
                outputs.logits[:, 0], batch.labels[i]
            )
            total = (each * batch.mask[i]).sum() / batch.mask[i].sum()
            here = jax.lax.stop_gradient(once) if updates else stats
            public, twice = apply(theta, here, batch.public_inputs, public_keys[i])
            learned = optax.softmax_cross_entropy(public.logits[:, 1:], targets)
            return total + 0.3 * learned.mean(axis=0).sum(), twice if updates else once

        gradient, updated = jax.grad(loss, has_aux=True)(theta)
        return jax.tree.map(lambda p, g: p - 0.1 * g, theta, gradient), updated

    return [one(i) for i in range(K)]


def with_presence(trains, reachable, seed=0):
    presence = Presence(jnp.asarray(trains), jnp.asarray(reachable))
    return tiny_batch(K, seed=seed).replace(presence=presence)


@pytest.mark.slow
def test_who_is_away_keeps_its_pool_hears_nobody_and_is_charged_nothing():
    """Client 0 comes at step 2 and is away again at step 4; client 1 trains off-line at step 3."""
    algorithm = A.mhd(pool_size=2, pool_refresh=2, num_targets="all")
    away = {0: [0], 1: [0], 2: [], 3: [1], 4: [0], 5: []}
    batches = []
    for step, who in away.items():
        reachable = [i not in who for i in range(K)]
        trains = [i not in who or (step, i) == (3, 1) for i in range(K)]
        batches.append(with_presence(trains, reachable, seed=step))
    state = algorithm.init(jax.random.key(0), tiny_clients(K), batches[0])
    train_step = jax.jit(algorithm.train_step)
    for step, batch in enumerate(batches):
        there = np.asarray(batch.presence.trains & batch.presence.reachable)
        graph = COMPLETE * there[:, None] * np.asarray(batch.presence.reachable)[None]
        before = state
        state, metrics = train_step(state, batch, graph)
        pools = [np.asarray(s.extra["pool"]) for s in (before, state)]
        messages = np.asarray(metrics["messages"]["predictions"])
        for i in range(K):
            if there[i]:
                assert (pools[1][i] >= 0).all() and messages[i].sum() == 2
                assert not messages[i, i]
                changed = (pools[0][i] != pools[1][i]).sum()
                assert changed <= (2 if (pools[0][i] == -1).all() else 1)
            else:
                assert messages[i].sum() == 0
                np.testing.assert_array_equal(pools[0][i], pools[1][i])
                assert_trees_equal(*(of_client(s, i, "snapshots") for s in (before, state)))
        if step == 1:
            assert (pools[1][0] == -1).all()  # it has never been there
        if step == 2:
            assert sorted(pools[1][0]) == [1, 2]  # filled at once, though no slot of others is due


def test_a_slot_is_renewed_only_when_its_client_is_there():
    """And holds until then what its teacher was, whatever has become of that one."""
    algorithm = A.mhd(pool_size=1, pool_refresh=1)
    batch = with_presence([True] * K, [True] * K)
    (*_, state), _ = take_steps(algorithm, tiny_clients(K), COMPLETE, [batch])
    first = of_client(state, 0, "snapshots")
    without, alone = [False, True, True], COMPLETE.at[0].set(0).at[:, 0].set(0)
    batches = [with_presence(without, without)] * 3
    (*_, state), _ = take_steps(algorithm, None, alone, batches, state)
    assert_trees_equal(of_client(state, 0, "snapshots"), first)
    theirs, kept = (
        params["heads"]["kernel"] for params, _ in (of_client(state, 1, "snapshots"), first)
    )
    assert not np.allclose(theirs, kept)


class Half(nn.Module):
    """With parameters, and so an embedding, in bfloat16."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(6, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)(x)


def test_teachers_may_compute_in_other_types_on_a_students_own_samples():
    """Each student's teacher is evaluated in all architectures, of which one is picked."""
    clients = tiny_clients(K, groups=[(Net(), (0, 2)), (Half(), (1,))])
    assert clients.groups[1].backbone == Half()
    algorithm = A.mhd(num_aux_heads=1, public_batch="independent", nu_emb=0.0)
    batch = tiny_batch(K, shared=False)
    states, (metrics,) = take_steps(algorithm, clients, COMPLETE, [batch])
    assert np.isfinite(metrics["aux_loss"]).all()
    assert jax.tree.leaves(states[-1].groups[1].params["backbone"])[0].dtype == jnp.bfloat16
