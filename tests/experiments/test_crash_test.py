"""A run that is killed, and the command that kills it."""

import json
import subprocess
import sys

from tests.builders import ROOT

RUN = (
    "--algorithm=isolated --num_clients=3 --num_devices=1 --offline=0.3 --offline_steps=2 "
    "--validation_fraction=0.1 --keep_best --steps=24 --eval_every=4 --steps_per_dispatch=1"
)

SEED = 63  # early moments: a random time, a save begun, a manifest in its place


def test_a_run_that_is_killed_ends_as_one_left_alone(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.crash_test",
        "--kills=3",
        f"--seed={SEED}",
        f"--train_flags={RUN}",
    ]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'w'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "w" / "crash_test.json").read_text())
    assert found["kills"] == 3 and found["unequal"] == [] and found["arrays"] > 5
