"""Identities that hold whatever the numbers: graphs, clients' order, gradients, faulty peers."""

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
from tests.builders import (
    NUM_CLASSES,
    Linear,
    assert_trees_close,
    assert_trees_equal,
    of_client,
    short,
    take_steps,
    thinned,
    tiny_batch,
    tiny_clients,
    with_params,
)

K = 4
COMPLETE = 1 - jnp.eye(K)
EMPTY = jnp.zeros((K, K))

# Of all algorithms in the suite's short form: with peers, gossip, a server, rounds, prototypes.
OF_EACH_KIND = ("mhd", "distributed_distillation", "ccl", "fedavg", "fedmd", "fedproto")
MOMENTUM = mhd.optim.SGD(0.1, schedule="constant").build(10)


def started(algorithm, clients, batch=None):
    return algorithm.init(jax.random.key(0), clients, batch or tiny_batch(clients.num_clients))


def run_steps(algorithm, clients, graph, batches=None, state=None):
    """The state and the metrics that a few steps end with."""
    batches = batches or [tiny_batch(clients.num_clients, seed=s) for s in range(3)]
    states, metrics = take_steps(algorithm, clients, graph, batches, state)
    return states[-1], metrics[-1]


def batch_for(public_batch, **kwargs):
    return tiny_batch(K, shared=public_batch == "shared", **kwargs)


def main_path(state):
    """All clients' backbones and main heads."""
    params = state.groups[0].params
    return {**params, "heads": jax.tree.map(lambda a: a[:, :1], params["heads"])}


@pytest.mark.parametrize(
    ("name", "graph", "settings"),
    thinned(
        [
            ("mhd", EMPTY, {"num_aux_heads": 2, "include_self": False}),
            ("mhd", COMPLETE, {"num_aux_heads": 2, "nu_aux": 0.0, "nu_emb": 0.0}),
            ("naive", EMPTY, {}),
            ("naive", COMPLETE, {"nu_naive": 0.0}),
            ("dsgd", EMPTY, {}),
            ("qg_dsgd", EMPTY, {}),
            ("fedproto", COMPLETE, {"lambda_p": 0.0}),
        ],
        3,
    ),
)
def test_what_neighbours_do_not_reach_trains_as_if_alone(name, graph, settings):
    """Without edges, or with weight 0, from the same parameters."""
    clients = tiny_clients(K, optimizer=MOMENTUM)
    alone = mhd.algorithms.isolated(label_smoothing=0.1)
    algorithm = ALGORITHMS[name](label_smoothing=0.1, **settings)
    state, start = started(algorithm, clients), started(alone, clients)
    group = start.groups[0].replace(params=main_path(state))
    together, _ = run_steps(algorithm, clients, graph, state=state)
    apart, _ = run_steps(alone, clients, graph, state=start.replace(groups=(group,)))
    assert_trees_close(main_path(together), apart.groups[0].params, rtol=1e-5, atol=1e-7)
    if name in ("dsgd", "qg_dsgd"):  # whose clients are copies of one
        assert_trees_equal(of_client(state, 0), of_client(state, 3))


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
    state = started(both, clients)
    learned, alone = (
        run_steps(algorithm, clients, COMPLETE, [batch], state)[0] for algorithm in (both, private)
    )
    assert_trees_close(main_path(learned)["heads"], main_path(alone)["heads"], rtol=1e-6)
    assert (heads_moved(learned, alone)[:, 1:] > 1e-4).all()


def heads_moved(one, other):
    """How far apart two states' kernels are, client by client and head by head [K, H]."""
    kernels = (state.groups[0].params["heads"]["kernel"] for state in (one, other))
    return jnp.abs(jnp.subtract(*kernels)).max(axis=(2, 3))


def test_no_gradient_reaches_a_teacher():
    """A star: client 0 teaches and learns nothing; the others' losses do not move it."""
    listens_to_0 = jnp.zeros((K, K)).at[1:, 0].set(1)
    clients, batch = tiny_clients(K, optimizer=optax.sgd(1.0)), tiny_batch(K)
    taught, silent = (
        run_steps(mhd.algorithms.mhd(), clients, graph, [batch])[0]
        for graph in (listens_to_0, EMPTY)
    )
    assert_trees_close(of_client(taught, 0), of_client(silent, 0), rtol=1e-6)
    assert (heads_moved(taught, silent)[1:].max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("public_batch", ["shared", "independent"])
def test_a_non_finite_teacher_is_masked_before_the_draw(poison, public_batch):
    """Bit-equal, for all others, to a graph in which it sends nothing."""
    algorithm = mhd.algorithms.mhd(public_batch=public_batch, num_targets=2)
    clients, batch = tiny_clients(K), batch_for(public_batch)
    state = started(algorithm, clients, batch)
    bad = with_params(state, lambda a: a.at[2].set(poison))
    after_bad, _ = run_steps(algorithm, clients, COMPLETE, [batch], bad)
    after_good, _ = run_steps(algorithm, clients, COMPLETE.at[:, 2].set(0), [batch], state)
    for i in (0, 1, 3):
        assert_trees_equal(of_client(after_bad, i), of_client(after_good, i))


ORDER = np.array([2, 0, 3, 1])  # of clients under other names
SOME_EDGES = jnp.asarray(np.random.default_rng(1).integers(0, 2, (K, K)) * (1 - np.eye(K)))


def reordered(tree):
    return jax.tree.map(lambda a: a[ORDER], tree)


def reordered_batch(batch):
    own = ["inputs", "labels", "mask"]
    own += [] if batch.public_is_shared else ["public_inputs", "public_indices"]
    return batch.replace(**{name: getattr(batch, name)[ORDER] for name in own})


@pytest.mark.parametrize(
    ("name", "settings"),
    thinned(
        [
            pytest.param(name, settings, marks=[] if name in OF_EACH_KIND else [pytest.mark.slow])
            for name, build in ALGORITHMS.items()
            if not build().pooled  # a pooled run has one client
            for settings in (
                [
                    {"target_selection": "random", "public_batch": p}
                    for p in ("shared", "independent")
                ]
                if "target_selection" in hyperparameters(build)
                and "public_batch" in hyperparameters(build)
                else [{}]
            )
        ],
        3,
    ),
)
def test_relabelling_the_clients_permutes_the_result(name, settings):
    algorithm = ALGORITHMS[name](**settings)
    clients, batch = tiny_clients(K, optimizer=MOMENTUM), batch_for(algorithm.public_batch)
    state = started(algorithm, clients, batch)
    (group,) = state.groups
    own = {part: reordered(getattr(group, part)) for part in ("params", "opt_state")}
    relabelled = state.replace(
        client_ids=state.client_ids[ORDER],
        extra=reordered(state.extra),
        groups=(group.replace(**own),),
    )
    expected, _ = run_steps(algorithm, clients, SOME_EDGES, [batch], state)
    graph = SOME_EDGES[ORDER][:, ORDER]
    actual, _ = run_steps(algorithm, clients, graph, [reordered_batch(batch)], relabelled)
    params = reordered(expected.groups[0].params)
    assert_trees_close(actual.groups[0].params, params, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", short(ALGORITHMS, *OF_EACH_KIND))
@pytest.mark.parametrize("num_clients", short([1, 4], 4))
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
        pytest.param("shared", [(0, 3), (1, 2)], marks=pytest.mark.slow),
        pytest.param("independent", [(0, 3), (1, 2)], marks=pytest.mark.slow),
        ("shared", [(2,), (0, 1, 3)]),
    ],
)
def test_two_groups_equal_one(public_batch, halves):
    """One architecture split in two groups gives the same clients."""
    algorithm = mhd.algorithms.mhd(num_targets=2, public_batch=public_batch)
    whole = tiny_clients(K)
    split = tiny_clients(K, groups=[(Linear(), members) for members in halves])
    batches = [batch_for(public_batch, seed=s) for s in range(3)]
    one, _ = run_steps(algorithm, whole, COMPLETE, batches)
    two, _ = run_steps(algorithm, split, COMPLETE, batches)
    for i in range(K):
        assert_trees_close(of_client(two, i), of_client(one, i), rtol=1e-4, atol=1e-6)
    inputs = batches[0].inputs[0]
    np.testing.assert_allclose(
        algorithm.predict(two, inputs), algorithm.predict(one, inputs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_the_order_of_unlike_clients_does_not_matter():
    """Two architectures, their clients in another order: the same clients come out."""
    algorithm = mhd.algorithms.mhd(num_targets=2, nu_emb=0.0)
    place = np.argsort(ORDER)
    kinds = [(Linear(5), (0, 1)), (Linear(3), (2, 3))]
    moved = [(kind, tuple(sorted(int(place[i]) for i in members))) for kind, members in kinds]
    clients, batch = tiny_clients(K, groups=kinds), tiny_batch(K)
    state, other = started(algorithm, clients), started(algorithm, tiny_clients(K, groups=moved))

    def moved_rows(here, there):
        rows = np.array([here.members.index(ORDER[i]) for i in there.members])
        return there.replace(params=jax.tree.map(lambda a: a[rows], here.params))

    relabelled = other.replace(
        client_ids=jnp.asarray(ORDER, jnp.int32),
        groups=tuple(map(moved_rows, state.groups, other.groups)),
    )
    expected, _ = run_steps(algorithm, clients, SOME_EDGES, [batch], state)
    graph = SOME_EDGES[ORDER][:, ORDER]
    actual, _ = run_steps(algorithm, clients, graph, [reordered_batch(batch)], relabelled)
    said = [algorithm.predict(after, batch.public_inputs) for after in (actual, expected)]
    np.testing.assert_allclose(said[0], said[1][ORDER], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("public_batch", ["shared", "independent"])
def test_mixed_widths_learn_from_predictions(public_batch):
    clients = tiny_clients(K, groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))])
    algorithm = mhd.algorithms.mhd(nu_emb=0.0, public_batch=public_batch)
    batches = [batch_for(public_batch)] * 40
    _, first = run_steps(algorithm, clients, COMPLETE, batches[:1])
    _, last = run_steps(algorithm, clients, COMPLETE, batches)
    assert (last["loss"] < first["loss"]).all()


@pytest.mark.parametrize("name", short(["distributed_distillation", "fedmd", "naive"], "fedmd"))
def test_unlike_architectures_share_predictions(name):
    """Two widths in one run: all learn, all answer, and consensus keeps its sum."""
    mixed = tiny_clients(K, groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))], public_fraction=0.3)
    batch = tiny_batch(K).replace(public_indices=jnp.arange(7))
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


@pytest.mark.parametrize("updates", short([False, True], True))
def test_batch_statistics_stay_per_client_and_private(updates):
    clients, batch = tiny_clients(K, model=Normed()), tiny_batch(K)
    algorithm = mhd.algorithms.mhd(public_updates_stats=updates)
    (before, after), _ = take_steps(algorithm, clients, COMPLETE, [batch])
    dense = before.groups[0].params["backbone"]["Dense_0"]
    through = lambda i, x: (x @ dense["kernel"][i] + dense["bias"][i]).mean(axis=0)
    mean = after.groups[0].stats["batch_stats"]["BatchNorm_0"]["mean"]
    for i in range(K):
        expected = 0.01 * through(i, batch.inputs[i])
        if updates:
            expected = 0.99 * expected + 0.01 * through(i, batch.public_inputs)
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


@pytest.mark.parametrize("public_batch", ["shared", "independent"])
@pytest.mark.parametrize(
    ("options", "chunk"), [({}, None), ({}, 1), ({"dropout": 0.5}, None), ({"normed": True}, None)]
)
def test_private_and_public_samples_share_a_pass_where_nothing_tells_it(
    options, chunk, public_batch
):
    seen, joint = [], not options and chunk is None
    batch = batch_for(public_batch)
    algorithm = mhd.algorithms.mhd(public_batch=public_batch)
    state = started(algorithm, tiny_clients(K, model=Noting(seen.append, **options)), batch)
    with under(Execution(chunk=chunk)):
        jax.eval_shape(algorithm.train_step, state, batch, COMPLETE)
    private, public = batch.labels.shape[1], batch.public_indices.shape[-1]
    assert private != public
    assert (private + public in seen) == joint
    assert (public in seen) == (not joint)  # teachers' own passes are in evaluation mode


def test_optimizers_do_not_couple_clients():
    """A global-norm clip on the stacked tree would: each client is clipped alone."""
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0))
    clients, batch = tiny_clients(2, optimizer=tx), tiny_batch(2)
    loud = batch.replace(inputs=batch.inputs.at[1].mul(100))
    first, second = (
        run_steps(mhd.algorithms.isolated(), clients, jnp.zeros((2, 2)), [seen])[0]
        for seen in (batch, loud)
    )
    assert_trees_equal(of_client(first, 0), of_client(second, 0))


def test_teachers_are_drawn_uniformly_or_by_weight_without_replacement():
    state = started(mhd.algorithms.isolated(), tiny_clients(K))
    weights = jnp.array([[0, 1, 1, 1], [3, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]], jnp.float32)
    everyone = jnp.ones(K, bool)

    @jax.jit
    @jax.vmap
    def draws(step):
        at = state.replace(step=step)
        return tuple(exchange.draw_teachers(at, weights, everyone, n) for n in (1, 2, "all"))

    one, two, every = jax.device_get(draws(jnp.arange(3000)))
    np.testing.assert_array_equal(one.valid[:, :, 0].mean(axis=0), [1, 1, 0, 1])
    for i, expected in ((0, [0, 1 / 3, 1 / 3, 1 / 3]), (1, [3 / 4, 0, 1 / 4, 0])):
        shares = np.bincount(one.positions[:, i, 0], minlength=K) / 3000
        np.testing.assert_allclose(shares, expected, atol=0.04)  # 5 deviations
    assert (two.positions[:, 0, 0] != two.positions[:, 0, 1]).all()
    assert two.valid[:, [0, 1, 3]].all() and not two.valid[:, 2].any()
    assert every.valid.shape == (3000, K, K - 1)
    np.testing.assert_array_equal(every.valid.sum(axis=(0, 2)) / 3000, [3, 2, 0, 3])


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, {"logits": 7 * 3 * 3 * 4, "embeddings": 7 * 5 * 4}),
        ({"nu_emb": 0.0}, {"logits": 7 * 3 * 3 * 4}),
        ({"nu_emb": 0.0, "num_aux_heads": 0}, {"logits": 7 * 3 * 4}),
        ({"nu_emb": 0.0, "same_level": True}, {"logits": 7 * 4 * 3 * 4}),
    ],
)
def test_what_crosses_an_edge(settings, sizes):
    """P = 7, C = 3, D = 5."""
    algorithm = mhd.algorithms.mhd(**settings)
    state = started(algorithm, tiny_clients(K))
    for public_batch, more in (("shared", {}), ("independent", {"indices": 7 * 4})):
        sent = algorithm.message(state, batch_for(public_batch), state.groups[0])
        (message,) = sent.values()
        assert bytes_by_type(message) == sizes | more


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
