"""Real processes in one folder: several at once, and stopped where no training is there to save."""

import contextlib
import json
import os
import pathlib
import signal

import pytest

import mhd_jax as mhd
from mhd_jax.cli.commands import train
from mhd_jax.runs.finished import has_report
from tests.builders import contents, start_python, tiny_run, wait_until

FLAGS = ["--algorithm=isolated", "--model=mlp_small", "--num_clients=3", "--batch_size=4"]
FLAGS += ["--steps=6", "--eval_every=3", "--num_devices=1"]


@contextlib.contextmanager
def started(moment):
    """A process of the run in ./run, stopped in its tracks once `moment` says so."""
    process = start_python("-m", "experiments.train", *FLAGS, "--workdir=run")
    try:
        wait_until(lambda: moment(process), process)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process):
    """Sends SIGTERM, and gives the last line that the process wrote."""
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    return errors.splitlines()[-1]


def has_parsed_its_flags(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def has_begun(process):
    return pathlib.Path("run/config.json").exists()


def writes_its_report(process):
    return any(pathlib.Path("run").glob("*.png"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="sees a process in /proc")
@pytest.mark.slow
def test_a_run_that_is_stopped_outside_of_training_or_started_twice(call, tmp_path):
    with started(has_parsed_its_flags) as process:
        assert end(process) == "interrupted; the same command goes on from what was saved"
    assert not pathlib.Path("run").exists()

    with started(has_begun) as process:
        before = contents(pathlib.Path("run"))
        status, _, errors = call(train, *FLAGS, "--workdir=run")
        assert status == 2 and f"run is in use by process {process.pid} on" in errors
        assert contents(pathlib.Path("run")) == before
        end(process)

    with started(writes_its_report) as process:
        assert end(process) == "interrupted; the same command goes on from what was saved"
    assert pathlib.Path("run/summary.json").exists()  # the record is whole
    assert not has_report(pathlib.Path("run"))
    assert pathlib.Path("run/lock").exists()  # and in nobody's way

    status, printed, errors = call(train, *FLAGS, "--workdir=run")
    assert status == 0 and "holds this run, finished" in printed, errors
    assert has_report(pathlib.Path("run"))
    lines = pathlib.Path("run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]


def test_what_is_asked_too_late_to_be_saved_for_is_passed_on(tmp_path):
    def stop(record):
        if record["step"] == 2:  # the last one, after the question whether to stop
            signal.raise_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as stopped:
            tiny_run(tmp_path, callbacks=stop)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert not isinstance(stopped.value, mhd.InterruptedRun)
    assert not (tmp_path / "summary.json").exists()
    assert tiny_run(tmp_path).started_at == 2
