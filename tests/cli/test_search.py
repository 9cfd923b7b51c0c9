"""Searches by Optuna: what is proposed, what it is judged by, and that they go on where they ended."""

import json
import pathlib
import shlex
import shutil

import numpy as np
import pytest

from mhd_jax.cli import search
from mhd_jax.cli.commands import sweep, train
from mhd_jax.runs import removal

pytestmark = pytest.mark.trackers

SMALL = [
    *("--steps=2", "--eval_every=2", "--batch_size=4", "--public_batch_size=4", "--num_clients=3"),
    *("--model=mlp_small", "--validation_fraction=0.2", "--seeds=1", "--trials_at_once=6"),
]
SPACE = [
    "--space=algorithm=naive,isolated",
    "--space=topology=ring,torus",  # three clients are no torus
    "--space=learning_rate=0.01..0.1:log",
    "--space=momentum=0.9,1.5",  # which no optimizer takes
]


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def test_the_best_is_so_on_validation_samples_and_its_command_repeats_it(output):
    given = ["--search=tpe", "--trials=6", "--seeds=2", "--workdir=w", "--nu_emb=0"]
    out = output(sweep, *SMALL, *SPACE, *given, "--objective=beta_sh/main")
    table = read("w/table.json")
    values = {}
    for trial in table["trials"]:
        if "torus" in trial["case"] or "momentum=1.5" in trial["case"]:
            assert trial["status"] == "failed" and trial["value"] is None
            continue
        folders = sorted(pathlib.Path("w").glob(f"{trial['case'].replace(' ', '_')}/seed_*"))
        on = [read(f / "summary.json")["validation"]["beta_sh"]["main"] for f in folders]
        assert len(on) == 2 and trial["values"] == on
        assert trial["value"] == pytest.approx(np.mean(on))
        values[trial["case"]] = trial["value"]
    assert 0 < len(values) < 6 and len(table["trials"]) == 6
    best = table["best"]
    assert best["value"] == values[best["case"]] == max(values.values())
    assert best["command"] in out and "trials failed" in out and "torus" in out
    assert "momentum must be in [0, 1), not 1.5" in out
    assert all(row["algorithm"] == row["given"]["algorithm"] for row in table["rows"])

    program, command, *arguments = shlex.split(best["command"])
    assert (program, command) == ("mhd", "train") or command == "-m"
    arguments = [each for each in arguments if each.startswith("--")]
    output(train, *arguments, "--workdir=alone")
    (kept,) = pathlib.Path("w").glob(f"{best['case'].replace(' ', '_')}/seed_0/summary.json")
    alone, within = read("alone/summary.json"), read(kept)
    assert alone["settings"] == within["settings"]
    assert alone["beta_sh"] == pytest.approx(within["beta_sh"])


def test_a_search_goes_on_as_if_it_had_never_ended(output):
    given = ["--search=tpe", "--space=nu_naive=0.1..3:log", "--algorithm=naive", *SMALL]
    output(sweep, *given, "--trials=12", "--workdir=w")  # the last two by what came before
    whole = read("w/table.json")
    cases = [trial["case"] for trial in whole["trials"]]
    assert len(set(cases)) == 12
    shutil.copytree("w", "v")
    for case in cases[8:]:  # as if it had been killed within the second batch
        shutil.rmtree(pathlib.Path("v", case))
    kept = pathlib.Path("v", cases[0], "seed_0/summary.json")
    before = kept.stat().st_mtime_ns
    output(sweep, *given, "--trials=6", "--workdir=v")
    assert read("v/table.json")["trials"] == whole["trials"][:6]
    output(sweep, *given, "--trials=12", "--workdir=v")
    assert read("v/table.json") == whole and kept.stat().st_mtime_ns == before
    removal.discard(pathlib.Path("v"))  # nothing is there that --overwrite would not know


@pytest.mark.parametrize(
    ("text", "kind", "ends"),
    [
        ("nu_aux=0.1..3:log", "FloatDistribution", (0.1, 3.0, True)),
        ("num_aux_heads=1..4", "IntDistribution", (1, 4, False)),
        ("skew=1..4", "FloatDistribution", (1.0, 4.0, False)),  # a number, however it is written
        ("num_targets=1..3", "IntDistribution", (1, 3, False)),  # a number or a word
        ("weight_decay=1e-5..1e-2:log", "FloatDistribution", (1e-5, 1e-2, True)),
    ],
)
def test_ranges(text, kind, ends):
    (axis,) = search.cases.axes([text], "space")
    found = search._distribution(search.extras.require("optuna"), axis)
    assert type(found).__name__ == kind and (found.low, found.high, found.log) == ends


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space=nu_aux=3..0.1"], "--space=nu_aux=3..0.1 is no range: "),
        (["--space=nu_aux=0..1:log"], "is no range: "),
        (["--space=num_aux_heads=0.5..2"], "--num_aux_heads does not take '0.5'"),
        (["--space=seed=1..4"], "--seed is the sweep's own"),
        (["--space=patience=1..4", "--early_stopping=beta_sh"], "give it by itself, not in --space"),
        (["--space=validation_fraction=0.1,0.2"], "it cannot be in its --space"),
        (["--space=nu_aux=0..1", "--objective=beta"], "there is no metric 'beta'; choose among beta_sh"),
        (["--space=nu_aux=0..1", "--validation_fraction=0"], "set validation_fraction. Nothing is chosen on"),
        (["--space=nu_aux=0..1", "--temperature=0"], "temperature must be positive"),
        (["--space=nu_naive=0..1", "--algorithm=naive", "--trials=1", "--objective=beta_sh/aux_9"], "has no head 'aux_9', but main"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched(call, arguments, said):
    status, _, err = call(sweep, *SMALL, "--search=random", *arguments)
    assert status == 2 and said in err.splitlines()[-1]


def test_a_metric_that_finished_runs_lack(output, call):
    given = [*SMALL, "--search=random", "--space=learning_rate=0.01..0.1", "--trials=1"]
    given += ["--algorithm=isolated", "--workdir=w"]
    output(sweep, *given)
    status, _, err = call(sweep, *given, "--metrics=macro_f1", "--objective=macro_f1")
    said = "holds a finished run that was not measured by it; begin anew with --overwrite"
    assert status == 2 and said in err.splitlines()[-1]
