"""Clients that take local steps one after the other learn what they learn if all step together."""

import functools

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.engine.prepare import prepare
from tests.builders import Linear, assert_trees_equal, python, short, tiny_dataset

K = 4
LARGE, LARGER = Linear(20_000), Linear(24_000)  # small ones step together
UNLIKE = "isolated, two architectures"
ALGORITHMS = {
    "fedavg": mhd.algorithms.fedavg(local_steps=3),
    "fedavg, epochs": mhd.algorithms.fedavg(local_epochs=0.5, reset_momentum=False),
    "isolated": mhd.algorithms.isolated(),
    UNLIKE: mhd.algorithms.isolated(),
}


@functools.cache
def prepared(algorithm, devices=1, **how):
    models = [LARGE, LARGE, LARGER, LARGER] if algorithm == UNLIKE else LARGE
    how = {"steps": 8, "batch_size": 4, "num_devices": devices, **how}
    who = mhd.make_clients(tiny_dataset(100), K, models, partition="iid", seed=1)
    return prepare("empty", who, ALGORITHMS[algorithm], **how)


def taken(run, *counts):
    carry = run.start()
    for count in counts:
        carry = run.advance(carry, count)
    return carry


@functools.cache
def by_hand(algorithm):
    """The state after eight steps of all clients together, and the sums of losses and messages."""
    run = prepared(algorithm)

    @jax.jit
    def step(state):
        return run.train_step(state, run.batch(state), run.graph(state.step))

    state, losses, messages = run.init(), 0, {}
    for _ in range(8):
        state, metrics = step(state)
        losses += np.asarray(metrics.loss)
        messages = {kind: messages.get(kind, 0) + n for kind, n in metrics.messages.items()}
    return state, losses, messages


def check(algorithm, devices):
    run = prepared(algorithm, devices)
    assert run.local is not None
    carry, (state, losses, messages) = taken(run, 8), by_hand(algorithm)
    for found, wanted in zip(carry.state.groups, state.groups, strict=True):
        assert found.members == wanted.members
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert int(carry.state.step) == int(carry.count) == 8
    assert_trees_equal(carry.state.extra, state.extra)
    assert_trees_equal(carry.messages, messages)
    np.testing.assert_allclose(carry.sums["loss"], losses, rtol=1e-5)


@pytest.mark.parametrize("algorithm", short(ALGORITHMS, "fedavg"))
def test_local_steps_are_those_of_train_step(algorithm):
    check(algorithm, devices=1)


@pytest.mark.slow
def test_local_steps_on_two_devices():
    program = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
from tests.engine import test_local_steps
for algorithm in ("fedavg", "isolated"):
    test_local_steps.check(algorithm, devices=2)
unlike = test_local_steps.prepared(test_local_steps.UNLIKE, devices=2)
assert unlike.local is None  # as not every client is where its samples are
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_a_round_may_be_cut_anywhere():
    run = prepared("fedavg")
    assert_trees_equal(taken(run, 1, 4, 1, 2), taken(run, 8))  # bit for bit


def test_clients_step_together_where_steps_are_not_local():
    assert prepared("fedavg", faults=mhd.Faults(offline=0.2)).local is None
    assert prepared("fedavg", data_placement="host").local is None
    assert prepared("fedavg", client_chunk=2).local is None
    small = mhd.make_clients(tiny_dataset(100), K, Linear(5), partition="iid")
    assert prepare("empty", small, "fedavg", steps=20, batch_size=4).local is None
