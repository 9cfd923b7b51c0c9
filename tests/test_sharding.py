"""Clients spread over devices learn what they learn on one. Eight virtual CPU devices, in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json, re, shutil, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
import numpy as np
from flax import nnx
import mhd_jax as mhd
from mhd_jax.run import prepare

def narrow(width, *, rngs):
    return nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(64, width, rngs=rngs), nnx.relu)

unlike = ["mlp"] * 5 + [mhd.models.from_nnx(narrow, 12)] * 7
data = mhd.data.load("digits")
kwargs = dict(steps=12, eval_every=6, batch_size=8, public_batch_size=16)
CASES = {
    "mhd": ("ring", 8, "mlp", "mhd"),
    "fewer clients than devices": ("ring", 3, "cnn", "mhd"),
    "mixed, padded, each its own samples, ensembles": ("ring", 12, unlike, mhd.algorithms.mhd(
        public_batch="independent", embedding_projection="linear",
        ensembles=[[0, 1, 2], [3, 4], [6, 11]], average_every=5)),
    "teachers from pools, some lie": ("ring", 12, "mlp", mhd.algorithms.mhd(
        pool_size=2, pool_refresh=3, num_targets="all", target_selection="robust")),
    "cross features, another graph at every step": (
        "ring@0,random_matching@4", 12, "mlp", mhd.algorithms.ccl(averaging_rate=0.9)),
}

def run(case, num_devices, workdir=None, **options):
    topology, num_clients, model, algorithm = CASES[case]
    liars = {0: "label_flip", 3: "nan", 11: "uniform"} if "some lie" in case else {}
    clients = mhd.make_clients(data, num_clients, model, partition="iid", adversaries=liars)
    result = mhd.simulate(topology, clients, algorithm, num_devices=num_devices, workdir=workdir,
                          **kwargs, **options)
    last = result.history[-1]
    devices = {d.id for leaf in jax.tree.leaves(result.state.groups) for d in leaf.devices()}
    parts = {len({str(part.index[0]) for part in leaf.addressable_shards})
             for leaf in jax.tree.leaves(result.state.groups)}
    return {"started_at": result.started_at, "train": last["train"], "per_client": last["per_client"], "messages": last["messages"],
            "consensus": result.summary.get("consensus"), "devices": len(devices), "parts": sorted(parts), "clients": len(result.summary["per_client"])}

results = {case: [run(case, 1), run(case, None)] for case in CASES}

padded = "mixed, padded, each its own samples, ensembles"
results["streamed"] = run(padded, None, data_placement="host")["train"]

def text(algorithm, topology):
    clients = mhd.make_clients(data, 8, "mlp", partition="iid")
    run = prepare(topology, clients, algorithm, **kwargs)
    collective = r"= (\\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    return re.findall(collective, run.lower(run.carry).compile().as_text())

results["collectives"] = {
    f"{name}, {topology}": text(name, topology)
    for name, topology in (("mhd", "ring"), ("mhd", "random_matching"), ("isolated", "ring"))
}

def own_samples_on_own_device():
    clients = mhd.make_clients(data, 12, "mlp")
    run = prepare("ring", clients, "mhd", **kwargs)
    parts = {part.device.id: np.asarray(part.data)[0] for part in run.data.inputs.addressable_shards}
    starts, sizes = np.asarray(run.data.starts), np.asarray(run.data.sizes)
    each = len(sizes) // 8
    found = [parts[k // each][starts[k]:starts[k] + sizes[k]] for k in range(len(sizes))]
    return (len(parts) == 8 and all(part.shape == parts[0].shape for part in parts.values())
            and all((found[k] == data.inputs[clients.owner == k]).all() for k in range(len(sizes))))

results["own samples on own device"] = bool(own_samples_on_own_device())
def seeds_together():
    who = [mhd.make_clients(data, 8, "mlp", partition="iid", seed=seed) for seed in (0, 1)]
    found = mhd.simulate_seeds(["ring", "ring"], who, "mhd", seeds=[0, 1], **kwargs)
    return [result.history[-1]["train"] for result in found]

results["seeds together"] = seeds_together()

def stop(record):
    raise KeyboardInterrupt

def moved(case, folder):  # stopped on eight devices, where 12 clients are padded to 16
    try:
        run(case, 8, folder, callbacks=stop)
    except KeyboardInterrupt:
        pass
    shutil.copytree(folder, folder + " 5")
    return {1: run(case, 1, folder), 5: run(case, 5, folder + " 5")}

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
        ("mhd", 8, 8),
        ("fewer clients than devices", 6, 3),  # two devices share each client's samples
        ("mixed, padded, each its own samples, ensembles", 8, 8),
        ("teachers from pools, some lie", 8, 8),
        ("cross features, another graph at every step", 8, 8),
    ],
)
def test_sharded_equals_unsharded(case, devices, parts, results):
    one, many = results[case]
    assert (one["devices"], many["devices"]) == (1, devices)
    assert many["parts"] == [parts]  # of every array of the clients' state
    assert one["messages"] == many["messages"] and one["clients"] == many["clients"]
    for name, value in one["train"].items():
        np.testing.assert_allclose(many["train"][name], value, rtol=1e-3, atol=1e-4)
    assert (
        (one["consensus"] is None) == (many["consensus"] is None) == ("cross features" not in case)
    )
    for metric in ("beta_sh", "beta_priv"):
        if one["consensus"]:
            values = one["consensus"][metric]["main"]
            np.testing.assert_allclose(many["consensus"][metric]["main"], values, atol=0.02)
        for head, values in one["per_client"][metric].items():
            # An answer near a tie may change sides: at most a few of 360 test samples.
            np.testing.assert_allclose(many["per_client"][metric][head], values, atol=0.02)


def test_streams_bring_every_device_its_own_clients_samples(results):
    _, many = results["mixed, padded, each its own samples, ensembles"]
    assert results["streamed"] == pytest.approx(many["train"], rel=1e-6)


@pytest.mark.parametrize("topology", ["ring", "random_matching"])
def test_only_predictions_cross_devices(topology, results):
    """K = 8, P = 16, m = 3, C = 10, D = 64; the draw's mask and count are all that is left."""
    crossing = [shape.split("{")[0] for shape, _ in results["collectives"][f"mhd, {topology}"]]
    assert set(crossing) <= {"f32[8,16,3,10]", "f32[8,16,64]", "f32[8,8]", "pred[8,8]"}
    assert {"f32[8,16,3,10]", "f32[8,16,64]"} <= set(crossing)
    assert results["collectives"]["isolated, ring"] == []


def test_seeds_together_equal_one_alone(results):
    first, second = results["seeds together"]
    for name, value in results["mhd"][0]["train"].items():
        np.testing.assert_allclose(first[name], value, rtol=1e-3, atol=1e-4)
    assert first["loss"] != second["loss"]


@pytest.mark.parametrize("devices", [1, 5])
def test_a_checkpoint_moves_to_another_number_of_devices(devices, results):
    whole, moved = results["teachers from pools, some lie"][0], results["moved"][str(devices)]
    assert moved["started_at"] == 6 and whole["started_at"] == 0
    assert (moved["devices"], moved["parts"]) == (devices, [devices])
    assert moved["messages"] == whole["messages"] and moved["clients"] == whole["clients"]
    for name, value in whole["train"].items():
        np.testing.assert_allclose(moved["train"][name], value, rtol=1e-3, atol=1e-4)
    for head, values in whole["per_client"]["beta_sh"].items():
        np.testing.assert_allclose(moved["per_client"]["beta_sh"][head], values, atol=0.02)


def test_private_samples_live_on_their_own_clients_device(results):
    assert results["own samples on own device"]
