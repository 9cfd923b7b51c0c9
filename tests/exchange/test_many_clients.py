"""Graphs in which each of many clients has few neighbours: they alone are looked at."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax.core.client_axis import Execution, neighbour_slots, under
from mhd_jax.engine import joint_runs
from mhd_jax.engine.prepare import prepare
from tests.builders import assert_trees_close, assert_trees_equal, tiny_batch, tiny_clients

K = 66
SETTINGS = {"batch_size": 2, "public_batch_size": 3, "steps": 6, "num_devices": 1}


@functools.cache
def clients(seed=0):
    return tiny_clients(K, num_samples=300, seed=seed, optimizer=mhd.optim.SGD())


def graphs(num_clients, most):
    """Weights [K, K] in which nobody has more than `most` neighbours."""
    row = st.dictionaries(
        st.integers(0, num_clients - 1), st.sampled_from([0.25, 1, 9]), max_size=most
    )
    return st.lists(row, min_size=num_clients, max_size=num_clients).map(
        lambda rows: np.array(
            [[row.get(j, 0) * (i != j) for j in range(num_clients)] for i, row in enumerate(rows)],
            np.float32,
        )
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(graphs(20, 3), st.sampled_from([1, 2, "all"]))
def test_the_same_teachers_are_drawn(graph, num_targets):
    state = mhd.algorithms.isolated().init(jax.random.key(1), tiny_clients(20), tiny_batch(20))
    someone = jnp.arange(20) != 4
    far = exchange.draw_teachers(state, jnp.asarray(graph), someone, num_targets)
    with under(Execution(most_neighbours=4)):
        assert neighbour_slots(20) == 4
        near = exchange.draw_teachers(state, jnp.asarray(graph), someone, num_targets)
        listed = exchange.neighbours(jnp.asarray(graph))
    slots = near.valid.shape[1]
    assert slots == (4 if num_targets == "all" else num_targets)
    assert not far.valid[:, slots:].any()
    assert (near.valid == far.valid[:, :slots]).all()
    assert (near.positions == far.positions[:, :slots])[near.valid].all()
    for row, who, taken in zip(graph, listed.positions, listed.valid, strict=True):
        assert np.array_equal(who[taken], np.flatnonzero(row))


def test_an_average_over_few_neighbours():
    graph = mhd.topology.random_regular(K, 3).at(0)
    weights = mhd.topology.metropolis_hastings(graph)
    values = {"a": jax.random.normal(jax.random.key(0), (K, 5, 2)), "b": jnp.arange(float(K))}
    expected = jax.tree.map(lambda a: np.einsum("ij,j...->i...", weights, a), values)
    execution = Execution(most_neighbours=3)

    @jax.jit
    def average(values, weights):
        with under(execution):
            return exchange.average_neighbours(values, weights)

    assert "while" in average.lower(values, weights).as_text()  # not a product of matrices
    assert_trees_close(average(values, weights), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("ring", {}, 2),
        ("star", {}, 7),
        ("empty", {}, 0),
        ("complete", {}, 7),
        ("random_matching", {}, 1),
        ("one_peer_exponential", {}, 1),
        ("islands", {"meet_every": 5}, 4),
        ("random_regular", {"degree": 3, "redraw_every": 2}, 3),
        ("erdos_renyi", {"redraw_every": 3}, None),
        ("ring@0,star@2,ring@40", {}, 7),
    ],
)
def test_the_largest_neighbourhood(name, options, most):
    graph = mhd.topology.named(name, 8, **options)
    seen = (np.asarray(jax.jit(jax.vmap(graph.at))(jnp.arange(50))) > 0).sum(axis=2).max()
    assert graph.most_neighbours == seen == (seen if most is None else most)


def test_a_function_of_the_step_does_not_tell_its_largest_neighbourhood():
    own = mhd.topology.from_function(lambda step: 1 - jnp.eye(K), K)
    assert own.most_neighbours is None
    assert mhd.topology.switch([(0, mhd.topology.ring(K)), (3, own)]).most_neighbours is None
    assert prepare(own, clients(), "mhd", **SETTINGS).execution.most_neighbours is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        mhd.algorithms.mhd(num_targets="all"),
        mhd.algorithms.mhd(num_targets=2, pool_size=3, pool_refresh=2),
        mhd.algorithms.qg_dsgd(),
    ],
    ids=["mhd", "pools", "qg_dsgd"],
)
def test_a_run_is_the_same(algorithm):
    run = prepare(mhd.topology.random_regular(K, 3), clients(), algorithm, **SETTINGS)
    assert run.execution.most_neighbours == 4  # a power of two
    everyone = dataclasses.replace(run.execution, most_neighbours=None)
    whole = dataclasses.replace(run, execution=everyone)
    few, all_others = (each.advance(each.start(), 6) for each in (run, whole))
    assert_trees_equal(few.messages, all_others.messages)
    assert_trees_close(few.state.groups, all_others.state.groups, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_graphs_of_unequal_neighbourhoods_go_together():
    graphs = mhd.topology.ring(K), mhd.topology.random_regular(K, 5)
    runs = [prepare(graph, clients(), "dsgd", **SETTINGS) for graph in graphs]
    assert [run.execution.most_neighbours for run in runs] == [2, 8]
    ((indices, joined),) = joint_runs.partition(runs)
    assert indices == [0, 1]
    carries = joined.split(joined.advance(joined.join([run.start() for run in runs]), 3))
    for run, carry in zip(runs, carries, strict=True):
        alone = run.advance(run.start(), 3)
        assert_trees_close(carry.state.groups[0].params, alone.state.groups[0].params, rtol=1e-4)


@pytest.mark.slow
def test_edges_of_many_clients_are_not_told_one_by_one():
    many = tiny_clients(2 * K, num_samples=600, optimizer=mhd.optim.SGD())
    result = mhd.simulate("ring", many, "mhd", **SETTINGS)
    assert "diagnostics" not in result.summary
    communication = result.summary["communication"]
    assert communication["by_edge"] == {}
    assert communication["messages"] == {"predictions": 6 * 2 * K}
