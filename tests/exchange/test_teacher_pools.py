"""Delayed teachers: pools of snapshots, and neighbours as they were some steps ago."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import mhd_jax as mhd
from mhd_jax.core import random
from tests.builders import (
    Linear,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    short,
    take_steps,
    tiny_batch,
    tiny_clients,
    with_params,
)

K = 4
COMPLETE = 1 - jnp.eye(K)
RING = mhd.topology.ring(K).at(0)
GROUPS = {
    "one group": [(Linear(), (0, 1, 2, 3))],
    "two groups": [(Linear(), (0, 3)), (Linear(), (1, 2))],
}


def run(algorithm, graph, steps, kind="one group"):
    """All states of a run, the first included, its batches, and the metrics."""
    batches = [tiny_batch(K, seed=step) for step in range(steps)]
    states, metrics = take_steps(algorithm, tiny_clients(K, groups=GROUPS[kind]), graph, batches)
    return states, batches, metrics


def reference_step(states, i, batch, teachers, nu_aux, nu_emb):
    """One client's step of plain SGD, whose teachers are (client, step of the snapshot)."""
    own = of_client(states[-1], i)
    they = tuple(of_client(states[when], j) for j, when in teachers)
    private = batch.inputs[i], batch.labels[i], batch.mask[i]
    model = states[0].groups[0].model  # of all
    return _reference_step(model, own, they, private, batch.public_inputs, nu_aux, nu_emb)


@functools.partial(jax.jit, static_argnums=0)
def _reference_step(model, own, teachers, private, public_inputs, nu_aux, nu_emb):
    said = [model.apply(params, {}, public_inputs)[0] for params in teachers]
    mine = model.apply(own, {}, public_inputs)[0]
    candidates = jnp.stack([jax.nn.softmax(z.logits[:, :-1]) for z in (*said, mine)])
    best = candidates.max(axis=-1).argmax(axis=0)
    targets = jnp.take_along_axis(candidates, best[None, ..., None], axis=0)[0]

    def unit(e):
        return e / jnp.sqrt((e**2).sum(axis=-1, keepdims=True) + 1e-6)

    def loss(params):
        inputs, labels, mask = private
        logits = model.apply(params, {}, inputs)[0].logits[:, 0]
        smooth = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
        total = (optax.softmax_cross_entropy(logits, smooth) * mask).sum() / mask.sum()
        public = model.apply(params, {}, public_inputs)[0]
        learned = optax.softmax_cross_entropy(public.logits[:, 1:], targets)
        total += nu_aux * learned.mean(axis=0).sum()
        for other in said:
            gap = ((unit(public.embeddings) - unit(other.embeddings)) ** 2).sum(axis=-1).mean()
            total += nu_emb * gap / len(said)
        return total

    return jax.tree.map(lambda p, g: p - 0.1 * g, own, jax.grad(loss)(own))


def test_a_pool_equals_a_loop_that_keeps_every_state():
    """Who is in which pool since when is followed by hand, from the pools that the run reports."""
    size, every = 2, 2
    algorithm = mhd.algorithms.mhd(pool_size=size, pool_refresh=every, nu_emb=0.2)
    states, batches, metrics = run(algorithm, RING, 5, "two groups")
    taken = [[0] * size for _ in range(K)]  # the step of each snapshot in i's pool
    pool = np.full((K, size), -1)
    slots = []
    for step, batch in enumerate(batches):
        now = np.asarray(states[step + 1].extra["pool"])
        changed = now != pool
        if step % every:
            assert not changed.any()
        elif step:
            purpose = random.Purpose.POOL_SLOT
            keys = random.client_keys(states[0].key, purpose, jnp.arange(K), step)
            slots.append([int(jax.random.randint(key, (), 0, size)) for key in keys])
            for i in range(K):  # each its own
                assert not np.delete(changed[i], slots[-1][i]).any()
                taken[i][slots[-1][i]] = step
        pool = now
        for i in range(K):
            assert all(RING[i, j] for j in pool[i])
            # The one place that was drawn has the teacher that the messages tell of; where both
            # places hold that client, either may be meant.
            (teacher,) = np.flatnonzero(metrics[step]["messages"]["predictions"][i])
            found, _ = ravel_pytree(of_client(states[step + 1], i))
            gaps = []
            for slot in np.flatnonzero(pool[i] == teacher):
                teachers = [(teacher, taken[i][slot])]
                expected = reference_step(states[: step + 1], i, batch, teachers, 0.3, 0.2)
                gaps.append(abs(found - ravel_pytree(expected)[0]).max())
            assert min(gaps) < 2e-5
    assert len(slots) == 2 and any(len(set(step)) > 1 for step in slots)


@pytest.mark.parametrize("delay", short([1, 3], 3))
def test_teachers_of_some_steps_ago(delay):
    algorithm = mhd.algorithms.mhd(teacher_delay=delay, num_targets="all", nu_emb=0.2)
    states, batches, _ = run(algorithm, RING, 5)
    for step, batch in enumerate(batches):
        for i in range(K):
            teachers = [(int(j), max(step - delay, 0)) for j in np.flatnonzero(RING[i])]
            expected = reference_step(states[: step + 1], i, batch, teachers, 0.3, 0.2)
            found = of_client(states[step + 1], i)
            assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)


def test_pools_hold_different_neighbours_at_first_and_random_ones_later():
    algorithm = mhd.algorithms.mhd(pool_size=3, pool_refresh=1)
    states, _, _ = run(algorithm, COMPLETE, 30)
    history = np.stack([state.extra["pool"] for state in states[1:]])
    for i in range(K):
        assert sorted(history[0, i]) == sorted(set(range(K)) - {i})
        assert set(history[10:, i].flat) == set(range(K)) - {i}


def test_nobody_is_in_the_pool_of_who_has_no_neighbour():
    graph = COMPLETE.at[2].set(0)
    states, _, metrics = run(mhd.algorithms.mhd(pool_size=2, pool_refresh=1), graph, 2)
    assert (np.asarray(states[-1].extra["pool"][2]) == -1).all()
    assert metrics[-1]["messages"]["predictions"][2].sum() == 0 and metrics[-1]["emb_loss"][2] == 0


def test_a_client_that_is_not_finite_gets_into_no_pool():
    algorithm = mhd.algorithms.mhd(pool_size=3, pool_refresh=1)
    state = algorithm.init(jax.random.key(0), tiny_clients(K), tiny_batch(K))
    poisoned = with_params(state, lambda a: a.at[1].set(jnp.nan))
    after, metrics = jax.jit(algorithm.train_step)(poisoned, tiny_batch(K), COMPLETE)
    assert not (after.extra["pool"] == 1).any()
    assert np.isfinite(np.delete(metrics["loss"], 1)).all()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"pool_size": -1}, "pool_size must be at least 0"),
        ({"pool_size": 2, "pool_refresh": 0}, "pool_refresh must be at least 1"),
        ({"teacher_delay": -2}, "teacher_delay must be at least 0"),
        ({"pool_size": 2, "teacher_delay": 2}, "leave one of them out"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, why):
    with pytest.raises(mhd.ConfigError, match=why):
        mhd.algorithms.mhd(**settings)


@pytest.mark.slow
def test_seeds_that_go_together_have_their_own_pools():
    """And a branch of theirs is taken where any of them has something to renew."""
    who = tiny_clients(K, optimizer=mhd.optim.SGD(), public_fraction=0.3)
    how = {"steps": 9, "eval_every": 9, "batch_size": 4, "public_batch_size": 6}
    how |= {"faults": mhd.Faults(offline=0.4, offline_steps=2)}
    algorithm = mhd.algorithms.mhd(pool_size=2, pool_refresh=3)
    together = mhd.simulate_seeds([COMPLETE] * 2, [who] * 2, algorithm, seeds=[0, 1], **how)
    for seed, found in enumerate(together):
        alone = mhd.simulate(COMPLETE, who, algorithm, seed=seed, **how)
        assert_trees_equal(found.state.extra["pool"], alone.state.extra["pool"])
        assert_trees_close(
            found.state.groups[0].params, alone.state.groups[0].params, rtol=1e-4, atol=1e-5
        )
        assert found.summary["communication"] == alone.summary["communication"]
    assert (together[0].state.extra["pool"] != together[1].state.extra["pool"]).any()
