"""Runs that cannot fit in memory are refused before their first step, with what to lower."""

import functools

import jax
import pytest

import mhd_jax as mhd
from mhd_jax.engine import memory
from mhd_jax.engine.prepare import prepare
from tests.builders import assert_trees_close, thinned, tiny_clients


@functools.cache
def clients(num_clients=4):
    return tiny_clients(num_clients, optimizer=mhd.optim.SGD())


def machine_bytes():
    return memory.whole_bytes(1)


@pytest.mark.parametrize("setting", ["pool_size", "teacher_delay"])
def test_snapshots_that_do_not_fit(setting, tmp_path):
    of_one = memory.num_bytes(prepare("ring", clients(), "mhd").carry.state.groups[0].params)
    algorithm = mhd.algorithms.mhd(**{setting: 2 * machine_bytes() // of_one})
    with pytest.raises(mhd.ConfigError, match=r"does not fit.*snapshots.*\(pool_size or teacher"):
        mhd.simulate("ring", clients(), algorithm, steps=1, num_devices=1, workdir=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("setting", thinned(["batch_size", "public_batch_size"], 2))
def test_batches_that_do_not_fit(setting):
    samples = 2 * machine_bytes() // (4 * 4 * 4)  # of four floats, for four clients
    with pytest.raises(mhd.ConfigError, match=r"for a step \(batch_size, public_batch_size"):
        mhd.simulate("ring", clients(), "mhd", steps=1, num_devices=1, **{setting: samples})


def test_the_copy_that_is_saved_counts(monkeypatch):
    run = prepare("ring", clients(), "mhd", num_devices=1)
    state = memory.on_each_device(run.carry)
    data = memory.on_each_device((run.data, run.test))
    assert state == memory.num_bytes(run.carry)
    monkeypatch.setattr(memory, "whole_bytes", lambda devices=None: int(1.5 * state) + data)
    memory.require_state_fits(run, saves=False)
    if jax.default_backend() == "cpu":
        with pytest.raises(mhd.ConfigError, match="for a copy of the state while it is saved"):
            memory.require_state_fits(run, saves=True)


@pytest.mark.slow
def test_chunks_become_as_small_as_they_must(monkeypatch):
    many = tiny_clients(12, num_samples=200, optimizer=mhd.optim.SGD())
    settings = {"steps": 2, "num_devices": 1, "batch_size": 4000}
    sizes = {
        chunk: sum(memory.most_at_once(run, run.carry)[2].values())
        for chunk in (None, 1)
        for run in [prepare("ring", many, "isolated", client_chunk=chunk, **settings)]
    }
    assert sizes[1] < 0.7 * sizes[None]
    whole = mhd.simulate("ring", many, "isolated", **settings)
    run = prepare("ring", many, "isolated", **settings)
    assert run.fitted(run.carry) is run
    monkeypatch.setattr(memory, "whole_bytes", lambda devices=None: int(1.1 * sizes[1]))
    run = prepare("ring", many, "isolated", **settings, data_placement="device")
    assert 1 <= run.fitted(run.carry).execution.chunk < (run.execution.chunk or 12)
    parts = mhd.simulate("ring", many, "isolated", **settings, data_placement="device")
    assert_trees_close(parts.state.groups, whole.state.groups, rtol=1e-4, atol=1e-5)
    with pytest.raises(mhd.ConfigError, match="or client_chunk"):
        mhd.simulate("ring", many, "isolated", **settings, data_placement="device", client_chunk=12)


@pytest.mark.slow
def test_as_many_samples_are_evaluated_at_once_as_fit(monkeypatch):
    settings = {"steps": 1, "num_devices": 1, "data_placement": "device"}
    run = prepare("ring", clients(), "mhd", **settings)
    needs = memory.estimate(run.clients, run.algorithm, run.spec)
    whole = mhd.simulate("ring", clients(), "mhd", **settings)
    monkeypatch.setattr(memory, "capacity_bytes", lambda: 2 * 5 * -(-needs.private // 32))
    small = prepare("ring", clients(), "mhd", **settings)
    assert small.execution.chunk == 1
    assert small.test.labels.shape[1] <= 5 < run.test.labels.shape[1]
    parts = mhd.simulate("ring", clients(), "mhd", **settings)
    assert parts.summary["beta_sh"] == whole.summary["beta_sh"]
