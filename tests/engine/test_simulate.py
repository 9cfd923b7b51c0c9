"""The host loop: runs, their folders, and what is refused; that results repeat is test_determinism's."""

import copy
import dataclasses
import functools
import gc
import json
import pickle
import shutil
import signal
import warnings
import weakref

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.data.batching import BatchSpec
from mhd_jax.data.partition_statistics import label_entropy
from mhd_jax.engine import start, steps
from mhd_jax.engine.prepare import prepare
from mhd_jax.runs.folder import RunFolder
from tests.builders import (
    FEATURES,
    NUM_CLASSES,
    Linear,
    SignalAt,
    assert_trees_close,
    assert_trees_equal,
    contents,
    simulate_in,
    thinned,
    tiny_dataset,
)

SETTINGS = {
    "steps": 20,
    "eval_every": 5,
    "batch_size": 4,
    "public_batch_size": 8,
    "eval_batch_size": 5,
}
HEADS = ["main", "aux_1", "aux_2", "aux_3"]


def clients(num_clients=4, **kwargs):
    kwargs = {"partition": mhd.partition.iid(), "public_fraction": 0.3, **kwargs}
    return mhd.make_clients(tiny_dataset(), num_clients, Linear(), **kwargs)


def in_turn(labels, num_clients, num_classes, rng):
    return np.arange(len(labels)) % num_clients


def run(algorithm="mhd", topology="ring", who=None, workdir=None, **kwargs):
    run_it = mhd.simulate if workdir is None else functools.partial(simulate_in, workdir)
    return run_it(topology, who or clients(), algorithm, **SETTINGS | kwargs)


def results(history):
    """What must repeat: everything but the clock."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


@pytest.mark.slow
def test_two_arguments_suffice():
    data = mhd.data.load("digits")
    few = {"inputs": 300, "labels": 300, "test_inputs": 40, "test_labels": 40}
    small = dataclasses.replace(data, **{of: getattr(data, of)[:n] for of, n in few.items()})
    seen = []
    result = mhd.simulate(
        mhd.topology.ring(4), mhd.make_clients(small, 4), steps=20, callbacks=[seen.append]
    )
    assert result.summary["algorithm"] == "mhd"
    assert list(result.summary["beta_sh"]) == HEADS
    assert seen == result.history and seen[-1]["step"] == 20
    assert result.plot().axes
    # The clients' own answers are what was counted; digits are stored as pixels.
    answers = result.predict(small.test_inputs)
    assert answers.shape == (4, 40, 4, 10)
    correct = answers.argmax(axis=-1) == small.test_labels[:, None]
    per_class = np.stack([correct[:, small.test_labels == c].mean(axis=1) for c in range(10)])
    np.testing.assert_allclose(
        per_class.mean(axis=(0, 1)), list(result.summary["beta_sh"].values()), rtol=1e-6
    )


def pixels(dtype=np.uint8):
    values = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1))
    values = values.astype(dtype)
    return values if values.dtype.kind in "iu" else values / dtype(255)


def run_on(images):
    data = mhd.data.arrays(images, np.arange(60) % 3).prepared(standardize=True)
    who = mhd.make_clients(data, 2, "mlp_small", partition="iid")
    return mhd.simulate("complete", who, "isolated", steps=2, batch_size=4)


@pytest.mark.slow
def test_predict_takes_samples_as_the_data_set_was_given_its_own():
    result = run_on(pixels(np.int64))
    expected = result.predict(pixels(np.uint8))
    for dtype in (np.int64, np.int16, np.uint32):
        np.testing.assert_array_equal(result.predict(pixels(dtype)), expected)
    assert result.predict(pixels()[:0]).shape == (2, 0, *expected.shape[2:])
    floats = run_on(pixels(np.float64))
    np.testing.assert_allclose(
        floats.predict(pixels(np.float32)), floats.predict(pixels(np.float64)), rtol=1e-5
    )
    flat, loud = pixels()[..., 0], pixels(np.int64) + 1000
    for who, given, sentence in (
        (result, pixels(np.float32), r"inputs hold float32 of shape \[4, 4, 1\], but arrays uint8"),
        (result, flat, r"inputs hold uint8 of shape \[4, 4\], but arrays uint8 of shape"),
        (result, loud, "inputs must be pixels in 0 … 255, but span 1000"),
        (result, pixels()[0], r"are one sample; give it as x\[None\]"),
        (result, {"x": pixels()}, r"inputs hold \['x'\] uint8 of .*, but arrays uint8"),
        (result, [[1], [1, 2]], "inputs must be arrays"),
        (result, 5, r"inputs hold int64 of shape \[\], but"),
        (floats, pixels(np.int64), r"inputs hold int64 of .*, but arrays float32 of shape"),
        (floats, pixels(np.float32) * np.nan, "inputs hold NaN"),
    ):
        with pytest.raises(mhd.ConfigError, match=sentence):
            who.predict(given)


@pytest.mark.slow
def test_a_result_can_be_pickled_and_copied():
    """Whatever its optimizer; a model that cannot is named."""
    first = run(optimizer=optax.adam(1e-3), steps=2)
    inputs = tiny_dataset().test_inputs
    content = pickle.dumps(first)
    loaded, copied = pickle.loads(content), copy.deepcopy(first)
    for again in (loaded, copied, pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_array_equal(again.predict(inputs), first.predict(inputs))
        assert again.history == first.history and again.summary == first.summary
    assert all(isinstance(a, np.ndarray) for a in jax.tree.leaves(loaded.state.groups))
    assert loaded.state.groups[0].optimizer is None and copied.state is first.state
    assert first.state.groups[0].optimizer is not None

    class Local(Linear):
        pass

    local = run("isolated", who=mhd.make_clients(tiny_dataset(), 4, Local()), steps=2)
    with pytest.raises(
        mhd.ConfigError, match=r"cannot be pickled \(.*Local.*at the top of a module"
    ):
        pickle.dumps(local)
    np.testing.assert_array_equal(copy.deepcopy(local).predict(inputs), local.predict(inputs))


def test_it_learns():
    """Blobs that one matrix separates: a trivial task, end to end."""
    result = run(steps=300, eval_every=300, optimizer=mhd.optim.SGD(0.1))
    assert min(result.summary["beta_sh"].values()) > 0.85


@pytest.mark.slow
def test_a_crash_between_a_line_and_its_checkpoint_repeats_no_line(tmp_path):
    class Crash(mhd.Callback):
        def on_evaluation(self, record):
            if record["step"] == 15:
                raise OSError("the power went out")

    with pytest.raises(OSError, match="power"):
        run(workdir=tmp_path, callbacks=[Crash()], checkpoint_every=10)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "bet')  # a torn line
    resumed = run(workdir=tmp_path)
    assert resumed.started_at == 10
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert results(map(json.loads, lines)) == results(run().history)


def test_a_finished_run_is_read_and_left_alone(tmp_path):
    first = run(workdir=tmp_path)

    def files():
        return {path: (path.stat().st_mtime_ns, held) for path, held in contents(tmp_path).items()}

    before = files()
    again = run(workdir=tmp_path)
    assert again.started_at == 20
    assert again.history == first.history
    assert again.summary == json.loads((tmp_path / "summary.json").read_text())
    assert_trees_equal(again.state, first.state)
    assert files() == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run, inside a folder that looks like one."""
    outside = tmp_path_factory.mktemp("finished")
    (outside / "config.json").write_text("")
    run(workdir=outside / "run", steps=20)
    return outside / "run"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"topology": "chain"}, "topology.name is 'ring' there and 'chain' now"),
        ({"algorithm": "naive"}, "algorithm is 'mhd' there and 'naive' now"),
        ({"optimizer": mhd.optim.SGD(0.1)}, "optimizer.learning_rate is 0.03 there and 0.1 now"),
        ({"steps": 30}, "steps is 20 there and 30 now"),
        ({"optimizer": optax.sgd(0.1)}, "optimizer.optax is None there"),
        ({"who": clients(partition=in_turn)}, "clients.partition is 'IID"),
    ],
)
def test_another_runs_folder_is_refused_and_not_touched(change, sentence, finished):
    before = contents(finished)
    with pytest.raises(mhd.ConfigError, match=sentence):
        run(workdir=finished, **change)
    assert contents(finished) == before


def with_rule(sharpness):
    rule = lambda key, candidates: jax.nn.softmax(sharpness * candidates.logits.sum(axis=0))
    return {"algorithm": mhd.algorithms.mhd(target_selection=rule)}


def frozen(part):
    """An optimizer whose mask leaves one part of the parameters as it is."""
    labels = lambda params: {name: name == part for name in params}
    parts = {False: optax.sgd(0.1), True: optax.set_to_zero()}
    return {"optimizer": optax.multi_transform(parts, labels)}


OTHER_SETTINGS = "holds a run with other settings"


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    thinned(
        [
            ({"optimizer": optax.sgd(0.1)}, {"optimizer": optax.sgd(0.2)}, OTHER_SETTINGS),
            (
                {"topology": lambda t: jnp.where(t < 100, 1, 0) * (1 - jnp.eye(4))},
                {"topology": lambda t: 1 - jnp.eye(4)},
                OTHER_SETTINGS,
            ),
            (
                {"who": clients(partition=in_turn)},
                {"who": clients(partition=lambda y, k, c, rng: np.arange(len(y)) // 8 % k)},
                OTHER_SETTINGS,
            ),
            (frozen("backbone"), frozen("heads"), "the optimizer changed since"),
            (with_rule(1.0), with_rule(2.0), "run of other code: its train step computed"),
        ],
        3,
    ),
)
def test_users_own_functions_are_told_apart(one, other, sentence, tmp_path):
    one, other = ({"algorithm": "isolated", "workdir": tmp_path, **own} for own in (one, other))
    run(**one)
    assert run(**one).started_at == 20
    with pytest.raises(mhd.ConfigError, match=sentence):
        run(**other)


def test_a_finished_run_without_checkpoints_keeps_its_history(tmp_path):
    first = run(workdir=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = run(workdir=tmp_path)
    assert again.state is None and again.history == first.history
    with pytest.raises(mhd.ConfigError, match="gone with its checkpoints"):
        again.predict(tiny_dataset().inputs)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_names_serve_wherever_objects_do():
    digits = mhd.make_clients("digits", 3, partition="iid")
    assert digits.num_clients == 3
    isolated = mhd.algorithms.isolated
    by_name, *others = (results(run(own).history) for own in ("isolated", isolated, isolated()))
    assert others == [by_name, by_name]
    with pytest.raises(mhd.ConfigError, match="unknown algorithm 'mdh'"):
        mhd.simulate("ring", clients(), "mdh")
    with pytest.raises(mhd.ConfigError, match="an algorithm is one of"):
        mhd.simulate("ring", clients(), 3)


def test_training_time_survives_an_interruption(tmp_path):
    stop = SignalAt(3, signal.SIGTERM)
    with pytest.raises(mhd.InterruptedRun):
        run("isolated", workdir=tmp_path, callbacks=stop, steps_per_dispatch=3, eval_every=20)
    config = json.loads((tmp_path / "config.json").read_text())
    folder = RunFolder(tmp_path, config["settings"], config["programs"])
    prepared = prepare("ring", clients(), "isolated", **SETTINGS | {"eval_every": 20})
    _, seconds = folder.restore(prepared.carry, folder.checkpoints.steps[-1], prepared.start)
    folder.close()
    resumed = run("isolated", workdir=tmp_path, eval_every=20)
    assert resumed.summary["timing"]["seconds_per_step"] * 20 > seconds > 0


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("five years of work")
    for config, sentence in (
        (None, "is not a run's folder"),
        ("{", "cannot be read"),
        ('{"other": 1}', "is not a run's"),
    ):
        if config is not None:
            (tmp_path / "config.json").write_text(config)
        with pytest.raises(mhd.ConfigError, match=sentence):
            run(workdir=tmp_path)
    with pytest.raises(mhd.ConfigError, match="cannot make the workdir"):
        run(workdir=tmp_path / "thesis.txt" / "deeper")
    assert (tmp_path / "thesis.txt").read_text() == "five years of work"


def test_the_run_folder_and_its_summary(tmp_path):
    who = clients(validation_fraction=0.2)
    result = mhd.simulate("ring", who, "mhd", workdir=tmp_path, **SETTINGS)
    figures = "accuracy data_split per_class_accuracy per_class_over_time hops edges followed"
    files = [
        "config.json",
        "models.pickle",
        "split.npz",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "report.html",
    ]
    files += [f"{name}.{ending}" for name in figures.split() for ending in ("png", "svg")]
    assert {f.name for f in tmp_path.iterdir()} == set(files)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["settings"]["hyperparameters"]["num_aux_heads"] == 3
    assert config["environment"]["versions"]["jax"] == jax.__version__
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["num_clients"] == 4
    assert list(summary["beta_sh"]) == list(summary["beta_priv"]) == HEADS
    assert set(summary["validation"]) == {"beta_sh", "beta_priv", "per_client"}
    each = summary["per_client"]
    per_class = np.array([[client["per_class_accuracy"][h] for h in HEADS] for client in each])
    assert per_class.shape == (4, 4, NUM_CLASSES)
    for h, head in enumerate(HEADS):
        np.testing.assert_allclose(summary["beta_sh"][head], per_class[:, h].mean())
        own = (per_class[:, h] * who.label_distributions).sum(axis=1)
        np.testing.assert_allclose(summary["beta_priv"][head], own.mean())
        np.testing.assert_allclose([client["beta_priv"][head] for client in each], own)
    # 20 steps, 4 clients on a ring, one teacher each; 8 public samples; 5 features.
    edges = 20 * 4
    logits, embeddings = 8 * 3 * NUM_CLASSES * 4, 8 * 5 * 4
    by_edge = np.array(summary["communication"].pop("by_edge")["predictions"])
    # Every step each client hears one of its two neighbours.
    np.testing.assert_array_equal(by_edge.sum(axis=1), 20)
    assert ((by_edge > 0) <= (np.asarray(mhd.topology.ring(4).at(0)) > 0)).all()
    np.testing.assert_allclose(summary["topology"]["spectral_gap"]["uniform"], 2 / 3, atol=1e-6)
    assert summary["topology"]["edges"] == len(summary["topology"]["links"]) == 8
    assert summary["communication"] == {
        "bytes_per_step_per_edge": logits + embeddings,
        "total_bytes": edges * (logits + embeddings),
        "by_type": {"logits": edges * logits, "embeddings": edges * embeddings},
        "by_dtype": {"float32": edges * (logits + embeddings)},
        "messages": {"predictions": edges},
        "non_finite": 0,
    }
    timing = "compile_seconds seconds_per_step steps_per_second peak_memory_bytes"
    assert set(summary["timing"]) == set(timing.split())
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 6  # and the class maps
    assert f"{summary['beta_sh']['main']:.3f}" in page
    entropies = label_entropy(who.label_counts())
    assert all(f">{entropy:.3f}</td>" in page for entropy in entropies)
    result.summary["communication"].pop("by_edge")
    assert result.summary == summary


@pytest.mark.slow
def test_the_consensus_model_is_the_mean_of_the_clients_parameters():
    having = {name for name, build in ALGORITHMS.items() if build().consensus is not None}
    assert having == {"dsgd", "qg_dsgd", "ccl", "idkd"}
    assert "consensus" not in run("isolated").summary
    result = run("dsgd")
    (group,) = result.state.groups
    mean = jax.tree.map(lambda a: np.asarray(a).mean(axis=0), group.params)
    outputs, _ = group.model.apply(mean, {}, clients().data.test_inputs)
    right = np.asarray(outputs.logits[:, 0].argmax(axis=1)) == clients().data.test_labels
    by_class = [right[clients().data.test_labels == c].mean() for c in range(NUM_CLASSES)]
    found = result.summary["consensus"]
    assert found["beta_sh"]["main"] == pytest.approx(np.mean(by_class), abs=0.01)
    own = clients().label_distributions @ by_class
    assert found["beta_priv"]["main"] == pytest.approx(own.mean(), abs=0.01)


def test_supervised_pools_the_same_budget():
    result = run("supervised", steps=200, eval_every=200, optimizer=mhd.optim.SGD(0.1))
    assert result.summary["num_clients"] == 4 and len(result.summary["per_client"]) == 1
    assert result.state.num_clients == 1
    assert result.summary["beta_sh"]["main"] > 0.85


def test_who_has_no_labels_may_be_unlike_the_pooled():
    who = mhd.make_clients(
        tiny_dataset(), 3, [Linear(), Linear(), Biased()], objectives={2: "unlabelled"}
    )
    run = mhd.prepare("complete", who, "supervised", steps=1, batch_size=4)
    assert run.clients.groups[0].name == "linear"


def test_epochs_count_private_samples():
    who = clients()
    samples = int((who.owner >= 0).sum())
    prepared = mhd.prepare("complete", who, "isolated", epochs=3, batch_size=4)
    assert prepared.steps == round(3 * samples / (4 * 4))


def test_graphs_and_seeds_share_one_program():
    run(topology="ring")
    compiled = steps.dispatch._cache_size()
    run(topology="complete", seed=5)
    run(topology=1 - np.eye(4), who=clients(seed=3))
    run(topology=nx.star_graph(3), steps=20)
    assert steps.dispatch._cache_size() == compiled


@pytest.mark.slow
def test_seeds_and_splits_share_the_program_of_their_start():
    first = mhd.prepare("ring", clients(), "mhd", seed=0).init()
    compiled = start._compiled.cache_info().misses
    second = mhd.prepare("complete", clients(seed=3), "mhd", seed=1).init()
    assert start._compiled.cache_info().misses == compiled
    kernels = [state.groups[0].params["heads"]["kernel"] for state in (first, second)]
    assert not np.allclose(*kernels)
    owned = [clients(partition=mhd.partition.iid(), public_fraction=f) for f in (0.3, 0.31)]
    for who in owned:  # sizes of clients are constants of the start
        found = mhd.prepare("ring", who, "fedavg").init().extra["sizes"]
        np.testing.assert_array_equal(found, who.labelled_counts().sum(axis=1))


def test_the_program_of_a_start_keeps_no_samples(monkeypatch):
    """It stays for later runs; its constants, among them this run's public samples, do not."""
    constants, traced_start = [], start.traced_start

    def seen(*args):
        traced, shapes = traced_start(*args)
        constants.extend(map(weakref.ref, traced.consts))
        return traced, shapes

    monkeypatch.setattr(start, "traced_start", seen)
    sizes = {"batch_size": 4, "public_batch_size": 8}
    mhd.prepare("ring", clients(), "distributed_distillation", **sizes).init()
    gc.collect()
    assert constants and all(constant() is None for constant in constants)


def test_the_hot_loop_moves_nothing_to_the_host():
    who, topology, spec = clients(), mhd.topology.ring(4), BatchSpec(4, 8)
    algorithm, data = mhd.algorithms.mhd(), steps.device_data(who)
    carry = start.initial_carry(algorithm, who.with_defaults(optax.sgd(0.1)), data, spec, seed=0)
    num_steps = jnp.int32(3)
    with jax.transfer_guard("disallow"):
        carry = steps.dispatch(
            carry,
            data,
            topology.adjacency,
            num_steps,
            train_step=algorithm.train_step,
            schedule=topology.schedule,
            spec=spec,
        )
        jax.block_until_ready(carry)
    assert int(carry.count) == int(carry.state.step) == 3


def test_divergence_is_named():
    with pytest.raises(mhd.DivergedError, match=r"client 0, 1, 2, 3 is no longer finite at step"):
        run("isolated", optimizer=optax.sgd(1e20), steps=40)


@pytest.mark.slow
def test_parameters_that_overflow_in_the_last_step_are_not_saved(tmp_path):
    overflowing = optax.chain(optax.scale(-3e38), optax.scale(1e3))
    with pytest.raises(mhd.DivergedError, match=r"parameters of client 0, 1, 2 are .* at step 1 "):
        run("isolated", "complete", clients(3), tmp_path, steps=1, optimizer=overflowing)
    assert not list(tmp_path.glob("checkpoints/*"))
    assert not (tmp_path / "metrics.jsonl").exists()

    rates = [mhd.optim.SGD(rate, weight_decay=1e3, schedule="constant") for rate in (3e38, 0.01)]
    how = {"topology": "complete", "clients": clients(3), "algorithm": "isolated", "steps": 1}
    several = [{**how, "batch_size": 4, "optimizer": rate} for rate in rates]
    failed, fine = mhd.simulate_many(several, keep_going=True)
    assert "parameters of client 0, 1, 2" in str(failed) and fine.summary["status"] == "finished"


def test_collapse_is_warned_of():
    constant = np.zeros((60, FEATURES), np.float32)  # every sample alike: every answer alike
    data = mhd.data.arrays(constant, np.arange(60) % 3)
    skewed = mhd.partition.primary_labels(1, skew=float("inf"))
    who = mhd.make_clients(data, 3, Biased(), partition=skewed, public_fraction=0.3)
    with pytest.warns(UserWarning, match="distillation has collapsed"):
        run(
            mhd.algorithms.mhd(num_aux_heads=0, nu_aux=0.0, label_smoothing=0.0),
            *("complete", who),
            **{"steps": 100, "eval_every": 100, "optimizer": optax.sgd(1.0)},
        )


def test_few_public_samples_tell_nothing_of_collapse():
    """The mean prediction of one sample is as sure as its own."""
    sure = mhd.optim.SGD(0.5, weight_decay=0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*distillation has collapsed")
        result = run(
            mhd.algorithms.naive(nu_naive=0.1, label_smoothing=0.0),
            **{"steps": 100, "eval_every": 100, "public_batch_size": 1, "optimizer": sure},
        )
    assert result.summary["beta_sh"]["main"] > 0.8


class Biased(Linear):
    """Sees a constant beside its input, so that it can answer at all."""

    def __call__(self, x, train: bool = False):
        return jnp.ones((x.shape[0], 5))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps must be an integer and at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer and at least 1"),
        ({"eval_every": 0}, "eval_every must be an integer and at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be an integer and at least 1"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch must be an integer and at least 1"),
        ({"batch_size": 4.0}, "batch_size must be an integer"),
        ({"epochs": 1}, "give steps or epochs, not both"),
        ({"steps": None, "epochs": float("nan")}, "epochs must be a positive number"),
        ({"steps": None, "epochs": -1}, "epochs must be a positive number"),
        ({"seed": -1}, "seed must be an integer in 0"),
        ({"seed": 2**32}, "seed must be an integer in 0"),
        ({"optimizer": 0.1}, r"an optimizer is mhd_jax\.optim\.SGD"),
        ({"num_devices": 99}, "num_devices is 99, but there are"),
        ({"client_chunk": 0}, "client_chunk must be an integer"),
        ({"steps": 2**30}, r"must stay below 2\^32"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of stop, quarantine"),
        ({"data_placement": "disk"}, "data_placement must be one of auto, device, host"),
        ({"topology": mhd.topology.ring(5)}, "has 5 clients, but there are 4"),
        (
            {"augmentation": ["flip"]},
            r"augmentation must be a text like 'flip,crop:4' .* not \['flip'\]",
        ),
        ({"callbacks": 3}, "callbacks are functions or Callbacks, one or a list, not 3"),
        ({"init": [3]}, "are a tree for each architecture, a dict, not 3"),
    ],
)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        run(**settings)


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (3, "runs are a list, one for each run, not of type int"),
        (iter([]), "runs must be some"),
        (iter([{"topology": "complete"}]), "run 0 has no clients; add"),
        (["complete"], "run 0 must be a dict of arguments, not 'complete'"),
        ([{}, {"eval_every": 2}], "eval_every is that of all runs"),
        ([{"workdir": "w"}], "given by workdirs, one for each run"),
        ([{"topology": "complete"}], "run 0 has no clients; add"),
        ([{"steps": 3}], "run 0 has no topology and no clients; add"),
    ],
)
def test_runs_that_cannot_be_are_refused(runs, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.simulate_many(runs)


@pytest.mark.slow
def test_seeds_may_be_an_array(tmp_path):
    how = {"steps": 1, "batch_size": 4, "workdirs": [tmp_path / "0", tmp_path / "1"]}
    found = mhd.simulate_seeds(["ring"] * 2, [clients()] * 2, "isolated", seeds=np.arange(2), **how)
    assert [result.history[-1]["seed"] for result in found] == [0, 1]


def test_seeds_take_the_place_of_a_seed():
    with pytest.raises(mhd.ConfigError, match="leave seed out"):
        mhd.simulate_seeds(["ring"], [clients()], "isolated", seeds=[0], seed=3)


@pytest.mark.parametrize("samples", [np.zeros((5, 2)), {"a": np.zeros((5, 2))}])
def test_samples_without_labels_are_refused_as_data(samples):
    for take in (mhd.data.load, lambda x: mhd.make_clients(tiny_dataset(), 2, public=x)):
        with pytest.raises(mhd.ConfigError, match=r"have no labels; give \(samples, labels\)"):
            take(samples)


class Other(Linear):
    """Another model of the same kind."""


@pytest.mark.slow
def test_models_have_optimizers_of_their_own():
    fast = mhd.optim.SGD(learning_rate=0.1)
    models = [Linear(5), Linear(5), Other(5), Other(5)]

    def states(optimizers, **options):
        who = mhd.make_clients(tiny_dataset(), 4, models, partition="iid", optimizers=optimizers)
        settings = {"steps": 2, "eval_every": 2, "progress": False, "num_devices": 1}
        result = mhd.simulate("complete", who, "isolated", **settings, **options)
        return result.state.groups, result.summary["settings"]

    mixed, settings = states({"other": fast})
    slow, _ = states(None)
    whole, _ = states(None, optimizer=fast)
    assert_trees_close(mixed[0].params, slow[0].params, rtol=1e-5, atol=1e-6)
    assert_trees_close(mixed[1].params, whole[1].params, rtol=1e-5, atol=1e-6)
    assert settings["optimizers"]["2,3"]["learning_rate"] == 0.1
