"""One run on two processes: the same results and stop, and an orderly end when one of them dies."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import socket

import numpy as np
import pytest

from mhd_jax.cli.commands import train
from tests.builders import python, start_python, tiny_dataset, wait_until

STEPS = 1000
STOPPED_AT = 100  # by the rule; some of these steps are left when a process dies
FLAGS = ["--topology=ring", "--num_clients=5", "--batch_size=8", "--public_batch_size=16"]
FLAGS += ["--model=mlp_small", "--num_aux_heads=1", "--schedule=constant", "--eval_every=10"]
FLAGS += ["--partition=iid", "--public_fraction=0.2"]
STOPPING = [f"--steps={STEPS}", "--early_stopping=train/aux_loss", "--patience=7"]


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def samples(tmp_path_factory):
    """A file of few samples, which takes less long to load than the digits."""
    path = tmp_path_factory.mktemp("data") / "samples.npz"
    data = tiny_dataset(150)
    test = {"test_images": data.test_inputs, "test_labels": data.test_labels}
    np.savez(path, images=data.inputs, labels=data.labels, **test)
    FLAGS.append(f"--dataset={path}")
    yield
    FLAGS.pop()


def start(workdir, *flags):
    """A process of the command line, with one device."""
    return start_python(
        *("-m", "experiments.train", f"--workdir={workdir}", *FLAGS, *flags),
        XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
    )


def start_two(workdir, *flags):
    port = free_port()
    both = (f"--coordinator_address=localhost:{port}", "--num_processes=2", *flags)
    return [start(workdir, *both, f"--process_id={i}") for i in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    process = start(workdir, *STOPPING)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return workdir


def assert_same_lines(one, other):
    for a, b in zip(one, other, strict=True):
        assert a["step"] == b["step"] and a["messages"] == b["messages"]
        for name, value in a["train"].items():
            np.testing.assert_allclose(b["train"][name], value, rtol=1e-4)
        for metric in ("beta_sh", "beta_priv"):
            for head, values in a["per_client"][metric].items():
                np.testing.assert_allclose(b["per_client"][metric][head], values, atol=0.02)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_what_a_run_records_repeats_it(alone, tmp_path):
    """The command of `config.json`, in another folder and another process: the same, bit for bit."""
    found = json.loads((alone / "config.json").read_text())["environment"]
    program, *arguments = shlex.split(found["command"])
    assert program == "python"
    moved = [a.replace(f"--workdir={alone}", "--workdir=again") for a in arguments]
    assert moved != arguments
    done = python(*moved, cwd=tmp_path, XLA_FLAGS=found["xla_flags"], PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr

    def told(folder):
        summary = json.loads((folder / "summary.json").read_text())
        del summary["timing"]
        return summary, [{**line, "seconds": None} for line in lines(folder)]

    assert told(tmp_path / "again") == told(alone)
    assert told(alone)[0]["execution"] == {
        "num_devices": 1,
        "client_chunk": None,
        "recompute": False,
        "data_placement": "device",
        "runs_at_once": 1,
    }


def wait_for_lines(count, processes, folder):
    """Until so many evaluations were made, while all processes live."""
    there = (folder / "metrics.jsonl").exists
    wait_until(lambda: there() and len(lines(folder)) >= count, *processes)


def stop_of(folder):
    """What a run's summary says of its end."""
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary[name] for name in ("status", "stopped_because", "best_step", "steps")}


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_then_resumes_and_stops_as_that_of_one(
    alone, tmp_path
):
    """Samples come as streams before, and are on the devices after."""
    folder, flags = tmp_path / "two", [*STOPPING, "--steps_per_dispatch=1"]
    processes = start_two(folder, *flags, "--data_placement=host")
    wait_for_lines(1, processes, folder)
    processes[1].send_signal(signal.SIGKILL)
    _, errors = processes[0].communicate(timeout=60)
    processes[1].communicate(timeout=60)
    assert processes[0].returncode == 4
    assert "another process of this run has ended" in errors

    cut_at = lines(folder)[-1]["step"]
    again = start_two(folder, *flags, "--data_placement=device")
    outputs = [process.communicate(timeout=120) for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert ["mean over clients" in printed for printed, _ in outputs] == [True, False]
    assert 10 <= cut_at < STOPPED_AT
    assert_same_lines(lines(alone), lines(folder))  # none lost, none repeated
    assert stop_of(folder) == stop_of(alone)
    assert stop_of(alone)["status"] == "stopped" and stop_of(alone)["steps"] == STOPPED_AT


@pytest.mark.slow
def test_one_process_that_is_told_to_stop_stops_all_of_them(tmp_path):
    folder = tmp_path / "two"
    processes = start_two(folder, "--steps=1000000", "--steps_per_dispatch=1")
    wait_for_lines(2, processes, folder)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [130, 130]
    assert all("the same command resumes it" in errors for _, errors in outputs)
    told = [record["step"] for record in lines(folder)]
    assert told == list(range(10, 10 * len(told) + 1, 10))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num_processes=2"], "needs --coordinator_address, --process_id too"),
        (
            ["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"],
            "--process_id counts from 0 to 1, not 2",
        ),
    ],
)
def test_incomplete_flags_are_refused(flags, sentence, call):
    status, _, errors = call(train, "--workdir=run", *flags)
    assert status == 2 and sentence in errors
    assert not pathlib.Path("run").exists()
