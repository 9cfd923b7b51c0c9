"""Runs of several seeds in one program are the runs that each seed makes by itself."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax import together as joining
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.run import prepare
from tests.conftest import Linear, assert_trees_close, assert_trees_equal, tiny_dataset

SEEDS = (3, 0, 5)
SETTINGS = {"batch_size": 4, "public_batch_size": 8, "steps": 12, "eval_every": 6}


def clients(seed):
    partition = mhd.partition.primary_labels(1, 3.0)  # unequal sizes
    return mhd.make_clients(
        tiny_dataset(), 4, Linear(), partition=partition, public_fraction=0.3, seed=seed
    )


def graph(seed):
    return mhd.topology.named("erdos_renyi", 4, edge_probability=0.6, seed=seed)


def many(name, **kwargs):
    return mhd.simulate_seeds(
        [graph(seed) for seed in SEEDS],
        [clients(seed) for seed in SEEDS],
        name,
        seeds=SEEDS,
        **{**SETTINGS, **kwargs},
    )


def prepared(name, **kwargs):
    return [
        prepare(graph(seed), clients(seed), name, seed=seed, **{**SETTINGS, **kwargs})
        for seed in SEEDS
    ]


@pytest.fixture
def programs(monkeypatch):
    """How many runs each program of this test advanced."""
    found = []
    advance = joining.Together.advance

    def counted(self, carry, num_steps):
        found.append(len(self.runs))
        return advance(self, carry, num_steps)

    monkeypatch.setattr(joining.Together, "advance", counted)
    return found


@pytest.mark.parametrize("name", ["mhd", "fedmd"])
def test_together_equals_apart(name, programs):
    seen = []
    results = many(name, callbacks=seen.append)
    assert set(programs) == {3}
    assert [(record["seed"], record["step"]) for record in seen] == [
        (seed, step) for step in (6, 12) for seed in SEEDS
    ]
    for seed, result in zip(SEEDS, results, strict=True):
        alone = mhd.simulate(graph(seed), clients(seed), name, seed=seed, **SETTINGS)
        assert result.summary["seed"] == seed
        assert_trees_close(
            result.state.groups[0].params, alone.state.groups[0].params, rtol=1e-4, atol=1e-6
        )
        for one, other in zip(result.history, alone.history, strict=True):
            assert (one["step"], one["messages"]) == (other["step"], other["messages"])
            assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
            assert one["beta_sh"] == pytest.approx(other["beta_sh"], abs=0.1)


def test_a_stop_and_a_seed_that_is_ahead(tmp_path, programs):
    """Resumed bit for bit; a run that has finished is read, and one at another step goes alone."""
    folders = [tmp_path / str(seed) for seed in SEEDS]
    whole = many("isolated")

    def stop(record):
        if record["seed"] == SEEDS[-1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        many("isolated", workdirs=folders, callbacks=stop)
    programs.clear()
    resumed = many("isolated", workdirs=folders)
    assert programs and set(programs) == {3}
    for one, other in zip(resumed, whole, strict=True):
        assert one.started_at == 6 and len(one.history) == 2
        assert_trees_equal(one.state, other.state)

    for folder in folders:  # as if killed between two saves
        (folder / "summary.json").unlink()
    shutil.rmtree(folders[2] / "checkpoints" / "12")
    programs.clear()
    repeated = many("isolated", workdirs=folders)
    assert set(programs) == {3} and [result.started_at for result in repeated] == [6, 6, 6]
    for one, other in zip(repeated, whole, strict=True):
        assert_trees_equal(one.state, other.state)
        assert [record["step"] for record in one.history] == [6, 12]

    again = many("isolated", workdirs=folders)
    assert [result.started_at for result in again] == [12, 12, 12]

    folders = [tmp_path / f"second {seed}" for seed in SEEDS]
    with pytest.raises(KeyboardInterrupt):
        mhd.simulate(
            graph(SEEDS[1]),
            clients(SEEDS[1]),
            "isolated",
            seed=SEEDS[1],
            workdir=folders[1],
            callbacks=lambda record: (_ for _ in ()).throw(KeyboardInterrupt),
            **SETTINGS,
        )
    programs.clear()
    mixed = many("isolated", workdirs=folders)
    assert [result.started_at for result in mixed] == [0, 6, 0] and set(programs) == {2}
    for one, other in zip(mixed, whole, strict=True):
        assert_trees_close(one.state.groups[0].params, other.state.groups[0].params, rtol=1e-4)


def test_branches_stay_branches():
    """A joined step count keeps `cond` from computing both sides of every run."""
    runs = prepared("fedavg")
    joined = joining.together(runs)
    carry = joined.join([run.start() for run in runs])
    assert carry.state.step.shape == () and carry.state.key.shape == (3,)
    static = joined.runs[0].static()
    text = joining._dispatch.lower(
        carry, joined.data, joined.adjacency, np.int32(1), **static
    ).as_text()
    assert "stablehlo.case" in text


def test_what_cannot_or_should_not_go_together(monkeypatch):
    runs = prepared("mhd")
    assert joining.together(runs) is not None
    assert joining.together(runs[:1]) is None
    other = prepare(graph(0), clients(0), "mhd", **{**SETTINGS, "batch_size": 5})
    assert joining.together([*runs, other]) is None
    assert joining.together([*runs, *prepared("naive")]) is None
    assert joining.together(prepared("mhd", client_chunk=1)) is None
    monkeypatch.setattr(joining.memory, "capacity_bytes", lambda: 1)
    assert joining.together(runs) is None
    with pytest.raises(mhd.ConfigError, match="must be one for each seed"):
        mhd.simulate_seeds([graph(0)], [clients(0)], seeds=[0, 1])


def test_splitting_gives_back_what_was_joined():
    runs = prepared("ccl")
    joined = joining.together(runs)
    carries = [run.start() for run in runs]
    copies = jax.device_get([dataclasses.replace(c, state=c.state.groups) for c in carries])
    for one, other in zip(joined.split(joined.join(carries)), copies, strict=True):
        assert_trees_equal(one.state.groups, other.state)


def test_all_algorithms_go_together():
    for name in ALGORITHMS:
        assert joining.together(prepared(name)) is not None
