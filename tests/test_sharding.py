"""Clients spread over eight virtual CPU devices, in a process of their own: where arrays live, and what crosses.

That every algorithm learns there what it learns on one device is test_determinism's.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json, re, shutil, sys, warnings
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from flax import nnx
import mhd_jax as mhd
from mhd_jax.run import prepare

def narrow(width, *, rngs):
    return nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(64, width, rngs=rngs), nnx.relu)

unlike = ["mlp_small"] * 5 + [mhd.models.from_nnx(narrow, 12)] * 7
data = mhd.data.load("digits")
sizes = dict(steps=12, batch_size=8, public_batch_size=16)
CASES = {
    "fewer clients than devices": ("ring", 3, "mlp_small", "naive"),
    "mixed, padded, each its own samples, ensembles, graphs drawn anew": (
        "ring@0,random_matching@4", 12, unlike, mhd.algorithms.mhd(
            num_aux_heads=1, public_batch="independent", embedding_projection="linear",
            ensembles=[[0, 1, 2], [3, 4], [6, 11]], average_every=5)),
    "teachers from pools, some lie": ("ring", 12, "mlp_small", mhd.algorithms.mhd(
        num_aux_heads=1, pool_size=2, pool_refresh=3, num_targets="all", target_selection="robust")),
}

def run(case, num_devices, workdir=None, callbacks=(), **options):
    topology, num_clients, model, algorithm = CASES[case]
    liars = {0: "label_flip", 3: "nan", 11: "uniform"} if "some lie" in case else {}
    clients = mhd.make_clients(data, num_clients, model, partition="iid", adversaries=liars)
    (result,) = mhd.simulate_many(
        [dict(topology=topology, clients=clients, algorithm=algorithm, num_devices=num_devices,
              **sizes, **options)],
        eval_every=6, workdirs=workdir and [workdir], callbacks=callbacks, write_reports=False)
    last = result.history[-1]
    devices = {d.id for leaf in jax.tree.leaves(result.state.groups) for d in leaf.devices()}
    parts = {len({str(part.index[0]) for part in leaf.addressable_shards})
             for leaf in jax.tree.leaves(result.state.groups)}
    return {"started_at": result.started_at, "train": last["train"],
            "per_client": last["per_client"], "messages": last["messages"],
            "devices": len(devices), "parts": sorted(parts),
            "clients": len(result.summary["per_client"])}

results = {case: [run(case, 1), run(case, None)] for case in CASES}

padded = next(case for case in CASES if "padded" in case)
results["streamed"] = run(padded, None, data_placement="host")["train"]

def collectives(algorithm):
    clients = mhd.make_clients(data, 8, "mlp_small", partition="iid")
    run = prepare("random_matching", clients, algorithm, **sizes)
    collective = r"= (\\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    return re.findall(collective, run.lower(run.carry).compile().as_text())

results["collectives"] = {name: collectives(name) for name in ("mhd", "isolated")}

def own_samples_on_own_device():
    clients = mhd.make_clients(data, 12, "mlp_small")
    run = prepare("ring", clients, "mhd", **sizes)
    parts = {part.device.id: np.asarray(part.data)[0] for part in run.data.inputs.addressable_shards}
    starts, lengths = np.asarray(run.data.starts), np.asarray(run.data.sizes)
    each = len(lengths) // 8
    found = [parts[k // each][starts[k]:starts[k] + lengths[k]] for k in range(len(lengths))]
    return (len(parts) == 8 and all(part.shape == parts[0].shape for part in parts.values())
            and all((found[k] == data.inputs[clients.owner == k]).all() for k in range(len(lengths))))

results["own samples on own device"] = bool(own_samples_on_own_device())

def stop(record):
    raise KeyboardInterrupt

def moved(case, folder):  # stopped on eight devices, where 12 clients are padded to 16
    try:
        run(case, 8, folder, callbacks=stop)
    except KeyboardInterrupt:
        pass
    shutil.copytree(folder, folder + " 5")
    with warnings.catch_warnings(record=True) as told:
        found = {1: run(case, 1, folder), 5: run(case, 5, folder + " 5")}
    return {**found, "told": [str(warning.message) for warning in told]}

results["moved"] = moved("teachers from pools, some lie", sys.argv[1])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = pathlib.Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    folder = tmp_path_factory.mktemp("sharded") / "run"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "devices", "parts"),
    [
        ("fewer clients than devices", 6, 3),  # two devices share each client's samples
        ("mixed, padded, each its own samples, ensembles, graphs drawn anew", 8, 8),
        ("teachers from pools, some lie", 8, 8),
    ],
)
def test_sharded_equals_unsharded(case, devices, parts, results):
    one, many = results[case]
    assert (one["devices"], many["devices"]) == (1, devices)
    assert many["parts"] == [parts]  # of every array of the clients' state
    assert one["messages"] == many["messages"] and one["clients"] == many["clients"]
    for name, value in one["train"].items():
        np.testing.assert_allclose(many["train"][name], value, rtol=1e-3, atol=1e-4)
    for metric in ("beta_sh", "beta_priv"):
        for head, values in one["per_client"][metric].items():
            # An answer near a tie may change sides: at most a few of 360 test samples.
            np.testing.assert_allclose(many["per_client"][metric][head], values, atol=0.02)


def test_streams_bring_every_device_its_own_clients_samples(results):
    _, many = results["mixed, padded, each its own samples, ensembles, graphs drawn anew"]
    assert results["streamed"] == pytest.approx(many["train"], rel=1e-6)


def test_only_predictions_cross_devices(results):
    """K = 8, P = 16, m = 3, C = 10, D = 64; the draw's mask and count are all that is left."""
    crossing = [shape.split("{")[0] for shape, _ in results["collectives"]["mhd"]]
    assert set(crossing) <= {"f32[8,16,3,10]", "f32[8,16,64]", "f32[8,8]", "pred[8,8]"}
    assert {"f32[8,16,3,10]", "f32[8,16,64]"} <= set(crossing)
    assert results["collectives"]["isolated"] == []


@pytest.mark.parametrize("devices", [1, 5])
def test_a_checkpoint_moves_to_another_number_of_devices(devices, results):
    whole, moved = results["teachers from pools, some lie"][0], results["moved"][str(devices)]
    assert moved["started_at"] == 6 and whole["started_at"] == 0
    assert (moved["devices"], moved["parts"]) == (devices, [devices])
    assert any(f"devices 8 there, {devices} now" in told for told in results["moved"]["told"])
    assert moved["messages"] == whole["messages"] and moved["clients"] == whole["clients"]
    for name, value in whole["train"].items():
        np.testing.assert_allclose(moved["train"][name], value, rtol=1e-3, atol=1e-4)
    for head, values in whole["per_client"]["beta_sh"].items():
        np.testing.assert_allclose(moved["per_client"]["beta_sh"][head], values, atol=0.02)


def test_private_samples_live_on_their_own_clients_device(results):
    assert results["own samples on own device"]
