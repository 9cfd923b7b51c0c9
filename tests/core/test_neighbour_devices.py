"""Exchange between the devices of neighbours alone, on four devices of the CPU."""

import itertools
import json

import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.core.neighbour_devices import distances
from mhd_jax.topology.distances import edges_of
from tests.builders import python

ON_FOUR = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
import numpy as np
from mhd_jax.core import client_axis, neighbour_devices

rng = np.random.default_rng(0)
tree = {"a": jnp.asarray(rng.normal(size=(8, 3, 2)), jnp.float32), "b": jnp.arange(8)}
graph = np.roll(np.eye(8), 1, axis=1) + np.roll(np.eye(8), 2, axis=1)  # i learns from i + 1 and i + 2
near = neighbour_devices.distances(graph > 0, 8, 4)
execution = client_axis.Execution(mesh=client_axis.client_mesh(4), near=near)
positions = jnp.stack([(jnp.arange(8) + n) % 8 for n in (1, 2, 0)], axis=1)
weights = jnp.asarray(graph * rng.uniform(size=(8, 8)) + np.eye(8), jnp.float32)
with client_axis.under(execution):
    rows = jax.jit(neighbour_devices.rows_of_neighbours)(tree, positions)
    sums = jax.jit(neighbour_devices.sum_over_neighbours)(tree["a"], weights)
    seen = jax.jit(neighbour_devices.seen_by_neighbours)(tree["b"])
for name, given in tree.items():
    np.testing.assert_array_equal(rows[name], np.asarray(given)[np.asarray(positions)])
are_seen = (graph > 0) | np.eye(8, dtype=bool)
np.testing.assert_array_equal(seen[are_seen], np.nonzero(are_seen)[1])
expected = np.einsum("ij,j...->i...", weights, tree["a"])
np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-6)
print(json.dumps(near))
"""
RUNS_ON_FOUR = """
import json, re, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import mhd_jax as mhd
from mhd_jax.core import neighbour_devices
from tests.builders import tiny_clients

def build(name):
    aux = {"num_aux_heads": 1}
    several = {
        "mhd": lambda: mhd.algorithms.mhd(**aux),
        "mhd, nan": lambda: mhd.algorithms.mhd(num_targets="all", **aux),
        "coded": lambda: mhd.algorithms.mhd(compression="int8", num_targets="all", **aux),
        "late": lambda: mhd.algorithms.mhd(teacher_delay=2, **aux),
        "dsgd": mhd.algorithms.dsgd,
        "distributed_distillation": mhd.algorithms.distributed_distillation,
    }
    return several[name]()

found, sizes = {}, {"batch_size": 4, "public_batch_size": 6}
choice = neighbour_devices.distances
for name in sys.argv[1:]:
    results = []
    for near in (choice, lambda *_: None):
        neighbour_devices.distances = near
        liars = {2: "nan", 5: "inf"} if name.endswith("nan") else None
        clients = tiny_clients(8, public_fraction=0.3, num_samples=120, adversaries=liars)
        run = mhd.prepare("ring", clients, build(name), steps=4, **sizes)
        result = mhd.simulate("ring", clients, build(name), steps=4, **sizes)
        ignored = [result.history[-1].get("non_finite", 0)]
        results.append([*(a.tolist() for a in jax.tree.leaves(result.state.groups[0].params)), ignored])
        text = run.lower(run.carry).compile().as_text()
        kinds = r"= \\(?\\w+\\[([\\d,]*)\\]\\S* .*?(all-gather|collective-permute)(?:-start)?\\("
        results.append(sorted({(kind, shape) for shape, kind in re.findall(kinds, text)}))
    found[name] = results
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("graph", "num_clients", "num_devices"),
    [("ring", 16, 4), ("torus", 16, 8), ("chain", 12, 6), ("complete", 8, 4), ("empty", 6, 3)],
)
def test_distances_between_devices_of_neighbours(graph, num_clients, num_devices):
    edges = edges_of(mhd.topology.named(graph, num_clients), 10)
    each, expected = num_clients // num_devices, {0}
    for i, j in itertools.product(range(num_clients), repeat=2):
        if edges[i, j]:
            expected.add((j // each - i // each) % num_devices)
    found = distances(edges, num_clients, num_devices)
    assert found == (tuple(sorted(expected)) if len(expected) < num_devices else None)


def test_clients_that_fill_devices_have_no_neighbours():
    assert distances(np.array([[0, 1], [1, 0]], bool), 4, 4) == (0, 1, 3)


def test_rows_and_sums_equal_those_of_all():
    assert json.loads(python("-c", ON_FOUR).stdout) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["mhd", "mhd, nan", "dsgd"], ["coded", "late", "distributed_distillation"]]
)
def test_runs_are_the_same_and_nothing_goes_to_all_devices(names):
    found = json.loads(python("-c", RUNS_ON_FOUR, *names).stdout)
    for name, (near, crossing, anywhere, crossing_anywhere) in found.items():
        for one, other in zip(near, anywhere, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        shapes = {kind: [] for kind in ("all-gather", "collective-permute")}
        for kind, shape in crossing:
            shapes[kind].append(shape)
        assert shapes["collective-permute"], name
        # What all devices get has a number for each client, or pair of clients.
        assert set(shapes["all-gather"]) <= {"8", "8,8"}, name
        if name.startswith("mhd"):  # where neighbours alone are told whose messages are finite
            assert "8" not in shapes["all-gather"], name
        assert any(kind == "all-gather" and len(shape) > 3 for kind, shape in crossing_anywhere)
