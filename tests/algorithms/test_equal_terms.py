"""Algorithms that are compared have the same regularisation, and the momentum of their papers."""

import dataclasses

import pytest
from absl import flags
from absl.testing import flagsaver

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.cli import flags as run_flags
from mhd_jax.engine.prepare import prepare
from tests.builders import short, tiny_clients

NESTEROV = {"dsgd", "qg_dsgd", "ccl", "idkd"}  # DSGDm-N, QG-DSGDm-N, and what stands on them


def clients(optimizer=None):
    """Clients in one group, with an optimizer of its own or with that of the run."""
    found = tiny_clients(4, public_fraction=0.2)  # 10 are public
    (group,) = found.groups
    return dataclasses.replace(found, groups=(dataclasses.replace(group, optimizer=optimizer),))


def prepared(name, who=None, **settings):
    settings = {"steps": 20, "batch_size": 4, "public_batch_size": 8, **settings}
    return prepare("ring", who or clients(), name, **settings)


def test_algorithms_that_are_compared_smooth_labels_alike_whatever_their_own_default():
    own = {name: hyperparameters(build)["label_smoothing"] for name, build in ALGORITHMS.items()}
    assert set(own.values()) == {0.0, 0.1}
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        smoothing = lambda name, strict: run_flags.algorithm(name, strict=strict)[
            0
        ].hyperparameters["label_smoothing"]
        for name in ALGORITHMS:
            assert (smoothing(name, False), smoothing(name, True)) == (0.1, own[name])
        flags.FLAGS["label_smoothing"].parse("0.3")
        flags.FLAGS["label_smoothing"].present = 1
        assert {smoothing(name, False) for name in ALGORITHMS} == {0.3}


@pytest.mark.parametrize("name", short(ALGORITHMS, "mhd", "dsgd", "qg_dsgd", "ccl", "fedmd"))
def test_momentum_is_the_papers_unless_told(name):
    run = prepared(name)
    assert run.settings["optimizer"]["nesterov"] is (name in NESTEROV)
    assert run.settings["optimizer"]["weight_decay"] == 1e-3
    built = [group.optimizer for group in run.clients.groups]
    for told in (True, False):
        other = prepared(name, optimizer=mhd.optim.SGD(nesterov=told))
        assert other.settings["optimizer"]["nesterov"] is told
        same = [group.optimizer for group in other.clients.groups] == built
        assert same == (told == (name in NESTEROV))  # one object, and so one program


def test_groups_own_optimizers_are_resolved_too():
    run = prepared("dsgd", clients(mhd.optim.SGD(0.5)))
    (described,) = run.settings["optimizers"].values()
    assert described["learning_rate"] == 0.5 and described["nesterov"] is True


def test_a_flag_tells_each_algorithms_default_where_they_differ():
    assert run_flags.described({"mhd": 1, "naive": 1}) == (1, "(mhd, naive)")
    own = {"mhd": True, "naive": False}
    assert run_flags.described(own) == (None, "(by default True for mhd, False for naive)")
