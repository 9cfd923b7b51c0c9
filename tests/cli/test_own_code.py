"""Users' own code on the command line: what it does, what is recorded of it, what is refused."""

import json
import pathlib

import pytest
from absl import flags
from absl.testing import flagsaver

import mhd_jax as mhd
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli import own_code
from mhd_jax.cli.commands import compare, sweep, train
from tests.builders import SMALL, python

CODE = """
import flax.linen as nn
import jax
import numpy as np

import mhd_jax as mhd
from mhd_jax.training import groups


def scaled(scale: float = 1.0):
    def init(key, clients, sample_batch):
        return groups.init_state(key, clients, sample_batch, num_heads=1)

    def train_step(state, batch, graph):
        gradients, stats, losses = groups.private_gradients(state, batch, label_smoothing=0.0)
        gradients = jax.tree.map(lambda g: scale * g, gradients)
        return groups.apply_gradients(state, gradients, stats), {"loss": losses, "messages": {}}

    return mhd.Algorithm(init, train_step, groups.predict, lambda state, batch, group: {})


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x.reshape(len(x), -1))


def deal(labels, num_clients, num_classes, rng):
    return np.arange(len(labels)) % num_clients


def line(num_clients):
    return np.eye(num_clients, k=1)


def first(key, candidates):
    return candidates.probabilities[0]


def half(logits, labels):
    return 0.5


def no_algorithm():
    return 3


def taken(steps=3):
    return scaled()
"""


@pytest.fixture
def my_code(tmp_path):
    (tmp_path / "my.py").write_text(CODE)
    return tmp_path / "my.py"


def read(path):
    return json.loads(pathlib.Path(path).read_text())


@pytest.mark.slow
def test_an_algorithm_whose_arguments_are_flags(output, refused, my_code):
    own = [*SMALL, "--algorithm=my.py:scaled"]
    output(train, *SMALL, "--algorithm=isolated", "--label_smoothing=0", "--workdir=isolated")
    output(train, *own, "--workdir=own")
    alone, found = (read(f"{name}/summary.json") for name in ("isolated", "own"))
    assert found["algorithm"] == "scaled" and found["beta_sh"] == alone["beta_sh"]
    assert found["settings"]["hyperparameters"] == {"scale": 1.0}
    told = json.loads(output(train, *own, "--scale=0.5", "--dry_run", "--json"))
    assert told["settings"]["hyperparameters"] == {"scale": 0.5}

    assert len(found["settings"]["clients"]["own_code"]) == 1
    assert "own_code" not in alone["settings"]["clients"]
    my_code.write_text(CODE + "# another thought\n")
    said = refused(train, *own, "--workdir=own")
    assert "own holds a run with other settings: the code of my" in said


@pytest.mark.slow
def test_all_else_of_ones_own(output, my_code):
    given = ["--model=my.py:Net", "--partition=my.py:deal", "--topology=my.py:line"]
    given += ["--target_selection=my.py:first", "--metrics=macro_f1,my.py:half"]
    output(train, "--steps=2", "--num_clients=3", "--batch_size=4", *given, "--workdir=w")
    found = read("w/summary.json")
    assert found["per_client"][0]["model"] == "net"
    assert (
        found["metrics"].keys() == {"macro_f1", "half"} and found["metrics"]["half"]["main"] == 0.5
    )
    by_edge = found["communication"]["by_edge"]["predictions"]
    assert by_edge == [[0, 2, 0], [0, 0, 2], [0, 0, 0]]
    sizes = [sum(row) for row in found["data"]["private_samples"]]
    assert max(sizes) - min(sizes) <= 1
    assert found["settings"]["hyperparameters"]["target_selection"].endswith(".first")
    assert len(found["settings"]["clients"]["own_code"]) == 1


@pytest.mark.slow
def test_in_comparisons_and_sweeps(output, my_code):
    algorithms = ["--algorithms=my.py:scaled,isolated", "--partition=my.py:deal"]
    given = [*SMALL, *algorithms, "--seeds=1", "--scale=2", "--workdir=c"]
    assert "isolated does not use --scale." in output(compare, *given)
    assert [row["algorithm"] for row in read("c/table.json")["rows"]] == ["scaled", "isolated"]
    output(compare, *given)  # which only reads
    grid = ["--grid=algorithm=isolated,my.py:scaled", "--grid=scale=1,2", "--seeds=1"]
    output(sweep, *SMALL, *grid, "--workdir=s")
    cases = [row["case"] for row in read("s/table.json")["rows"]]
    assert len(cases) == 3 and "algorithm=my.py:scaled scale=2" in cases


def test_a_graph_of_ones_own_is_no_schedule_whatever_its_path(my_code):
    (my_code.parent / "x@y").mkdir()
    moved = my_code.rename(my_code.parent / "x@y" / "my.py")
    with flagsaver.flagsaver(topology=f"{moved}:line", num_clients=3):
        assert run_flags.unused_by_topology() == []
        graph = run_flags.settings().arguments(mhd.algorithms.isolated(), 0)["topology"]
    assert graph.at(0).tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_two_algorithms_of_one_name_are_refused(refused, my_code, tmp_path):
    my_code.write_text("import mhd_jax as mhd\ndef isolated(): return mhd.algorithms.dsgd()\n")
    given, said = "--algorithms=isolated, my.py:isolated", "called isolated; rename yours"
    assert said in refused(compare, given)
    done = python("-m", "experiments.topology", given, "--steps=1", "--seeds=1", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize("head", ["from __future__ import annotations\n", ""])
def test_arguments_that_may_be_none_are_numbers(head, tmp_path):
    arguments = (
        "a: Optional[float] = None, b: Union[None, int] = 2, c: typing.Optional[bool] = None"
    )
    arguments += ", d: float | None = None, e: Optional[str] = None, f: Union[int, str] = 1"
    code = f"import typing\nfrom typing import *\n\ndef maybe({arguments}):\n    pass\n"
    (tmp_path / "maybe.py").write_text(head + code)
    with flagsaver.flagsaver():
        run_flags.define_own([f"--algorithm={tmp_path}/maybe.py:maybe"])
        flags.FLAGS(["x", "--a=1", "--b=3", "--c=true", "--d=0.5", "--e=2", "--f=4"])
        values = [flags.FLAGS[name].value for name in "abcdef"]
    assert values == [1.0, 3, True, 0.5, "2", "4"] and isinstance(values[0], float)


REFUSED = {
    "--algorithm=none.py:f": "none.py cannot be read: No such file",
    "--algorithm=my.py:scalde": "there is no scalde in my.py; did you mean scaled?",
    "--algorithm=my.py:xyz": "there is no xyz in my.py; it has scaled, Net, deal, line, first, half",
    "--algorithm=bad.py:f": "bad.py fails at line 3 (ZeroDivisionError: division by zero)",
    "--model=torn.py:f": "torn.py cannot be read at line 1 (SyntaxError",
    "--algorithm=no.such:f": "no.such cannot be imported (ModuleNotFoundError",
    "--algorithm=my.py:no_algorithm": "no_algorithm must return a mhd.Algorithm, not 3",
    "--algorithm=my.py:Net": "is no function that returns a mhd.Algorithm",
    "--algorithm=my.py:taken": "the argument steps of my.py:taken has the name of another flag",
    "--algorithm=isolated --scale=2": "Unknown command line flag 'scale'",
    "--topology=my.py:half": "the topology function half cannot be traced",
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.items())
def test_what_cannot_work_is_one_line(call, my_code, arguments, sentence):
    pathlib.Path("bad.py").write_text("\n\n1 / 0\n")
    pathlib.Path("torn.py").write_text("def f(:\n")
    status, out, err = call(train, *SMALL, *arguments.split())
    assert status in (1, 2) and out == "" and sentence in err
    if status == 2:
        assert err.startswith("error: ") and err.count("\n") == 1


def test_a_file_is_loaded_anew_only_where_it_has_changed(my_code):
    first = own_code.load(f"{my_code}:scaled")
    assert own_code.load(f"{my_code}:scaled") is first
    my_code.write_text(CODE.replace("1.0", "2.0"))
    second = own_code.load(f"{my_code}:scaled")
    assert second is not first and second.__defaults__ == (2.0,)
    assert len(own_code.digests(first, second, "mlp:3", None)) == 2


@pytest.mark.parametrize("text", ["mlp", "resnet18:4", "ring@0,star@4", "a.npy", "my.py:3", "iid"])
def test_what_is_no_code(text):
    assert not own_code.is_own(text)


def test_of_a_package():
    assert own_code.load("mhd_jax.algorithms:isolated") is mhd.algorithms.isolated
