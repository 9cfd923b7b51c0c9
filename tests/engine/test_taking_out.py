"""A run's result, looked at, taken apart and read back from its folder."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import mhd_jax as mhd
from mhd_jax.engine import loading
from mhd_jax.training import groups

X = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
HOW = {"steps": 4, "eval_every": 2, "batch_size": 8, "public_batch_size": 8, "progress": False}


class Net(nnx.Module):
    """A network with dropout and BatchNorm, as a user writes it."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(64, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.dropout(self.norm(self.dense(x.reshape(len(x), -1)))))


class Plain(nn.Module):
    """A Linen backbone with BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(64)(x.reshape(len(x), -1))
        return nn.relu(nn.BatchNorm(use_running_average=not train)(x))


@pytest.fixture(scope="module")
def clients():
    models = ["mlp_small", Net, Plain(), "mlp_small"]
    return mhd.make_clients("digits", 4, models, validation_fraction=0.1)


@pytest.fixture(scope="module")
def result(clients, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taking_out") / "run"
    return mhd.simulate("ring", clients, **HOW, workdir=folder, keep_best=True)


def test_a_client_predicts_as_in_the_run(result):
    logits = result.predict(X)
    for k in range(4):
        client = result.client(k)
        np.testing.assert_allclose(client.apply(X, None), logits[k], atol=1e-5)
        np.testing.assert_allclose(client.apply(X, "aux_2"), logits[k, :, 2], atol=1e-5)
        assert (client.predict(X) == logits[k, :, 0].argmax(-1)).all()


def test_a_client_answers_to_no_samples(result):
    client, expected = result.client(1), result.client(1).apply(X, None)
    assert client.apply(X[:0], None).shape == (0, *expected.shape[1:])
    assert client.predict(X[:0]).shape == (0,)


def test_a_client_is_plain_flax(result):
    client = result.client(2)
    variables = {"params": client.params["backbone"], **client.stats}
    embeddings = Plain().apply(variables, client.prepared(X))
    heads = client.params["heads"]
    logits = np.einsum("nd,dc->nc", embeddings, heads["kernel"][1]) + heads["bias"][1]
    np.testing.assert_allclose(client.apply(X, "aux_1"), logits, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_client_is_an_nnx_module(result, number):
    client = result.client(number)
    module = client.to_nnx()
    module.eval()
    np.testing.assert_allclose(module(client.prepared(X)), client.apply(X), atol=1e-5)
    count = sum(np.size(a) for a in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert count == sum(np.size(a) for a in jax.tree.leaves(client.params))


def test_a_saved_client_holds_all_its_arrays(result, tmp_path):
    client = result.client(1)
    client.save(tmp_path / "client.npz")
    with np.load(tmp_path / "client.npz") as arrays:
        np.testing.assert_array_equal(
            arrays["backbone/dense/kernel"], client.params["backbone"]["dense"]["kernel"]
        )
        np.testing.assert_array_equal(arrays["heads/bias"], client.params["heads"]["bias"])
        mean = client.stats["batch_stats"]["norm"]["mean"]
        np.testing.assert_array_equal(arrays["stats/batch_stats/norm/mean"], mean)


@pytest.mark.parametrize("number", [4, -1, "0", None])
def test_there_is_no_such_client(result, number):
    with pytest.raises(mhd.ConfigError, match=r"choose one of 0 … 3\.$"):
        result.client(number)


def test_there_is_no_such_head(result):
    with pytest.raises(mhd.ConfigError, match="main, aux_1, aux_2, aux_3"):
        result.client(0).apply(X, "aux_9")


def test_a_loaded_run_is_the_run(result):
    loaded = mhd.load(result.folder)
    assert loaded.summary == result.summary
    assert loaded.history == result.history
    np.testing.assert_array_equal(loaded.predict(X), result.predict(X))
    best = loaded.best
    assert best is not None and int(best.step) == int(result.best.step)
    again = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(again.predict(X), result.predict(X))


def test_a_model_that_cannot_be_found_is_given(result, tmp_path, monkeypatch):
    monkeypatch.delattr(f"{__name__}.Plain")
    with pytest.raises(mhd.ConfigError, match=r"models=\{'plain': \.\.\.\}"):
        mhd.load(result.folder)
    plain = result.state.groups[2].model.backbone
    loaded = mhd.load(result.folder, models={"plain": plain, "net": Net})
    np.testing.assert_array_equal(loaded.predict(X), result.predict(X))
    with pytest.raises(mhd.ConfigError, match="there is no model other"):
        mhd.load(result.folder, models={"other": plain})


@pytest.mark.slow
def test_a_loaded_regression_tells_numbers_in_their_own_units(tmp_path):
    numbers = 100 + 30 * X.reshape(6, -1)[:, :4].repeat(10, axis=0)
    data = mhd.data.arrays(X.repeat(10, axis=0), numbers, regression=True)
    clients = mhd.make_clients(data, 2, "mlp_small", partition="iid")
    run = mhd.simulate("complete", clients, "isolated", **HOW, workdir=tmp_path / "run")
    loaded = mhd.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.predict(X), run.predict(X))
    np.testing.assert_array_equal(loaded.client(1).predict(X), run.client(1).predict(X))
    assert loaded.predict(X).min() > 10


@pytest.mark.slow
def test_ones_own_predict_and_pretext_task_are_not_mistaken(tmp_path):
    """Both are defined in a function, where pickle cannot find them again."""

    def reversed_predict(state, inputs):
        return groups.predict(state, inputs)[..., ::-1]

    def reversed_outputs():
        usual = mhd.algorithms.isolated()
        return dataclasses.replace(usual, predict=reversed_predict, factory=reversed_outputs)

    class Turned(mhd.pretext.Rotation):
        """Another class than the library's."""

    objectives = ["supervised", Turned()]
    images = mhd.data.arrays(X.repeat(10, axis=0), np.arange(60) % 3)
    clients = mhd.make_clients(images, 2, "mlp_small", partition="iid", objectives=objectives)
    run = mhd.simulate("complete", clients, reversed_outputs(), **HOW, workdir=tmp_path / "run")
    with pytest.raises(mhd.ConfigError, match=r"give it: mhd\.load\(path, predict=\.\.\.\)"):
        mhd.load(tmp_path / "run")
    loaded = mhd.load(tmp_path / "run", predict=reversed_predict)
    np.testing.assert_array_equal(loaded.predict(X), run.predict(X))


@pytest.mark.slow
def test_what_is_left_of_a_run_without_checkpoints(clients, tmp_path):
    run = mhd.simulate("ring", clients, "isolated", **HOW, workdir=tmp_path / "run")
    (tmp_path / "run" / loading.NAME).unlink()
    loaded = mhd.load(tmp_path / "run")
    assert loaded.summary == run.summary and loaded.state is None
    with pytest.raises(mhd.ConfigError, match="gone"):
        loaded.client(0)


def test_only_finished_runs_are_loaded(tmp_path):
    with pytest.raises(mhd.ConfigError, match="does not hold a run"):
        mhd.load(tmp_path)


def test_frames_hold_what_the_summary_holds(result):
    classes = result.frame("classes")
    rows = classes if isinstance(classes, list) else classes.to_dict("records")
    (row,) = [r for r in rows if (r["client"], r["head"], r["class"]) == (2, "aux_1", 7)]
    each = result.summary["per_client"][2]
    assert row["accuracy"] == each["per_class_accuracy"]["aux_1"][7]
    assert row["private_samples"] == result.summary["data"]["private_samples"][2][7]
    edges = result.frame("edges")
    rows = edges if isinstance(edges, list) else edges.to_dict("records")
    received = np.zeros((4, 4), int)
    for row in rows:
        received[row["receiver"], row["sender"]] = row["messages"]
    assert received.tolist() == result.summary["communication"]["by_edge"]["predictions"]
    history = result.frame()
    rows = history if isinstance(history, list) else history.to_dict("records")
    last = [r for r in rows if r["step"] == 4 and r["metric"] == "beta_sh"]
    found = {(r["split"], r["head"]): r["value"] for r in last}
    assert found["test", "aux_3"] == result.summary["beta_sh"]["aux_3"]
    assert found["validation", "main"] == result.history[-1]["validation"]["beta_sh"]["main"]
    assert len(result.frame("clients")) == 4 * 2 * 4
    with pytest.raises(mhd.ConfigError, match="history, clients, classes, edges"):
        result.frame("everything")


def test_objects_are_shown_in_a_few_lines(result, clients):
    wide = mhd.data.arrays(np.zeros((300, 30), np.float32), np.arange(300) % 30)
    shown = [
        result,
        clients,
        clients.data,
        mhd.make_clients(wide, 30, partition="iid", public_fraction=0),
        mhd.topology.ring(8),
        mhd.topology.complete(100),
        result.client(0),
        *(build() for build in mhd.algorithms.ALGORITHMS.values()),
    ]
    for each in shown:
        text = repr(each)
        assert 0 < len(text.splitlines()) <= 20
        assert max(map(len, text.splitlines())) <= 500
    assert f"{result.summary['beta_sh']['aux_1']:.3f}" in repr(result)
    assert "4 clients" in repr(clients) and str(clients.label_counts()[0, 0]) in repr(clients)


def test_objects_are_shown_in_notebooks(result, clients):
    assert result.plot()._repr_png_().startswith(b"\x89PNG")
    assert f"{result.summary['beta_priv']['main']:.3f}" in result._repr_html_()
    assert clients.data._repr_html_().count("data:image/png;base64,") == 1
    ring = mhd.topology.ring(5)._repr_html_()
    assert ring.count("<circle") == 5 and ring.count("<line") == 5
    directed = mhd.topology.ring(5, directed=True)._repr_html_()
    assert directed.count("marker-end") == 5
    assert "<svg" not in mhd.topology.complete(100)._repr_html_()
    assert "<table>" in clients._repr_html_()
    assert (
        "&lt;"
        in mhd.data.arrays(
            np.zeros((4, 3), np.float32), [0, 1, 0, 1], class_names=["<b>", "c"], test_fraction=0.5
        )._repr_html_()
    )


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda c: mhd.simulate(c, "ring"), "the graph comes first"),
        (lambda c: mhd.simulate("ring", "digits"), "what mhd.make_clients returns"),
        (lambda c: mhd.simulate("ring", c, nu_aux=0.1), r"mhd\.algorithms\.mhd\(nu_aux=\.\.\.\)"),
        (lambda c: mhd.simulate("ring", c, step=3), "did you mean steps?"),
        (lambda c: mhd.prepare("ring", c, lambda_m=3), "ccl"),
        (lambda c: mhd.make_clients("digits", clients=3), "did you mean num_clients?"),
        (
            lambda c: mhd.simulate("ring", c, learning_rate=0.1),
            r"optim\.SGD\(learning_rate=\.\.\.\)",
        ),
        (lambda c: mhd.simulate("ring", c, partition="iid"), r"make_clients\(\.\.\., partition="),
        (lambda c: mhd.compare({"a": "mhd"}, "ring", [c], momentum=0), "SGD"),
        (lambda c: mhd.simulate("ring", c, zzz=3), r"see its help\(\)"),
    ],
)
def test_wrong_calls_are_answered_in_a_sentence(clients, call, says):
    with pytest.raises(mhd.ConfigError, match=says) as raised:
        call(clients)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_written_is_named(result, tmp_path):
    with pytest.raises(mhd.ConfigError, match=r"client\.npz cannot be written"):
        result.client(0).save(tmp_path / "there is none" / "client.npz")


def test_one_sample_is_refused(result):
    with pytest.raises(mhd.ConfigError, match=re.escape("x[None]")):
        result.client(0).apply(X[0])


def _beta(seed: int) -> mhd.Result:
    clients = mhd.make_clients("digits", 2, "mlp_small", seed=seed)
    return mhd.simulate("complete", clients, "isolated", **HOW, seed=seed)


@pytest.mark.slow
def test_results_cross_processes():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (found,) = pool.map(_beta, [3])
    assert found.summary["seed"] == 3
    assert found.predict(X).shape == (2, 6, 1, 10)
