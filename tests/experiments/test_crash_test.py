"""Runs that are killed, and the command that kills them."""

import json

import pytest

from tests.builders import python

RUN = (
    "--algorithm=isolated --num_clients=3 --num_devices=1 --offline=0.3 --offline_steps=2 "
    "--model=mlp_small --batch_size=4 --validation_fraction=0.1 --keep_best --steps=24 "
    "--eval_every=4 --steps_per_dispatch=1"
)


def refused(cwd, *arguments):
    done = python("-m", "experiments.crash_test", *arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_what_cannot_be_tested_is_refused_and_nothing_stays(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot make the workdir" in refused(tmp_path, "--workdir=file/w")
    for given, sentence in (
        ("--stepz=3", "--train_flags: there is no flag --stepz; did you mean --steps?"),
        ("--algorithm='isolated", "--train_flags cannot be read: No closing quotation; close what"),
        ("--offline_steps=5", "--train_flags: --offline_steps needs --offline"),
    ):
        assert sentence in refused(tmp_path, f"--train_flags={given}", "--workdir=w")
        assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        (2, 376),  # as soon as a save has begun, and as a manifest is in its place
        (12, 63),  # the first at a random time
    ],
)
def test_a_run_that_is_killed_ends_as_one_left_alone(kills, seed, tmp_path):
    flags = (f"--kills={kills}", f"--seed={seed}", f"--train_flags={RUN}", "--workdir=w")
    done = python("-m", "experiments.crash_test", *flags, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "w" / "crash_test.json").read_text())
    assert found["kills"] == kills and found["unequal"] == [] and found["arrays"] > 5
