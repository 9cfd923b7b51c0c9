"""A run that its user's own loop takes, step by step, is the run that `simulate` takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.core.types import Presence
from tests.builders import FEATURES, Linear, assert_trees_close, tiny_clients, tiny_dataset

STEPS = 20
SIZES = {"batch_size": 4, "public_batch_size": 8, "eval_batch_size": 5}
RUNS = {
    "mhd": {"algorithm": "mhd"},
    "distributed_distillation": {"algorithm": "distributed_distillation"},
    "ccl": {"algorithm": "ccl", "optimizer": mhd.optim.SGD(momentum=0.9)},
    "unlike models": {
        "algorithm": mhd.algorithms.mhd(num_targets="all", embedding_projection="linear"),
        "models": [Linear()] * 2 + [Linear(7)] * 2,
        "topology": "one_peer_exponential",
    },
}


def settings(name, **how):
    given = {"topology": "ring", **RUNS[name], **how}
    how = {"partition": "iid", "public_fraction": 0.3}
    clients = mhd.make_clients(tiny_dataset(80), 4, given.pop("models", Linear()), **how)
    return {"clients": clients, **SIZES, "steps": STEPS, **given}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "mhd" else [pytest.mark.slow]) for name in RUNS],
)
def test_a_users_own_scan_is_what_simulate_computes(name):
    run = mhd.prepare(**settings(name), num_devices=1)

    @jax.jit
    def train(state):
        def one(state, _):
            state, metrics = run.train_step(state, run.batch(state), run.graph(state.step))
            return state, metrics["loss"]

        return jax.lax.scan(one, state, length=STEPS)

    state, losses = train(run.init())
    result = mhd.simulate(**settings(name), num_devices=1, eval_every=STEPS)
    assert_trees_close(
        [group.params for group in state.groups],
        [group.params for group in result.state.groups],
        rtol=1e-6,
        atol=1e-6,
    )
    trained = result.history[-1]["train"]["loss"]
    assert np.mean(losses) == pytest.approx(trained, rel=1e-5)
    inputs = run.everyone.data.test_inputs[:3]
    np.testing.assert_allclose(run.predict(state, inputs), result.predict(inputs), atol=1e-5)


@pytest.mark.slow
def test_a_run_starts_from_given_parameters_and_takes_own_batches():
    run = mhd.prepare(**settings("mhd"), num_devices=1)
    params = [jax.tree.map(lambda a: 0 * a + 0.1, g.params) for g in run.init().groups]
    state = run.init(params)
    assert_trees_close([group.params for group in state.groups], params)
    mine = run.batch(state).replace(labels=np.zeros((4, 4), np.int32))
    after, metrics = jax.jit(run.train_step)(state, mine, np.ones((4, 4)) - np.eye(4))
    assert metrics["messages"]["predictions"].sum() == 4 and int(after.step) == 1
    with pytest.raises(mhd.ConfigError, match="list of 1 trees"):
        run.init(params * 2)
    with pytest.raises(mhd.ConfigError, match=r"must have shape \[4, 4, 5\], not \[4, 4, 6\]"):
        run.init(jax.tree.map(lambda a: np.ones((*a.shape[:-1], a.shape[-1] + 1)), params))
    with pytest.raises(mhd.ConfigError, match="nothing to start from fits"):
        run.init([{"heads": 0}])


@pytest.mark.slow
def test_any_graph_will_do_whatever_the_run_was_prepared_with():
    """One denser than the prepared one, of more clients than have slots each, and a full diagonal."""
    number = 70
    clients = tiny_clients(number, num_samples=2 * number)
    how = {"algorithm": "dsgd", "batch_size": 2, "steps": 1, "num_devices": 1}
    found = []
    for prepared in ("ring", "complete"):
        run = mhd.prepare(prepared, clients, **how)
        state = run.init()
        found.append(run.train_step(state, run.batch(state), jnp.ones((number, number))))
    sparse, dense = found
    assert_trees_close(sparse[0].groups[0].params, dense[0].groups[0].params)
    for _, metrics in found:
        np.testing.assert_array_equal(metrics["messages"]["weights"], 1 - np.eye(number))
    expected = mhd.simulate("complete", clients, **how).state.groups[0].params
    assert_trees_close(sparse[0].groups[0].params, expected)


@pytest.mark.slow
def test_steps_by_hand_run_in_strict_modes():
    run = mhd.prepare(**settings("mhd"), num_devices=1)
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
    ):
        state = run.init()
        after, _ = run.train_step(state, run.batch(state), run.graph(state.step))
        run.predict(after, np.zeros((2, FEATURES), np.float32))


def test_what_only_simulate_does_is_said():
    streamed = mhd.prepare(**settings("mhd", data_placement="host"), num_devices=1)
    with pytest.raises(mhd.ConfigError, match="data_placement='device'"):
        streamed.batch(streamed.init())
    faulty = mhd.prepare(**settings("mhd", faults=mhd.Faults(offline=0.5)), num_devices=1)
    with pytest.raises(mhd.ConfigError, match="faults and quarantine are simulate's"):
        faulty.batch(faulty.init())
    run = mhd.prepare(**settings("mhd"), num_devices=1)
    state = run.init()
    there = run.batch(state).replace(presence=Presence(np.ones(4, bool), np.ones(4, bool)))
    with pytest.raises(mhd.ConfigError, match="who is there at a step is simulate's to do"):
        run.train_step(state, there, run.graph(0))
