"""What a run would take, known without training, against what it then takes."""

import dataclasses
import functools

import pytest

import mhd_jax as mhd
from mhd_jax.engine.dry_run import dry_run
from mhd_jax.engine.prepare import prepare
from tests.builders import FEATURES, NUM_CLASSES, short, thinned, tiny_clients

STEPS = 5


@functools.cache
def clients():
    return tiny_clients(optimizer=mhd.optim.SGD())


FAULTS = mhd.Faults(link_loss=0.3, offline=0.3, offline_steps=2, joins={1: 2})
CASES = {
    "teachers that are drawn": ("ring", mhd.algorithms.mhd(ensembles=2, average_every=2), {}),
    "graphs, lost links and absent clients": (
        "random_matching",
        mhd.algorithms.mhd(num_targets="all"),
        {"faults": FAULTS},
    ),
    "rounds with a server": ("ring", mhd.algorithms.fedavg(local_steps=2), {}),
    "classes that batches hold": ("ring", mhd.algorithms.fedproto(local_steps=2), {}),
}


@pytest.mark.parametrize("case", short(CASES, "rounds with a server"))
def test_messages_are_known_before_training(case):
    topology, algorithm, settings = CASES[case]
    arguments = {"steps": STEPS, "batch_size": 4, "public_batch_size": 3, "num_devices": 1}
    run = prepare(topology, clients(), algorithm, **arguments, **settings)
    found = dry_run(run, 2, saves=False)["communication"]
    result = mhd.simulate(topology, clients(), algorithm, eval_every=5, **arguments, **settings)
    sent = result.summary["communication"]
    assert sent["total_bytes"] > 0
    assert found.pop("bytes_per_step") == sent["total_bytes"] / STEPS
    assert found == {name: sent[name] for name in found}


def test_what_training_decides_is_not_claimed():
    algorithm = mhd.algorithms.idkd(start_step=2, threshold=0.5)
    found = dry_run(prepare("ring", clients(), algorithm, steps=STEPS), 2, saves=False)
    sent = found["communication"]
    assert sent["bytes_per_step_per_edge"] > 0
    assert sent["total_bytes"] is sent["messages"] is sent["bytes_per_step"] is None


def test_shapes_parameters_and_evaluations():
    algorithm = mhd.algorithms.mhd(num_aux_heads=2)
    run = prepare("ring", clients(), algorithm, steps=7, batch_size=4, public_batch_size=3)
    found = dry_run(run, 3, saves=True)
    num_test = len(clients().data.test_labels)
    assert found["evaluations"] == 3  # at steps 3, 6 and 7
    assert found["shapes"] == {
        "private_batch": [4, 4, FEATURES],
        "public_batch": [3, FEATURES],
        "test_logits": [4, num_test, 3, NUM_CLASSES],
    }
    parameters = FEATURES * 5 + 3 * (5 * NUM_CLASSES + NUM_CLASSES)
    (model,) = found["models"]
    assert model["clients"] == [0, 1, 2, 3] and model["parameters"] == parameters
    # Parameters and momentum in float32, and the optimizer's count of steps.
    assert 0 <= model["state_bytes"] - 2 * 4 * parameters <= 8
    memory = found["memory"]
    assert memory["total_bytes"] == sum(memory["by_purpose"].values()) and memory["fits"]
    assert found["settings"]["hyperparameters"]["num_aux_heads"] == 2


def test_what_does_not_fit_is_said(monkeypatch):
    run = prepare("ring", clients(), "isolated", steps=2)
    monkeypatch.setattr("mhd_jax.engine.memory.whole_bytes", lambda devices=None: 100)
    assert dry_run(run, 1, saves=False)["memory"]["fits"] is False


@pytest.mark.parametrize("model", thinned(["mlp", "cnn"], 2))
def test_operations_are_those_of_all_clients(model):
    """Also where CPUs compute one client, or a few samples, after the other."""
    batch, found = 32, {}
    for count in (1, 4):
        some = mhd.make_clients("digits", count, model)
        settings = {"steps": 10, "batch_size": batch}
        taken = dry_run(prepare("complete", some, "isolated", **settings), 10, saves=False)["flops"]
        found[count] = taken["step"]
        assert taken["run"] == 10 * taken["step"]
    assert found[4] == pytest.approx(4 * found[1], rel=0.01)
    if model == "mlp":  # of widths 128 and 64; no gradient in the inputs
        first, others = 64 * 128, 128 * 64 + 64 * 10
        products = 2 * batch * (2 * first + 3 * others)
        assert products < found[1] < 1.3 * products


def test_nothing_is_computed_for_it(monkeypatch):
    """Neither samples nor the carry of the run are placed."""
    run = prepare("ring", clients(), "mhd", steps=2)
    monkeypatch.setattr("mhd_jax.engine.samples.device_data", None)
    forbidden = dataclasses.replace(run)
    monkeypatch.setattr(type(run), "start", None)
    assert dry_run(forbidden, 1, saves=False)["steps"] == 2
