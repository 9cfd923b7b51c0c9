"""Callbacks that look at a run and stop it, and what a stopped run leaves."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.engine import metrics
from tests.builders import short

X = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
HOW = {"eval_every": 2, "batch_size": 8, "public_batch_size": 8, "progress": False}


@pytest.fixture(scope="module")
def clients():
    owner = np.arange(360) % 3
    return mhd.make_clients("digits", 3, "mlp_small", validation_fraction=0.1, test_partition=owner)


def test_a_function_of_the_record_alone(clients):
    seen = []
    mhd.simulate("ring", clients, **HOW, steps=4, callbacks=lambda record: seen.append(record))
    assert [record["step"] for record in seen] == [2, 4]


def test_a_class_that_knows_no_view(clients):
    class Old(mhd.Callback):
        steps = ()

        def on_evaluation(self, record):
            self.steps += (record["step"],)

    old = Old()
    mhd.simulate("ring", clients, **HOW, steps=4, callbacks=old)
    assert old.steps == (2, 4)


@pytest.mark.slow
def test_a_second_argument_with_a_default_is_no_view(clients):
    seen = []

    def look(record, patience=3):
        seen.append(patience)

    mhd.simulate("ring", clients, **HOW, steps=2, callbacks=look)
    assert seen == [3]


@pytest.mark.slow
def test_a_view_shows_the_run_at_its_step(clients):
    seen = {}

    def look(record, view):
        seen[view.step] = view.predict(X), view.client(1).apply(X, None), view.state

    result = mhd.simulate("ring", clients, **HOW, steps=4, callbacks=look)
    short = mhd.simulate(
        "ring", clients, **HOW, steps=2, optimizer=mhd.optim.SGD(schedule="constant")
    )
    same = mhd.simulate(
        "ring",
        clients,
        **HOW,
        steps=4,
        optimizer=mhd.optim.SGD(schedule="constant"),
        callbacks=look,
    )
    del same
    np.testing.assert_array_equal(seen[2][0], short.predict(X))
    np.testing.assert_allclose(seen[2][1], short.predict(X)[1], atol=1e-5)
    assert int(seen[2][2].step) == 2  # a copy, which later steps do not take away
    np.asarray(seen[2][2].groups[0].params["heads"]["bias"])
    assert result.predict(X).shape == seen[4][0].shape


@pytest.mark.slow
def test_a_view_has_no_state_between_evaluations(clients):
    kept = []
    mhd.simulate("ring", clients, **HOW, steps=2, callbacks=lambda record, view: kept.append(view))
    with pytest.raises(mhd.ConfigError, match="on_evaluation"):
        kept[0].predict(X)


def _stop_at(step, how="view"):
    def stop(record, view):
        if record["step"] == step:
            if how == "view":
                view.stop("enough", best_step=2)
            else:
                raise StopIteration("enough")

    return stop


@pytest.mark.slow
@pytest.mark.parametrize("how", short(["view", "StopIteration"], "view"))
def test_a_stopped_run_is_finished(clients, tmp_path, how):
    long = {**HOW, "steps": 20, "workdir": tmp_path / "run", "checkpoint_every": 20}
    constant = mhd.optim.SGD(schedule="constant")
    result = mhd.simulate("ring", clients, **long, optimizer=constant, callbacks=_stop_at(4, how))
    summary = result.summary
    assert (summary["status"], summary["stopped_because"]) == ("stopped", "enough")
    assert summary.get("best_step") == (2 if how == "view" else None)
    assert summary["steps"] == 4 and summary["settings"]["steps"] == 20
    assert [record["step"] for record in result.history] == [2, 4]
    assert (tmp_path / "run" / "report.html").exists()
    alone = mhd.simulate("ring", clients, **HOW, steps=4, optimizer=constant)
    np.testing.assert_array_equal(result.predict(X), alone.predict(X))
    assert summary["communication"] == alone.summary["communication"]
    again = mhd.simulate("ring", clients, **long, optimizer=constant, callbacks=_stop_at(4, how))
    assert again.summary == summary and again.started_at == 4
    np.testing.assert_array_equal(again.predict(X), result.predict(X))
    np.testing.assert_array_equal(mhd.load(tmp_path / "run").predict(X), result.predict(X))


@pytest.mark.slow
def test_of_joint_runs_one_stops(clients, tmp_path):
    def stop(record, view):
        if view.settings["seed"] == 1 and record["step"] == 2:
            view.stop("enough")

    constant = mhd.optim.SGD(schedule="constant")
    how = {**HOW, "steps": 6, "optimizer": constant}
    runs = [
        {
            "topology": "ring",
            "clients": clients,
            "seed": s,
            "steps": 6,
            "optimizer": constant,
            "batch_size": 8,
            "public_batch_size": 8,
        }
        for s in (0, 1, 2)
    ]
    found = mhd.simulate_many(
        runs, eval_every=2, callbacks=stop, progress=False, workdirs=[tmp_path / c for c in "abc"]
    )
    assert [each.summary["steps"] for each in found] == [6, 2, 6]
    assert [each.summary["status"] for each in found] == ["finished", "stopped", "finished"]
    alone = mhd.simulate("ring", clients, **{**how, "steps": 2}, seed=1)
    np.testing.assert_allclose(found[1].predict(X), alone.predict(X), atol=1e-5)


@pytest.mark.slow
def test_early_stopping_is_a_function_of_the_history(clients, tmp_path):
    still = mhd.optim.SGD(learning_rate=1e-9)
    how = {**HOW, "steps": 40, "optimizer": still}
    stopping = mhd.callbacks.EarlyStopping("beta_sh/aux_1", patience=2)
    result = mhd.simulate("ring", clients, **how, callbacks=stopping, workdir=tmp_path / "a")
    assert result.summary["steps"] == 6 and result.summary["best_step"] == 2
    assert "beta_sh/aux_1" in result.summary["stopped_because"]

    def cut(record):  # as if the process had died just after it had decided
        if record["step"] == 6:
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        mhd.simulate("ring", clients, **how, callbacks=cut, workdir=tmp_path / "b")
    again = mhd.simulate("ring", clients, **how, callbacks=stopping, workdir=tmp_path / "b")
    assert again.summary["steps"] == 6 and again.started_at == 6
    np.testing.assert_array_equal(again.predict(X), result.predict(X))


def test_who_would_stop_at_the_last_step_has_finished(clients, tmp_path, capfd):
    """Also where a process died between the last checkpoint and the summary."""
    still = mhd.optim.SGD(learning_rate=1e-9)
    stopping = mhd.callbacks.EarlyStopping("beta_sh/main", patience=2)
    how = {**HOW, "steps": 6, "optimizer": still, "progress": True, "callbacks": stopping}
    for _ in range(2):
        result = mhd.simulate("ring", clients, **how, workdir=tmp_path / "a")
        assert result.summary["status"] == "finished" and "best_step" not in result.summary
        (tmp_path / "a/summary.json").unlink()
    assert result.started_at == 6 and "stopped" not in capfd.readouterr().err


class Scored:
    """A view of a run whose validation scores were these."""

    scores = ("beta_sh/main",)

    def __init__(self, *values):
        self.history = [
            {
                "step": step,
                "train": {},
                "validation": {"beta_sh": of_main, "honest": {"beta_sh": of_main}},
            }
            for step, of_main in enumerate({"main": value} for value in values)
        ]

    def stop(self, why, best_step):
        self.stopped = why, best_step


def test_a_score_below_zero_keeps_its_sign():
    view = Scored(-0.5, -0.35, -0.4, -0.6)
    mhd.callbacks.EarlyStopping("beta_sh/main", patience=2).on_start([view], 0)
    why, best_step = view.stopped
    assert "-0.35 at step 1" in why and best_step == 1


def test_a_new_run_cannot_be_stopped_before_its_first_step(clients):
    class Early(mhd.Callback):
        def on_start(self, runs, step):
            runs[0].stop("at once")

    with pytest.raises(mhd.ConfigError, match=r"before its first step.* in on_steps") as raised:
        mhd.simulate("ring", clients, "isolated", steps=2, batch_size=8, callbacks=Early())
    assert "\n" not in str(raised.value)


def test_what_has_no_heads_cannot_be_watched():
    with pytest.raises(mhd.ConfigError, match=r"choose one of beta_sh/main\.$"):
        mhd.callbacks.EarlyStopping("honest/beta_sh").on_start([Scored(0.1)], 0)


@pytest.mark.slow
def test_a_loss_is_to_fall(clients):
    stopping = mhd.callbacks.EarlyStopping("train/loss", patience=1, min_delta=100)
    result = mhd.simulate("ring", clients, **HOW, steps=20, callbacks=stopping)
    assert result.summary["steps"] == 4


@pytest.mark.parametrize(
    "given, says",
    [
        (lambda: mhd.callbacks.EarlyStopping("beta_sh"), "like 'beta_sh/main'"),
        (lambda: mhd.callbacks.EarlyStopping("beta_sh/main", patience=0), "patience"),
        (lambda: mhd.callbacks.EarlyStopping("beta_sh/main", min_delta=-1), "min_delta"),
        (lambda: mhd.callbacks.EarlyStopping("beta_sh/main", min_delta="1"), "min_delta"),
        (lambda: mhd.callbacks.EarlyStopping("beta_sh/aux_9"), "beta_sh/aux_3"),
        (lambda: mhd.callbacks.EarlyStopping("val_accuracy/main"), "no val_accuracy/main to watch"),
        (
            lambda: mhd.callbacks.EarlyStopping("train/nope"),
            "no train/nope to watch; .* train/loss",
        ),
        (lambda: mhd.callbacks.EarlyStopping, r"give EarlyStopping\(\.\.\.\)"),
        (lambda: 3, "a callback is a function of the record"),
        (lambda: lambda: None, r"the record and the view, not \(\)"),
        (lambda: lambda record, view, more: None, r"not \(record, view, more\)"),
    ],
)
def test_what_cannot_watch_is_refused(clients, given, says):
    trained = []
    with pytest.raises(mhd.ConfigError, match=says) as raised:
        mhd.simulate("ring", clients, **HOW, steps=4, callbacks=[trained.append, given()])
    assert "\n" not in str(raised.value) and not trained


def test_early_stopping_needs_a_validation_set(tmp_path):
    without = mhd.make_clients("digits", 3, "mlp_small")
    stopping = mhd.callbacks.EarlyStopping("beta_sh/main")
    how = {**HOW, "steps": 4, "callbacks": stopping, "workdir": tmp_path / "run"}
    with pytest.raises(mhd.ConfigError, match="set validation_fraction"):
        mhd.simulate("ring", without, **how)
    assert not (tmp_path / "run").exists()


def _interrupt(record):
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_returns_what_there_is(clients):
    with pytest.warns(UserWarning, match=r"stopped at step \d+ of 400 by Ctrl-C"):
        result = mhd.simulate(
            "ring", clients, **HOW, steps=400, steps_per_dispatch=1, callbacks=_interrupt
        )
    assert result.summary["status"] == "stopped"
    assert result.summary["stopped_because"] == "Ctrl-C"
    assert 2 <= result.summary["steps"] == result.history[-1]["step"] < 10
    assert result.predict(X).shape == (3, 5, 4, 10)


@pytest.mark.slow
def test_ctrl_c_at_the_last_step_loses_nothing(clients):
    """The run has finished; only what has not begun is left out."""
    run = {"topology": "ring", "clients": clients, "algorithm": "isolated", "steps": 2}
    how = {"eval_every": 2, "callbacks": _interrupt}
    with pytest.warns(UserWarning, match="Ctrl-C came after the last step"):
        (result,) = mhd.simulate_many([run], **how)
    assert result.summary["status"] == "finished" and result.summary["steps"] == 2
    with pytest.warns(UserWarning), pytest.raises(mhd.InterruptedRun, match="1 of 2 runs"):
        mhd.simulate_many([run, {**run, "algorithm": "supervised"}], **how)


@pytest.mark.slow
def test_ctrl_c_before_others_have_begun_after_the_first_was_stopped(clients):
    def stop_then_interrupt(record, view):
        if view.settings["seed"] == 0 and record["step"] == 2:
            raise StopIteration
        if view.settings["seed"] == 1 and record["step"] == 4:
            _interrupt(record)

    common = {"topology": "ring", "clients": clients, "steps": 400, "batch_size": 8}
    runs = [{**common, "algorithm": "isolated", "seed": seed} for seed in (0, 1)]
    runs.append({**common, "algorithm": "supervised"})
    with pytest.warns(UserWarning), pytest.raises(mhd.InterruptedRun, match="1 of 3 runs"):
        mhd.simulate_many(runs, eval_every=2, steps_per_dispatch=1, callbacks=stop_then_interrupt)


@pytest.mark.slow
def test_ctrl_c_before_others_have_begun(clients):
    runs = [
        {"topology": "ring", "clients": clients, "algorithm": name, "steps": 400, "batch_size": 8}
        for name in ("isolated", "mhd")
    ]
    with pytest.warns(UserWarning), pytest.raises(mhd.InterruptedRun, match="1 of 2 runs"):
        mhd.simulate_many(
            runs, eval_every=2, progress=False, steps_per_dispatch=1, callbacks=_interrupt
        )


def test_own_metrics_stand_beside_accuracies(clients, tmp_path):
    def accuracy(logits, labels):
        return (logits.argmax(axis=-1) == labels).mean()

    def who(logits, labels, client, everyone, graph):
        assert np.array_equal(everyone[client], logits) and graph.shape == (3, 3)
        return client

    own = {"accuracy": accuracy, "who": who, "nothing": lambda logits, labels: np.nan}
    result = mhd.simulate("ring", clients, **HOW, steps=4, metrics=own, workdir=tmp_path / "run")
    record, summary = result.history[-1], result.summary
    labels = clients.data.test_labels
    hits = result.predict(clients.data.test_inputs).argmax(-1) == labels[None, :, None]
    for h, head in enumerate(["main", "aux_1", "aux_2", "aux_3"]):
        expected = hits[:, :, h].mean(axis=1)
        np.testing.assert_allclose(record["per_client"]["metrics"]["accuracy"][head], expected)
        assert summary["metrics"]["accuracy"][head] == pytest.approx(expected.mean())
        assert summary["per_client"][2]["metrics"]["accuracy"][head] == pytest.approx(expected[2])
        mine = [hits[k, np.arange(360) % 3 == k, h].mean() for k in range(3)]
        assert summary["beta_own"][head] == pytest.approx(np.mean(mine))
        assert summary["per_client"][1]["beta_own"][head] == pytest.approx(mine[1])
    assert record["per_client"]["metrics"]["who"]["main"] == [0, 1, 2]
    assert summary["metrics"]["nothing"]["main"] is None
    validation = result.history[-1]["validation"]["metrics"]["accuracy"]["main"]
    inputs, validation_labels = clients.validation_samples()
    main = result.predict(inputs)[:, :, 0].argmax(-1)
    assert validation == pytest.approx((main == validation_labels).mean())
    spread = summary["fairness"]["beta_sh"]["aux_1"]
    each = [client["beta_sh"]["aux_1"] for client in summary["per_client"]]
    assert spread["worst"] == min(each) and spread["std"] == pytest.approx(np.std(each))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Further metrics at the end" in page and "lowest tenth" in page
    frame = result.frame("clients")
    rows = frame if isinstance(frame, list) else frame.to_dict("records")
    assert any(row["metric"] == "accuracy" for row in rows)


@pytest.mark.slow
def test_streamed_samples_are_measured_alike(clients):
    how = {**HOW, "steps": 2, "metrics": {"f1": metrics.macro_f1}, "eval_batch_size": 100}
    one = mhd.simulate("ring", clients, **how)
    other = mhd.simulate("ring", clients, **how, data_placement="host")
    for head, value in one.summary["metrics"]["f1"].items():
        assert other.summary["metrics"]["f1"][head] == pytest.approx(value, abs=0.02)


def test_metrics_do_not_change_a_run(clients, tmp_path):
    plain = mhd.simulate("ring", clients, **HOW, steps=4)
    measured = mhd.simulate(
        "ring", clients, **HOW, steps=4, metrics={"nll": metrics.negative_log_likelihood}
    )
    np.testing.assert_array_equal(plain.predict(X), measured.predict(X))
    assert json.dumps(plain.history[-1]["beta_sh"]) == json.dumps(measured.history[-1]["beta_sh"])


@pytest.mark.parametrize(
    "metric, says",
    [
        (lambda logits, labels: 1 / 0, r"failed \(ZeroDivisionError"),
        (lambda logits, labels: logits, r"must be a number, not of type ndarray of shape \[40, 10"),
    ],
)
def test_a_metric_that_fails_does_so_before_training(clients, metric, says):
    seen = []
    with pytest.raises(mhd.ConfigError, match=f"mine of client 0, head main, {says}") as raised:
        mhd.simulate(
            "ring",
            clients,
            **HOW,
            steps=4,
            callbacks=seen.append,
            metrics={"mine": metric},
        )
    assert not seen and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "owner, says",
    [
        (np.zeros(3, int), "for each of the 360 test samples, but holds 3"),
        (np.full(360, 3), r"clients 0 … 2"),
        (np.zeros(360), "test_partition must hold the client of each test sample"),
        ("there/is/none.npy", "not 'there/is/none.npy'"),
    ],
)
def test_what_is_no_partition_of_test_samples(owner, says):
    with pytest.raises(mhd.ConfigError, match=says):
        mhd.make_clients("digits", 3, "mlp_small", test_partition=owner)


def test_owners_of_test_samples_from_a_file(tmp_path):
    owner = np.arange(360) % 4 - 1
    np.save(tmp_path / "owners.npy", owner)
    who = mhd.make_clients("digits", 3, "mlp_small", test_partition=tmp_path / "owners.npy")
    np.testing.assert_array_equal(who.test_owner, owner)
