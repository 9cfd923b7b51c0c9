"""What a run holds does not grow with its steps, evaluations and checkpoints."""

import dataclasses
import json

import pytest

import mhd_jax as mhd
from experiments import endurance
from tests.builders import SMALL, simulate_in, tiny_clients


@pytest.mark.slow
def test_a_run_holds_no_more_at_its_end(tmp_path):
    watch = endurance.Watch()
    clients = tiny_clients(4, validation_fraction=0.1, optimizer=mhd.optim.SGD())
    simulate_in(
        tmp_path / "run",
        "ring",
        clients,
        mhd.algorithms.mhd(pool_size=2, pool_refresh=3),
        steps=24,
        eval_every=3,
        faults=mhd.Faults(link_loss=0.2),
        on_nonfinite="quarantine",
        keep_best=True,
        callbacks=watch,
    )
    assert [count.step for count in watch.counts] == list(range(3, 25, 3))
    held = {(c.arrays, c.array_bytes, c.programs) for c in watch.counts[2:]}
    assert len(held) == 1
    assert watch.counts[0].resident_bytes > watch.counts[0].array_bytes > 0


def test_what_cannot_tell_growth_is_refused_before_it_trains(refused, tmp_path):
    for flag in ("dry_run", "json"):
        assert f"--{flag} is for mhd train; leave it out" in refused(endurance, f"--{flag}")
    short = ("--steps=70", "--eval_every=10", "--workdir=w")
    said = refused(endurance, *SMALL, *short, "--algorithm=isolated")
    assert "7 evaluations cannot tell growth; take more steps or a lower eval_every" in said
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_what_is_there_is_overwritten_where_that_is_asked_for(call, tmp_path):
    run = (*SMALL, "--algorithm=isolated", "--steps=8", "--eval_every=1", "--workdir=w")
    for seed in (0, 1):
        status, _, err = call(endurance, *run, f"--seed={seed}", "--overwrite")
        assert status in (0, 1) and err.count("error") == 0, err
        settings = json.loads((tmp_path / "w" / "config.json").read_text())["settings"]
        assert settings["seed"] == seed
        assert "second quarter" in (tmp_path / "w" / "endurance.md").read_text()
    status, _, err = call(endurance, *run, "--seed=1")
    assert status == 2 and "0 evaluations, of those left after step 8 in w, cannot tell" in err


@pytest.mark.parametrize("name", ["arrays", "array_bytes", "threads", "open_files", "programs"])
def test_growth_is_seen(name):
    still = [endurance.Counts(step, 10**9, 50, 10**6, 30, 18, 3) for step in range(0, 4000, 100)]
    assert endurance.grown(still) == []
    busy = [dataclasses.replace(c, threads=30 + c.step // 100 % 3) for c in still]
    assert endurance.grown(busy) == []
    growing = [dataclasses.replace(c, **{name: getattr(c, name) + c.step // 1000}) for c in still]
    assert endurance.grown(growing) == [name]
    leaking = [dataclasses.replace(c, resident_bytes=10**9 + 500 * c.step) for c in still]
    assert endurance.slope(leaking) == pytest.approx(500_000)
