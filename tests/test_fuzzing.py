"""Made inputs of every kind, a few of each (`make fuzz` tries many), and what they once broke."""

import json
import os
import pathlib

import networkx as nx
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.cli.settings import RunSettings
from mhd_jax.clients import of_each
from mhd_jax.core.label_sets import resolved
from mhd_jax.data import split_files, tfds
from mhd_jax.data.augmentation import parse
from mhd_jax.data.split import SetAside
from mhd_jax.exchange.adversaries import checked
from mhd_jax.runs.records import read_json
from mhd_jax.training.parameter_averaging import mixing_matrix
from tests.builders import simulate_in, tiny_clients, tiny_dataset
from tests.fuzzing import every_kind, explore

topology, arrays = mhd.topology, mhd.data.arrays
labels = np.arange(20) % 2


FEWER = 6  # tenths of each kind's examples


@pytest.mark.parametrize("name", every_kind())
def test_made_inputs_are_taken_or_refused(name):
    kind = every_kind()[name]
    tried = explore(kind, FEWER * kind.examples // 10)
    if tried.failure is not None:
        raise tried.failure
    assert tried.taken + tried.refused >= FEWER * kind.examples // 20


def _edges(text, **kwargs):
    pathlib.Path("graph.txt").write_text(text)
    return topology.from_file("graph.txt", **kwargs)


def _weighted(weight):
    graph = nx.Graph()
    graph.add_edge(0, 1, weight=weight)
    return topology.from_networkx(graph)


def _owners(*values, ending=".npy"):
    np.save("owners.npy", np.array(values))
    os.replace("owners.npy", f"owners{ending}")
    return split_files.load(
        pathlib.Path(f"owners{ending}"), np.zeros(len(values), int), 1, SetAside(0.0, 0.0, 0)
    )


def _folder_with_a_pipe():
    os.makedirs("images/a")
    os.mkfifo("images/a/0.png")
    return mhd.data.load("./images")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: topology.from_array(np.eye(2)[::-1] * 1e-50), "must lie in 1.2e-38"),
        (lambda: topology.from_array(np.eye(2)[::-1] * 1j), "must be an array of numbers"),
        (lambda: topology.from_array([["0", "1"], ["1", "0"]]), "must be an array of numbers"),
        (lambda: _weighted(1j), "edge weights must be numbers"),
        (lambda: _weighted(10**400), "edge weights must be numbers"),
        (lambda: _edges("0 1 nan"), "line 1: expected two clients"),
        (lambda: _edges("0 99999", num_clients=8), "has 100000 clients, but there are 8"),
        (lambda: _edges("0 99999"), "at most 16,384 clients, not 100,000"),
        (lambda: topology.complete(10**9), "at most 16,384 clients"),
        (lambda: topology.torus(-5), "needs at least 1 clients, not -5"),
        (lambda: topology.erdos_renyi(0), "needs at least 1 clients, not 0"),
        (lambda: topology.ring("8"), "needs at least 3 clients, not '8'"),
        (lambda: topology.random_regular(8, seed=-1), "seed must be an integer in 0"),
        (lambda: topology.random_matching(8, seed=2**40), "seed must be an integer in 0"),
        (lambda: topology.random_regular(8, degree=2.0), "degree must be an integer"),
        (lambda: topology.named("ring@" + "9" * 5000, 8), "written with the steps at which"),
        (lambda: mhd.optim.SGD(float("inf")), "learning_rate must be a finite number, not inf"),
        (lambda: mhd.optim.SGD(warmup_steps=1.5), "warmup_steps must be an integer"),
        (lambda: mhd.optim.SGD("0.1"), "learning_rate must be a finite number, not '0.1'"),
        (lambda: mhd.algorithms.mhd(nu_aux=float("inf")), "nu_aux must be a finite number"),
        (lambda: mhd.algorithms.mhd(num_targets=True), "num_targets must be an integer or"),
        (lambda: mhd.algorithms.fedavg(2**40), "local_steps must be an integer below 2"),
        (lambda: mhd.algorithms.mhd(compression="top_" + "9" * 5000), "unknown compression"),
        (lambda: mhd.algorithms.fedmd(compression={}), "compression must be a text"),
        (lambda: mhd.Faults(stragglers=5), "stragglers must be numbers by client"),
        (lambda: mhd.Faults(joins={"a": 5}), "joins must name clients by their numbers, not 'a'"),
        (lambda: mhd.Faults(leaves=[(1, 5), (1, 7)]), "leaves names a client twice"),
        (lambda: mhd.Faults(offline_trains="yes"), "offline_trains must be True or False"),
        (lambda: parse("crop:1,crop:4"), "names crop twice"),
        (lambda: mhd.data.Augmentation(cutout=10**30), "cutout must be an integer below 2"),
        (lambda: mhd.partition.dirichlet(float("inf")), "alpha must be a finite number"),
        (lambda: mhd.partition.shards(1.5), "shards_per_client must be an integer"),
        (lambda: SetAside("half", 0.0, 0), "public_fraction must be a finite number"),
        (lambda: _owners(-1, ending=".npz"), "is not a readable assignment"),
        (lambda: of_each("mlp:²", 2, "models", "mlp:2"), "cannot read the models"),
        (lambda: of_each("mlp:999999999", 2, "models", "mlp:2"), "are for 999999999 clients"),
        (lambda: of_each({0: "mlp", "a": "mlp"}, 1, "models", "mlp"), "check ['a']"),
        (lambda: resolved("0-999999999999:0", np.ones((2, 2))), "cannot read the label sets"),
        (lambda: resolved("1-0:0", np.ones((2, 2))), "cannot read the label sets"),
        (lambda: resolved(5, np.ones((2, 2))), "label_sets are 'own', a list"),
        (lambda: checked([1], 4), "adversaries are kinds by client"),
        (lambda: RunSettings(adversaries="1:nan,1:inf").clients(0), "name client 1 twice"),
        (lambda: RunSettings(learning_rates="mlp:1,mlp:2").clients(0), "cannot read the learning"),
        (lambda: mixing_matrix([[True, False]], tiny_clients(4)), "check [True, False]"),
        (lambda: mhd.make_clients(tiny_dataset(), 10**9), "of which each client needs one"),
        (lambda: arrays([[1, 2], [3]], [0, 1]), "must be arrays"),
        (lambda: arrays(np.ones((20, 0)), labels), "no empty axis"),
        (lambda: arrays(np.ones((20, 3)), labels * 2**32), "labels must lie in 0"),
        (lambda: arrays(np.ones((20, 3)), labels.astype("m8[s]")), "labels must be integers"),
        (lambda: arrays(np.full((20, 3), 1e300), labels), "or numbers beyond float32"),
        (lambda: arrays(np.ones((20, 3)), labels, num_classes=10**9), "at most 1,048,576 can be"),
        (lambda: arrays(np.ones((20, 3)), labels * 10**9 - 1), "number classes without gaps"),
        (lambda: arrays(np.ones((20, 3)), labels, class_names=5), "must be a list of names"),
        (lambda: mhd.data.load("~nobody/images"), "does not exist"),
        (lambda: mhd.data.load("./" + "a" * 300), "does not exist"),
        (lambda: mhd.data.load("a" * 300), "is not prepared in"),
        (lambda: mhd.partition.named("a" * 300), "unknown partition"),
        (_folder_with_a_pipe, "is not a file, or leads to none"),
    ],
)
def test_what_once_broke_is_one_sentence(make, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mhd.ConfigError) as refused:
        make()
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_json_of_any_depth_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(mhd.ConfigError, match="cannot be read"):
        read_json(tmp_path / "config.json")


def test_dense_regular_graphs_are_drawn():
    """networkx, which pairs stubs until all fit, would take for ever."""
    graph = np.asarray(topology.random_regular(50, degree=45).at(0))
    assert (graph.sum(axis=0) == 45).all() and (graph == graph.T).all()


def test_a_skew_beyond_floats_gives_primary_labels_only():
    """The sum of the clients' weights overflows, and the last one got everything."""
    dealt = [
        mhd.partition.primary_labels(2, skew)(labels, 4, 2, np.random.default_rng(0))
        for skew in (1.7e308, float("inf"))
    ]
    np.testing.assert_array_equal(*dealt)
    assert len(set(dealt[0])) == 4


def test_numbers_of_short_types_do_not_run_over():
    """200 · 2 is 144 in uint8, and some clients got no shard."""
    rule = mhd.partition.shards(np.uint8(2))
    owner = rule(np.arange(1000) % 2, 200, 2, np.random.default_rng(0))
    assert set(owner) == set(range(200))


def test_file_names_that_are_no_text_can_be_read(tmp_path):
    from tests.fuzzing.samples import _encoded

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            path = os.fsencode(tmp_path / name) + b"/\xff%d.png" % i
            pathlib.Path(os.fsdecode(path)).write_bytes(_encoded(".png", 4, "RGB"))
    assert len(mhd.data.load(tmp_path).labels) == 8


def test_a_finished_run_whose_files_contradict_each_other_is_refused(tmp_path):
    clients = tiny_clients(2)

    def run():
        return simulate_in(tmp_path / "w", "complete", clients, "isolated", steps=2)

    assert run().summary["status"] == "finished" and run().started_at == 2
    path = tmp_path / "w" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "beta_sh": {"main": 1.5}}))
    with pytest.raises(mhd.ConfigError, match=r"the last line of metrics.jsonl beside it differ"):
        run()
    path.write_text("{}")
    with pytest.raises(mhd.ConfigError, match="it is not a finished run's"):
        run()


def test_a_damaged_cache_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tfds._save("x", {"labels": np.arange(3)})
    path = tfds._cache_file("x")
    assert list(tfds._load("x")) == ["labels"]
    content = path.read_bytes()
    for damaged in (content.replace(b"\x00\x00\x00\x00", b"\x07\x07\x07\x07"), content[:50], b""):
        path.write_bytes(damaged)
        assert tfds._load("x") == {}
