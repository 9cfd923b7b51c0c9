"""Clients spread over eight virtual CPU devices, in a process of their own: where samples live, and what crosses.

That every algorithm learns there what it learns on one device, and where its state lives, is
test_determinism's.
"""

import json
import math
import re

import pytest

from tests.builders import ROOT, python

pytestmark = pytest.mark.slow

PROGRAM = """
import json, re
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import mhd_jax as mhd
from mhd_jax.engine.prepare import prepare

data = mhd.data.load("digits")
sizes = dict(steps=12, batch_size=8, public_batch_size=16)

def collectives(algorithm):
    clients = mhd.make_clients(data, 8, "mlp_small", partition="iid")
    run = prepare("random_matching", clients, algorithm, **sizes)
    collective = r"= (\\(.*?\\)|\\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    return re.findall(collective, run.lower(run.carry).compile().as_text())

def own_samples_on_own_device():
    clients = mhd.make_clients(data, 12, "mlp_small")
    run = prepare("ring", clients, "mhd", **sizes)
    parts = {part.device.id: np.asarray(part.data)[0] for part in run.data.inputs.addressable_shards}
    starts, lengths = np.asarray(run.data.starts), np.asarray(run.data.sizes)
    each = len(lengths) // 8
    found = [parts[k // each][starts[k]:starts[k] + lengths[k]] for k in range(len(lengths))]
    return (len(parts) == 8 and all(part.shape == parts[0].shape for part in parts.values())
            and all((found[k] == data.inputs[clients.owner == k]).all() for k in range(len(lengths))))

def by_hand(algorithm, models):
    # the largest difference between a user's own loop on two devices and simulate's
    clients = mhd.make_clients(data, len(models), models, partition="iid")
    given = dict(topology="ring", clients=clients, algorithm=algorithm, num_devices=2, **sizes)
    run = mhd.prepare(**given)
    take = lambda state, _: (run.train_step(state, run.batch(state), run.graph(state.step))[0], None)
    state = jax.jit(lambda state: jax.lax.scan(take, state, length=12)[0])(run.init())
    result = mhd.simulate(**given, progress=False)
    pairs = [jax.tree.leaves([g.params for g in s.groups]) for s in (state, result.state)]
    return max(float(abs(np.asarray(a) - b).max()) for a, b in zip(*pairs))

hands = {
    "mhd": by_hand("mhd", ["mlp_small"] * 3),
    "distributed_distillation": by_hand("distributed_distillation", ["mlp_small"] * 3),
    "ccl": by_hand("ccl", ["mlp_small"] * 3),
    "unlike models": by_hand("mhd", ["mlp_small"] * 2 + ["mlp"] * 2),
}
results = {name: collectives(name) for name in ("mhd", "isolated", "fedavg")}
print(json.dumps({**results, "by hand": hands, "own samples on own device": bool(own_samples_on_own_device())}))
"""


@pytest.fixture(scope="module")
def results():
    done = python("-c", PROGRAM, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_only_predictions_cross_devices(results):
    """K = 8, P = 16, m = 3, C = 10, D = 64; the draw's mask and count are all that is left."""
    crossing = [shape.split("{")[0] for shape, _ in results["mhd"]]
    assert set(crossing) <= {"f32[8,16,3,10]", "f32[8,16,64]", "f32[8,8]", "pred[8,8]"}
    assert {"f32[8,16,3,10]", "f32[8,16,64]"} <= set(crossing)
    assert results["isolated"] == []


def test_a_mean_of_all_models_crosses_as_one_model(results):
    """Devices add up the parameters of their own clients, which stay there."""
    assert {kind for _, kind in results["fedavg"]} == {"all-reduce"}
    shapes = re.findall(r"f32\[([\d,]*)\]", " ".join(shape for shape, _ in results["fedavg"]))
    numbers = [math.prod(map(int, shape.split(","))) for shape in shapes if shape]
    assert sum(numbers) == (64 * 8 + 8) + 2 * 8 + (8 * 64 + 64) + 2 * 64 + (64 * 10 + 10)


def test_private_samples_live_on_their_own_clients_device(results):
    assert results["own samples on own device"]


def test_a_users_own_loop_on_two_devices_is_what_simulate_computes(results):
    assert results["by hand"] == pytest.approx(dict.fromkeys(results["by hand"], 0), abs=1e-6)


def test_the_guides_programs_by_hand_run_on_two_devices():
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs/by_hand.md").read_text(), re.S)
    first = 'import jax\njax.config.update("jax_num_cpu_devices", 2)\n'
    done = python("-c", first + "\n".join(programs) + "\nprint(run.execution.num_shards)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "2"
