"""Graphs that change from step to step, and graphs whose edges go one way."""

import functools
import itertools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax import topology as topologies
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.engine import joint_runs as joining
from mhd_jax.engine import steps as engine
from mhd_jax.engine.prepare import prepare
from mhd_jax.topology import schedules
from tests.builders import assert_trees_close, simulate_in, thinned, tiny_batch, tiny_clients

SETTINGS = {"steps": 12, "eval_every": 6, "batch_size": 4, "public_batch_size": 8}
SGD = mhd.optim.SGD()
AVERAGING = ["dsgd", "qg_dsgd", "ccl", "idkd", "distributed_distillation"]


matched = functools.partial(mhd.topology.random_matching, 4)


def over_steps(topology, steps):
    """The graphs [steps, K, K] of the first steps."""
    return np.asarray(jax.jit(jax.vmap(topology.at))(jnp.arange(steps)))


def clients(num_clients=4, **kwargs):
    return tiny_clients(num_clients, public_fraction=0.3, optimizer=SGD, **kwargs)


def run(topology, algorithm="mhd", workdir=None, **kwargs):
    run_it = mhd.simulate if workdir is None else functools.partial(simulate_in, workdir)
    return run_it(topology, clients(topology.num_clients), algorithm, **SETTINGS | kwargs)


def pairs(matching):
    return tuple(sorted(map(tuple, np.argwhere(np.triu(matching)).tolist())))


def is_spread_evenly(counts):
    """Whether counts are as a uniform draw's: χ² within 4 deviations of its mean."""
    counts = np.asarray(counts)
    freedom = counts.size - 1
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return chi_squared < freedom + 4 * np.sqrt(2 * freedom)


# Random graphs.


@pytest.mark.parametrize(("num_clients", "ways"), [(4, 3), (5, 15), (6, 15)])
def test_every_matching_is_equally_likely(num_clients, ways):
    graphs = over_steps(mhd.topology.random_matching(num_clients, seed=1), 3000)
    assert (graphs == graphs.swapaxes(1, 2)).all() and set(np.unique(graphs)) == {0, 1}
    degrees = graphs.sum(axis=1)
    assert degrees.max() == 1 and ((degrees == 0).sum(axis=1) == num_clients % 2).all()
    drawn, counts = np.unique([hash(pairs(g)) for g in graphs], return_counts=True)
    assert len(drawn) == ways and is_spread_evenly(counts)


def test_matchings_of_successive_steps_are_independent():
    drawn = [pairs(g) for g in over_steps(mhd.topology.random_matching(4, seed=2), 3000)]
    joint = dict.fromkeys(itertools.product(sorted(set(drawn)), repeat=2), 0)
    for both in itertools.pairwise(drawn):
        joint[both] += 1
    assert is_spread_evenly(list(joint.values()))


def test_random_regular_graphs_are_redrawn():
    topology = mhd.topology.random_regular(8, degree=3, redraw_every=10, seed=4)
    blocks = over_steps(topology, 400).reshape(40, 10, 8, 8)
    assert (blocks == blocks[:, :1]).all()
    graphs = blocks[:, 0]
    assert (graphs.sum(axis=2) == 3).all() and (graphs == graphs.swapaxes(1, 2)).all()
    assert all(nx.is_connected(nx.from_numpy_array(graph)) for graph in graphs)
    assert len({graph.tobytes() for graph in graphs}) > 35  # there are 19,320
    # The shapes repeat after 16 redraws, and the clients take other places in them.
    isomorphic = [nx.is_isomorphic(*map(nx.from_numpy_array, graphs[[i, i + 16]])) for i in (0, 9)]
    assert all(isomorphic) and (graphs[0] != graphs[16]).any()


def test_redrawn_graphs_join_every_pair_as_often():
    topology = mhd.topology.random_regular(7, degree=2, redraw_every=1, seed=0)
    counts = over_steps(topology, 3000).sum(axis=0)[np.triu_indices(7, 1)]
    np.testing.assert_allclose(counts / 3000, 2 / 6, atol=0.04)  # 5 deviations
    edges = over_steps(mhd.topology.erdos_renyi(7, redraw_every=2, seed=0), 32).sum(axis=(1, 2))
    assert len(set(edges)) > 3 and (edges[::2] == edges[1::2]).all()


@pytest.mark.parametrize(
    "make",
    thinned(
        [
            mhd.topology.random_matching,
            functools.partial(mhd.topology.random_regular, redraw_every=3),
            functools.partial(mhd.topology.erdos_renyi, redraw_every=3),
        ],
        3,
    ),
)
def test_seeds_repeat_and_differ(make):
    one, same, other = (over_steps(make(8, seed=seed), 30) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any(axis=(1, 2)).mean() > 0.8


# Graphs with a plan.


@pytest.mark.parametrize("num_clients", [2, 3, 6, 8, 9])
def test_one_peer_exponential_reaches_everyone_in_time(num_clients):
    needed = (num_clients - 1).bit_length()
    graphs = over_steps(mhd.topology.one_peer_exponential(num_clients), 2 * needed)
    for step, graph in enumerate(graphs):
        peers = (np.arange(num_clients) + 2 ** (step % needed)) % num_clients
        np.testing.assert_array_equal(graph, np.eye(num_clients)[peers])
    reached = np.eye(num_clients)
    for step in range(needed):
        assert (reached == 0).any()
        reached = (np.eye(num_clients) + graphs[step]) @ reached
    assert (reached > 0).all()


def test_islands_meet_at_multiples():
    joined = np.asarray(mhd.topology.islands(6, num_islands=3).at(0))
    apart = np.kron(np.eye(3), 1 - np.eye(2))
    graphs = over_steps(mhd.topology.islands(6, num_islands=3, meet_every=4), 13)
    assert (joined != apart).sum() == 4
    for step, graph in enumerate(graphs):
        np.testing.assert_array_equal(graph, apart if step % 4 else joined)


def test_a_switch_switches_at_its_step():
    matching = mhd.topology.random_matching(4, seed=3)
    own = topologies.from_function(lambda step: jnp.ones((4, 4)) * (step + 1), 4)
    topology = mhd.topology.switch([(0, mhd.topology.ring(4)), (3, matching), (5, own)])
    nested = mhd.topology.switch([(0, topology), (6, mhd.topology.star(4))])
    assert topology.num_clients == 4 and topology.name == "ring@0,random_matching@3,<lambda>@5"
    graphs, of_nested = over_steps(topology, 8), over_steps(nested, 8)
    for step, (graph, wrapped) in enumerate(zip(graphs, of_nested, strict=True)):
        part = mhd.topology.ring(4) if step < 3 else matching if step < 5 else own
        np.testing.assert_array_equal(graph, part.at(step))
        np.testing.assert_array_equal(wrapped, graph if step < 6 else mhd.topology.star(4).at(0))


@pytest.mark.slow
def test_switches_by_name(tmp_path):
    name = "random_regular@0,complete@6,erdos_renyi@8"
    assert topologies.options(name).keys() == {"degree", "edge_probability", "redraw_every", "seed"}
    topology = mhd.topology.named(name, 6, degree=2, redraw_every=3, seed=7)
    parts = {
        range(6): mhd.topology.random_regular(6, degree=2, redraw_every=3, seed=7),
        range(6, 8): mhd.topology.complete(6),
        range(8, 12): mhd.topology.erdos_renyi(6, redraw_every=3, seed=7),
    }
    for steps, part in parts.items():
        for step in steps:
            np.testing.assert_array_equal(topology.at(step), part.at(step))
    path = tmp_path / "mine@0.txt"
    path.write_text("0 1\n")
    assert mhd.topology.named(str(path), 2).name == "mine@0"
    by_file = mhd.topology.named(f"star@0,{path}@2", 2)
    assert by_file.name == "star@0,mine@0@2"


def test_a_graph_that_changes_in_numbers():
    topology = mhd.topology.islands(4, meet_every=4)  # two pairs, at times a chain
    chain = np.array([[2, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 2]]) / 3
    pair = np.kron(np.eye(2), np.full((2, 2), 0.5))
    found = topologies.describe(topology, 10)  # meets at 0, 4 and 8
    assert found["name"] == "islands" and found["edges_per_step"] == pytest.approx(4.6)
    mean = 0.3 * chain + 0.7 * pair
    gap = 1 - np.sort(np.abs(np.linalg.eigvals(mean)))[-2]
    assert found["spectral_gap_of_mean"]["metropolis_hastings"] == pytest.approx(gap, abs=1e-6)
    always = topologies.describe(mhd.topology.islands(4, meet_every=1), 10)
    static = topologies.describe(mhd.topology.islands(4), 10)
    assert always["edges_per_step"] == static["edges"] == 6
    for mixing, gap in static["spectral_gap"].items():
        assert always["spectral_gap_of_mean"][mixing] == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mhd.topology.named("random_matching", 1), "needs at least 2"),
        (lambda: mhd.topology.named("one_peer_exponential", 1), "needs at least 2"),
        (lambda: mhd.topology.random_regular(8, redraw_every=0), "redraw_every must be a number"),
        (lambda: mhd.topology.erdos_renyi(8, redraw_every=1.5), "redraw_every must be a number"),
        (lambda: mhd.topology.islands(8, meet_every=0), "meet_every must be a number of steps"),
        (lambda: mhd.topology.switch([]), "start at step 0"),
        (lambda: mhd.topology.switch([(0, "ring")]), r"a Topology, like \(0, ring\(8\)\), not \(0"),
        (lambda: mhd.topology.switch([mhd.topology.ring(4)]), r"like \(0, ring\(8\)\)"),
        (lambda: mhd.topology.switch(5), r"like \(0, ring\(8\)\), not 5"),
        (lambda: mhd.topology.named("ring@1,complete@2", 4), "start at step 0"),
        (lambda: mhd.topology.named("ring@0,star@5,chain@5", 4), "later steps, not at 0, 5, 5"),
        (lambda: mhd.topology.named(f"ring@0,star@{2**31}", 4), "at ever later steps"),
        (lambda: mhd.topology.named("ring@0,complete", 4), "written with the steps"),
        (lambda: mhd.topology.named("ring@0,complete@-3", 4), "written with the steps"),
        (lambda: mhd.topology.named("ring@0,rign@5", 4), "unknown topology 'rign'"),
        (lambda: mhd.topology.named("ring@0,star@5", 4, degree=3), "does not use degree"),
        (
            lambda: mhd.topology.switch([(0, matched()), (1, mhd.topology.ring(5))]),
            "5 clients, but",
        ),
    ],
)
def test_plans_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        make()


# Runs.

switched = functools.partial(
    mhd.topology.named, "random_matching@0,erdos_renyi@4", 4, redraw_every=3
)


@pytest.mark.parametrize("make", thinned([matched, switched], 2))
def test_messages_go_along_the_edges_of_their_step(make):
    topology = make(seed=2)
    sent = run(topology).summary["communication"]
    heard = np.array(sent["by_edge"]["predictions"])
    edges = over_steps(topology, 12).sum(axis=0)
    assert (heard <= edges).all() and (make is switched or (heard == edges).all())


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_graphs_only(tmp_path):
    redrawn = functools.partial(mhd.topology.random_regular, 4, degree=2)
    again = functools.partial(run, algorithm="isolated", workdir=tmp_path)
    again(redrawn(redraw_every=2, seed=1))
    assert again(redrawn(redraw_every=2, seed=1)).started_at == 12
    others = redrawn(redraw_every=3, seed=1), redrawn(redraw_every=2, seed=2), matched(seed=1)
    for other in others:
        with pytest.raises(mhd.ConfigError, match=r"edges of the graph changed|topology\.name is"):
            again(other)


@pytest.mark.parametrize(
    ("one", "others"),
    thinned(
        [
            ("random_matching", [{"seed": 9}]),
            ("random_regular", [{"seed": 9}, {"redraw_every": 7}]),
            ("islands", [{"meet_every": 5}]),
        ],
        3,
    ),
)
def test_another_graph_compiles_nothing(one, others):
    defaults = {"random_regular": {"degree": 2, "redraw_every": 2}, "islands": {"meet_every": 2}}
    own = defaults.get(one, {})
    run(mhd.topology.named(one, 4, **own), steps_per_dispatch=3)
    compiled = engine.dispatch._cache_size()
    for other in others:
        run(mhd.topology.named(one, 4, **own | other), steps_per_dispatch=5)
    assert engine.dispatch._cache_size() == compiled


def test_a_switch_is_traced_once():
    traced = []

    def own(step):
        traced.append(step)
        return (1 - jnp.eye(4)) * (step % 2)

    def switched(at_step):
        parts = (0, mhd.topology.random_matching(4)), (at_step, topologies.from_function(own, 4))
        return mhd.topology.switch(parts)

    one = prepare(switched(2), clients(), "mhd", **SETTINGS)
    other = prepare(switched(5), clients(), "mhd", **SETTINGS)
    carry = one.advance(one.start(), 0)
    traced.clear()
    for num_steps in (1, 3, 8):
        carry = one.advance(carry, num_steps)
    other.advance(other.start(), 12)
    assert not traced


@pytest.mark.slow
def test_seeds_go_together():
    seeds = (3, 0)
    graphs, who = [switched(seed=seed) for seed in seeds], [clients(seed=seed) for seed in seeds]
    runs = [
        prepare(graph, own, "mhd", seed=seed, **SETTINGS)
        for graph, own, seed in zip(graphs, who, seeds, strict=True)
    ]
    ((indices, joined),) = joining.partition(runs)
    assert indices == [0, 1] and joined is not None
    results = mhd.simulate_seeds(graphs, who, "mhd", seeds=seeds, **SETTINGS)
    for graph, own, seed, joined in zip(graphs, who, seeds, results, strict=True):
        alone = mhd.simulate(graph, own, "mhd", seed=seed, **SETTINGS)
        assert joined.summary["communication"] == alone.summary["communication"]
        assert_trees_close(
            joined.state.groups[0].params, alone.state.groups[0].params, rtol=1e-4, atol=1e-6
        )


# Edges that go one way, and weights.


def test_directed_graphs_by_name():
    ahead = np.eye(6)[(np.arange(6) + 1) % 6]
    np.testing.assert_array_equal(mhd.topology.ring(6, directed=True).at(0), ahead)
    powers = sum(np.linalg.matrix_power(ahead, n) for n in (1, 2, 4))
    exponential = mhd.topology.named("exponential", 6, directed=True)
    np.testing.assert_array_equal(exponential.at(0), powers)
    assert exponential.name == "directed exponential"


def test_arrows_of_an_edge_list(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("0 -> 1 2.5\n1->2\n2 3 0.5  # both ways\n3 -> 2\n")
    matrix = np.zeros((4, 4))
    matrix[1, 0], matrix[2, 1], matrix[3, 2], matrix[2, 3] = 2.5, 1, 0.5, 1
    np.testing.assert_array_equal(mhd.topology.named(str(path), 4).at(0), matrix)
    for wrong in ("0 ->\n", "0 - 1\n", "-> 1\n", "0 -> -> 1\n"):
        path.write_text(wrong)
        with pytest.raises(mhd.ConfigError, match="line 1: expected two clients"):
            mhd.topology.named(str(path), 4)


def test_knowledge_goes_along_arrows(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("0 -> 1\n1 -> 2\n")
    sent = run(mhd.topology.named(str(path), 4)).summary["communication"]
    heard = sent["by_edge"]["predictions"]
    np.testing.assert_array_equal(heard, 12 * np.eye(4, k=-1) * [[1], [1], [1], [0]])


@pytest.mark.parametrize("name", thinned(AVERAGING, 3))
def test_who_averages_refuses_edges_that_go_one_way(name):
    ring, directed = mhd.topology.ring(4), mhd.topology.ring(4, directed=True)
    late = topologies.from_function(
        lambda step: jnp.where(step < 11, ring.at(0), directed.at(0)), 4
    )
    switched = mhd.topology.switch([(0, ring), (11, directed)])
    for topology, step in ((mhd.topology.one_peer_exponential(4), 0), (switched, 11), (late, 11)):
        sentence = f"^{name} averages .* one way only at step {step};"
        with pytest.raises(mhd.ConfigError, match=sentence):
            prepare(topology, clients(), name, **SETTINGS)
    prepare(mhd.topology.switch([(0, ring), (12, directed)]), clients(), name, **SETTINGS)


def test_averages_follow_what_changes():
    undirected = {name for name, build in ALGORITHMS.items() if build().undirected}
    assert undirected == set(AVERAGING)
    heard = run(matched(seed=1), "dsgd").summary["communication"]["by_edge"]["weights"]
    np.testing.assert_array_equal(heard, over_steps(matched(seed=1), 12).sum(axis=0))


def test_weights_say_how_often_a_teacher_is_drawn(tmp_path):
    edges = tmp_path / "edges.txt"
    edges.write_text("1 -> 0 3\n2 -> 0\n1 2 0.5\n")
    matrix = np.array([[0, 3, 1], [0, 0, 0.5], [0, 0.5, 0]])
    np.save(tmp_path / "matrix.npy", matrix)
    graph = nx.DiGraph()
    graph.add_weighted_edges_from([(1, 0, 3), (2, 0, 1), (1, 2, 0.5), (2, 1, 0.5)])
    state = mhd.algorithms.isolated().init(jax.random.key(0), tiny_clients(3), tiny_batch(3))
    for given in (str(edges), str(tmp_path / "matrix.npy"), graph):
        topology = topologies.as_topology(given, 3)
        np.testing.assert_array_equal(topology.at(0), matrix)

    @jax.jit
    @jax.vmap
    def drawn(step):
        everyone = jnp.ones(3, bool)
        now, graph = state.replace(step=step), topology.at(step)
        return exchange.from_teachers(exchange.draw_teachers(now, graph, everyone, num_targets=1))

    shares = np.asarray(drawn(jnp.arange(3000))).mean(axis=0)
    np.testing.assert_allclose(shares, [[0, 0.75, 0.25], [0, 0, 1], [0, 1, 0]], atol=0.04)


def test_a_cycle_of_weights_keeps_them():
    weights = np.array([[[0, 3.0], [0.5, 0]], [[0, 0], [0, 0]]])
    topology = mhd.topology.from_array(weights)
    assert topology.schedule is schedules.cycle
    np.testing.assert_array_equal(over_steps(topology, 4), np.concatenate([weights, weights]))
