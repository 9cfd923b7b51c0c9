"""Identities that hold whatever the numbers: graphs, clients' order, gradients, faulty peers."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.core.client_axis import Execution, under
from mhd_jax.exchange.messages import bytes_by_type
from mhd_jax.training import groups
from tests.builders import (
    FEATURES,
    NUM_CLASSES,
    Linear,
    assert_trees_close,
    assert_trees_equal,
    tiny_batch,
    tiny_clients,
)

K = 4
COMPLETE = 1 - jnp.eye(K)
EMPTY = jnp.zeros((K, K))


MOMENTUM = mhd.optim.SGD(0.1, schedule="constant").build(10)


def run_steps(algorithm, clients, graph, batches=None, steps=3, state=None):
    batches = batches or [tiny_batch(clients.num_clients, seed=s) for s in range(steps)]
    state = state or algorithm.init(jax.random.key(0), clients, batches[0])
    step = jax.jit(algorithm.train_step)
    for batch in batches:
        state, metrics = step(state, batch, graph)
    return state, metrics


@pytest.mark.parametrize("name", ["mhd", "naive"])
@pytest.mark.parametrize("silence", ["empty graph", "zero weights"])
def test_silent_distillation_equals_isolated(name, silence):
    """Without edges, or with weight 0, the main path trains as if alone."""
    settings = {"mhd": {"num_aux_heads": 2, "include_self": False}, "naive": {}}[name]
    graph = EMPTY
    if silence == "zero weights":
        graph = COMPLETE
        settings |= {"mhd": {"nu_aux": 0.0, "nu_emb": 0.0}, "naive": {"nu_naive": 0.0}}[name]
    clients = tiny_clients(K)
    alone = mhd.algorithms.isolated()
    algorithm = ALGORITHMS[name](**settings)
    state = algorithm.init(jax.random.key(0), clients, tiny_batch(K))
    # Isolated clients start from the same backbone and main head.
    start = alone.init(jax.random.key(0), clients, tiny_batch(K))
    params = {
        "backbone": state.groups[0].params["backbone"],
        "heads": jax.tree.map(lambda a: a[:, :1], state.groups[0].params["heads"]),
    }
    start = dataclasses.replace(
        start, groups=(dataclasses.replace(start.groups[0], params=params),)
    )
    together, _ = run_steps(algorithm, clients, graph, state=state)
    apart, _ = run_steps(alone, clients, graph, state=start)
    a, b = together.groups[0].params, apart.groups[0].params
    assert_trees_close(a["backbone"], b["backbone"], rtol=1e-5, atol=1e-7)
    assert_trees_close(
        jax.tree.map(lambda x: x[:, :1], a["heads"]), b["heads"], rtol=1e-5, atol=1e-7
    )


def test_a_client_without_teachers_distills_from_itself():
    batch, clients = tiny_batch(K), tiny_clients(K)
    for include_self in (True, False):
        algorithm = mhd.algorithms.mhd(include_self=include_self)
        _, metrics = run_steps(algorithm, clients, EMPTY, [batch])
        assert (np.asarray(metrics["aux_loss"]) > 0).all() == include_self
        assert not metrics["messages"]["predictions"].any()
        np.testing.assert_array_equal(metrics["emb_loss"], 0)


def test_main_head_gets_no_distillation_gradient():
    clients, batch = tiny_clients(K, optimizer=optax.sgd(1.0)), tiny_batch(K)
    both = mhd.algorithms.mhd(nu_aux=1.0, nu_emb=1.0)
    private = mhd.algorithms.mhd(nu_aux=0.0, nu_emb=0.0)
    state = both.init(jax.random.key(0), clients, batch)
    learned, _ = run_steps(both, clients, COMPLETE, [batch], state=state)
    alone, _ = run_steps(private, clients, COMPLETE, [batch], state=state)
    heads, heads_alone = learned.groups[0].params["heads"], alone.groups[0].params["heads"]
    assert_trees_close(
        jax.tree.map(lambda a: a[:, 0], heads),
        jax.tree.map(lambda a: a[:, 0], heads_alone),
        rtol=1e-6,
    )
    assert (jnp.abs(heads["kernel"] - heads_alone["kernel"])[:, 1:].max(axis=(2, 3)) > 1e-4).all()


def test_no_gradient_reaches_a_teacher():
    """A star: client 0 teaches and learns nothing; the others' losses do not move it."""
    listens_to_0 = jnp.zeros((K, K)).at[1:, 0].set(1)
    clients, batch = tiny_clients(K, optimizer=optax.sgd(1.0)), tiny_batch(K)
    algorithm = mhd.algorithms.mhd()
    taught, _ = run_steps(algorithm, clients, listens_to_0, [batch])
    silent, _ = run_steps(algorithm, clients, EMPTY, [batch])
    of_0 = lambda state: jax.tree.map(lambda a: a[0], state.groups[0].params)
    assert_trees_close(of_0(taught), of_0(silent), rtol=1e-6)
    moved = taught.groups[0].params["heads"]["kernel"] - silent.groups[0].params["heads"]["kernel"]
    assert (jnp.abs(moved[1:]).max(axis=(1, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("shared", [True, False])
def test_a_non_finite_teacher_is_masked_before_the_draw(poison, shared):
    """Bit-equal, for all others, to a graph in which it sends nothing."""
    public_batch = "shared" if shared else "independent"
    algorithm = mhd.algorithms.mhd(public_batch=public_batch, num_targets=2)
    clients, batch = tiny_clients(K), tiny_batch(K, shared=shared)
    state = algorithm.init(jax.random.key(0), clients, batch)
    poisoned = jax.tree.map(lambda a: a.at[2].set(poison), state.groups[0].params)
    bad = dataclasses.replace(
        state, groups=(dataclasses.replace(state.groups[0], params=poisoned),)
    )
    after_bad, _ = run_steps(algorithm, clients, COMPLETE, [batch], state=bad)
    without = COMPLETE.at[:, 2].set(0)
    after_good, _ = run_steps(algorithm, clients, without, [batch], state=state)
    others = np.array([0, 1, 3])
    assert_trees_equal(
        jax.tree.map(lambda a: a[others], after_bad.groups[0].params),
        jax.tree.map(lambda a: a[others], after_good.groups[0].params),
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (name, settings)
        for name, build in ALGORITHMS.items()
        if not build().pooled  # a pooled run has one client
        for settings in (
            [{"target_selection": "random", "public_batch": p} for p in ("shared", "independent")]
            if "target_selection" in hyperparameters(build)
            and "public_batch" in hyperparameters(build)
            else [{}]
        )
    ],
)
def test_relabelling_the_clients_permutes_the_result(name, settings):
    algorithm = ALGORITHMS[name](**settings)
    shared = algorithm.public_batch != "independent"
    order = np.array([2, 0, 3, 1])
    graph = jnp.asarray(np.random.default_rng(1).integers(0, 2, (K, K)) * (1 - np.eye(K)))
    clients, batch = tiny_clients(K, optimizer=MOMENTUM), tiny_batch(K, shared=shared)
    state = algorithm.init(jax.random.key(0), clients, batch)
    permute = lambda tree: jax.tree.map(lambda a: a[order], tree)
    group = state.groups[0]
    relabelled = dataclasses.replace(
        state,
        client_ids=state.client_ids[order],
        extra=permute(state.extra),
        groups=(
            dataclasses.replace(
                group, params=permute(group.params), opt_state=permute(group.opt_state)
            ),
        ),
    )
    moved = dataclasses.replace(
        batch,
        inputs=batch.inputs[order],
        labels=batch.labels[order],
        mask=batch.mask[order],
        public_inputs=batch.public_inputs if shared else batch.public_inputs[order],
    )
    step = jax.jit(algorithm.train_step)
    expected, _ = step(state, batch, graph)
    actual, _ = step(relabelled, moved, graph[order][:, order])
    assert_trees_close(
        actual.groups[0].params, permute(expected.groups[0].params), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("num_clients", [1, 4])
def test_every_algorithm_keeps_structure_and_never_recompiles(name, num_clients):
    algorithm = ALGORITHMS[name]()
    clients = tiny_clients(num_clients, optimizer=MOMENTUM)
    batch = tiny_batch(num_clients)
    state = algorithm.init(jax.random.key(0), clients, batch)
    traces = []

    @jax.jit
    def step(state, batch, graph):
        traces.append(1)
        return algorithm.train_step(state, batch, graph)

    rng = np.random.default_rng(0)
    graphs = [np.zeros((num_clients,) * 2), 1 - np.eye(num_clients)]
    graphs += [rng.random((num_clients,) * 2) * (1 - np.eye(num_clients))]
    for graph in graphs:
        new_state, metrics = step(state, batch, jnp.asarray(graph, jnp.float32))
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        before, after = jax.tree.leaves(state), jax.tree.leaves(new_state)
        assert [(a.shape, a.dtype) for a in before] == [(a.shape, a.dtype) for a in after]
        assert int(new_state.step) == int(state.step) + 1
        assert np.isfinite(metrics["loss"]).all()
        counts = metrics["messages"].values()
        assert {count.dtype for count in counts} <= {jnp.dtype(jnp.int32)}
        state = new_state
    assert len(traces) == 1
    logits = algorithm.predict(state, batch.public_inputs)
    assert logits.shape == (num_clients, 7, algorithm.num_heads, NUM_CLASSES)


@pytest.mark.parametrize(
    ("public_batch", "halves"),
    [
        ("shared", [(0, 3), (1, 2)]),
        ("independent", [(0, 3), (1, 2)]),
        ("shared", [(2,), (0, 1, 3)]),
    ],
)
def test_two_groups_equal_one(public_batch, halves):
    """One architecture split in two groups gives the same clients."""
    shared = public_batch == "shared"
    algorithm = mhd.algorithms.mhd(num_targets=2, public_batch=public_batch)
    whole = tiny_clients(K)
    split = tiny_clients(K, groups=[(Linear(), members) for members in halves])
    batches = [tiny_batch(K, seed=s, shared=shared) for s in range(3)]
    one, _ = run_steps(algorithm, whole, COMPLETE, batches)
    two, _ = run_steps(algorithm, split, COMPLETE, batches)
    for group in two.groups:
        members = np.array(group.members)
        assert_trees_close(
            group.params,
            jax.tree.map(lambda a, m=members: a[m], one.groups[0].params),
            rtol=1e-4,
            atol=1e-6,
        )
    inputs = batches[0].inputs[0]
    np.testing.assert_allclose(
        algorithm.predict(two, inputs), algorithm.predict(one, inputs), rtol=1e-4, atol=1e-5
    )


def test_the_order_of_unlike_clients_does_not_matter():
    """Two architectures, their clients in another order: the same clients come out."""
    algorithm = mhd.algorithms.mhd(num_targets=2, nu_emb=0.0)
    order = np.array([2, 0, 3, 1])
    place = np.argsort(order)
    kinds = [(Linear(5), (0, 1)), (Linear(3), (2, 3))]
    moved = [(kind, tuple(sorted(int(place[i]) for i in members))) for kind, members in kinds]
    graph = jnp.asarray(np.random.default_rng(1).integers(0, 2, (K, K)) * (1 - np.eye(K)))
    batch = tiny_batch(K)
    state = algorithm.init(jax.random.key(0), tiny_clients(K, groups=kinds), batch)
    other = algorithm.init(jax.random.key(0), tiny_clients(K, groups=moved), batch)

    def moved_rows(here, there):
        rows = np.array([here.members.index(order[i]) for i in there.members])
        return dataclasses.replace(there, params=jax.tree.map(lambda a: a[rows], here.params))

    relabelled = dataclasses.replace(
        other,
        client_ids=jnp.asarray(order, jnp.int32),
        groups=tuple(map(moved_rows, state.groups, other.groups)),
    )
    reordered = dataclasses.replace(
        batch, inputs=batch.inputs[order], labels=batch.labels[order], mask=batch.mask[order]
    )
    step = jax.jit(algorithm.train_step)
    expected, _ = step(state, batch, graph)
    actual, _ = step(relabelled, reordered, graph[order][:, order])
    said = [algorithm.predict(after, batch.public_inputs) for after in (actual, expected)]
    np.testing.assert_allclose(said[0], said[1][order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("public_batch", ["shared", "independent"])
def test_mixed_widths_learn_from_predictions(public_batch):
    clients = tiny_clients(K, groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))])
    algorithm = mhd.algorithms.mhd(nu_emb=0.0, public_batch=public_batch)
    batches = [tiny_batch(K, shared=public_batch == "shared")] * 40
    _, first = run_steps(algorithm, clients, COMPLETE, batches[:1])
    _, last = run_steps(algorithm, clients, COMPLETE, batches)
    assert (last["loss"] < first["loss"]).all()


@pytest.mark.parametrize("name", ["distributed_distillation", "fedmd", "naive"])
def test_unlike_architectures_share_predictions(name):
    """Two widths in one run: all learn, all answer, and consensus keeps its sum."""
    mixed = tiny_clients(K, groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))], public_fraction=0.3)
    batch = dataclasses.replace(tiny_batch(K), public_indices=jnp.arange(7))
    algorithm = ALGORITHMS[name]()
    together, metrics = run_steps(algorithm, mixed, COMPLETE, [batch] * 5)
    assert np.isfinite(metrics["loss"]).all()
    assert [group.params["heads"]["kernel"].shape[2] for group in together.groups] == [5, 3]
    assert algorithm.predict(together, batch.public_inputs).shape == (K, 7, 1, NUM_CLASSES)
    if name == "distributed_distillation":
        kept, said = together.extra["estimates"], together.extra["previous_decisions"]
        np.testing.assert_allclose(kept.sum(axis=0), said.sum(axis=0), atol=1e-5)


def test_embeddings_of_unequal_width_are_refused_by_name():
    clients = tiny_clients(K, groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))])
    with pytest.raises(mhd.ConfigError, match=r"clients 0, 2: 5; clients 1, 3: 3"):
        mhd.algorithms.mhd(nu_emb=0.1).init(jax.random.key(0), clients, tiny_batch(K))


class Normed(nn.Module):
    """BatchNorm and dropout in one backbone."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


@pytest.mark.parametrize("updates", [False, True])
def test_batch_statistics_stay_per_client_and_private(updates):
    clients, batch = tiny_clients(K, model=Normed()), tiny_batch(K)
    algorithm = mhd.algorithms.mhd(public_updates_stats=updates)
    state = algorithm.init(jax.random.key(0), clients, batch)
    after, _ = run_steps(algorithm, clients, COMPLETE, [batch], state=state)
    kernel = state.groups[0].params["backbone"]["Dense_0"]["kernel"]
    bias = state.groups[0].params["backbone"]["Dense_0"]["bias"]
    mean = after.groups[0].stats["batch_stats"]["BatchNorm_0"]["mean"]
    for i in range(K):
        expected = 0.01 * (batch.inputs[i] @ kernel[i] + bias[i]).mean(axis=0)
        if updates:
            public = (batch.public_inputs @ kernel[i] + bias[i]).mean(axis=0)
            expected = 0.99 * expected + 0.01 * public
        np.testing.assert_allclose(mean[i], expected, rtol=1e-4, atol=1e-6)


class Noting(nn.Module):
    """A backbone that notes how many samples it is given in training mode."""

    note: Callable[[int], None]
    dropout: float = 0.0
    normed: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        if train:
            self.note(x.shape[0])
        x = nn.Dense(6)(x)
        if self.normed:
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("options", "chunk", "joint"),
    [
        ({}, None, True),
        ({}, 1, False),
        ({"dropout": 0.5}, None, False),
        ({"normed": True}, None, False),
    ],
)
def test_private_and_public_samples_share_a_pass_where_nothing_tells_it(
    options, chunk, joint, shared
):
    seen = []
    clients = tiny_clients(K, model=Noting(seen.append, **options))
    batch = tiny_batch(K, shared=shared)
    algorithm = mhd.algorithms.mhd(public_batch="shared" if shared else "independent")
    state = algorithm.init(jax.random.key(0), clients, batch)
    with under(Execution(chunk=chunk)):
        jax.eval_shape(algorithm.train_step, state, batch, COMPLETE)
    private, public = batch.labels.shape[1], batch.public_indices.shape[-1]
    assert private != public
    assert (private + public in seen) == joint
    assert (public in seen) == (not joint)  # teachers' own passes are in evaluation mode


def test_optimizers_do_not_couple_clients():
    """A global-norm clip on the stacked tree would: each client is clipped alone."""
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
    clients = tiny_clients(2, optimizer=tx)
    algorithm = mhd.algorithms.isolated()
    batch = tiny_batch(2)
    loud = dataclasses.replace(batch, inputs=batch.inputs.at[1].mul(100))
    first, _ = run_steps(algorithm, clients, jnp.zeros((2, 2)), [batch])
    second, _ = run_steps(algorithm, clients, jnp.zeros((2, 2)), [loud])
    of_0 = lambda state: jax.tree.map(lambda a: a[0], groups.all_params(state))
    assert_trees_equal(of_0(first), of_0(second))


def test_teachers_are_drawn_uniformly_or_by_weight_without_replacement():
    state = mhd.algorithms.isolated().init(jax.random.key(0), tiny_clients(K), tiny_batch(K))
    weights = jnp.array([[0, 1, 1, 1], [3, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]], jnp.float32)
    everyone = jnp.ones(K, bool)

    @jax.jit
    @jax.vmap
    def draws(step):
        at = dataclasses.replace(state, step=step)
        return tuple(exchange.draw_teachers(at, weights, everyone, n) for n in (1, 2, "all"))

    one, two, every = draws(jnp.arange(3000))
    np.testing.assert_array_equal(np.asarray(one.valid)[:, :, 0].mean(axis=0), [1, 1, 0, 1])
    shares = np.bincount(np.asarray(one.positions)[:, 0, 0], minlength=K) / 3000
    np.testing.assert_allclose(shares, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.045)  # 5 deviations
    shares = np.bincount(np.asarray(one.positions)[:, 1, 0], minlength=K) / 3000
    np.testing.assert_allclose(shares, [3 / 4, 0, 1 / 4, 0], atol=0.04)
    assert (np.asarray(two.positions)[:, 0, 0] != np.asarray(two.positions)[:, 0, 1]).all()
    assert np.asarray(two.valid)[:, [0, 1, 3]].all() and not np.asarray(two.valid)[:, 2].any()
    assert every.valid.shape == (3000, K, K - 1)
    np.testing.assert_array_equal(np.asarray(every.valid).sum(axis=(0, 2)) / 3000, [3, 2, 0, 3])


def test_what_crosses_an_edge():
    batch = tiny_batch(K)  # P = 7, C = 3, D = 5
    independent = tiny_batch(K, shared=False)
    expected = {
        (): {"logits": 7 * 3 * 3 * 4, "embeddings": 7 * 5 * 4},
        (("nu_emb", 0.0),): {"logits": 7 * 3 * 3 * 4},
        (("nu_emb", 0.0), ("num_aux_heads", 0)): {"logits": 7 * 3 * 4},
        (("nu_emb", 0.0), ("same_level", True)): {"logits": 7 * 4 * 3 * 4},
    }
    for settings, sizes in expected.items():
        algorithm = mhd.algorithms.mhd(**dict(settings))
        state = algorithm.init(jax.random.key(0), tiny_clients(K), batch)
        for of, expected_sizes in ((batch, sizes), (independent, {**sizes, "indices": 7 * 4})):
            (message,) = algorithm.message(state, of, state.groups[0]).values()
            assert bytes_by_type(message) == expected_sizes


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_aux_heads": -1}, "num_aux_heads must be at least 0"),
        ({"num_targets": 0}, "num_targets must be a positive integer or 'all'"),
        ({"nu_aux": -0.1}, "nu_aux must be at least 0"),
        ({"nu_emb": float("nan")}, "nu_emb must be a finite number"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"target_selection": "best"}, "unknown target_selection 'best'; choose one of"),
        ({"public_batch": "mine"}, "public_batch must be 'shared' or 'independent'"),
        ({"heads": 3}, "it takes num_aux_heads"),
    ],
)
def test_bad_hyperparameters_are_refused(settings, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.algorithms.mhd(**settings)


def test_equal_settings_are_one_algorithm():
    assert mhd.algorithms.mhd(nu_aux=0.3) is mhd.algorithms.mhd()
    assert mhd.algorithms.mhd(nu_aux=0.2) is not mhd.algorithms.mhd()
    assert mhd.algorithms.naive().hyperparameters["nu_naive"] == 1.0
    assert mhd.algorithms.naive().name == "naive"


def test_linear_backbone_shape():
    assert Linear().init_with_output(jax.random.key(0), jnp.ones((2, FEATURES)))[0].shape == (2, 5)
