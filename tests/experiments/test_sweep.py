"""Sweeps and ablations: which cases there are, that they are one program, and what their tables say."""

import csv
import json
import pathlib

import markupsafe
import numpy as np
import pytest
import scipy.stats
from absl import flags
from absl.testing import flagsaver

import mhd_jax as mhd
from experiments import ablation
from mhd_jax.cli import cases, comparison, study
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.commands import compare, sweep, train
from mhd_jax.cli.settings import RunSettings
from mhd_jax.engine import joint_runs as joining
from mhd_jax.runs import removal
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.finished import has_report
from mhd_jax.studies import over_seeds
from mhd_jax.studies.folder import folder_name
from tests.builders import python

SMALL = ("--batch_size=4", "--public_batch_size=4", "--num_clients=3", "--model=mlp_small")
FITS_SEED_0 = """
import numpy as np


def late(num_clients, seed):
    path = np.eye(num_clients + seed, k=1)
    return path + path.T
"""


@pytest.fixture
def programs(monkeypatch):
    """How many runs each joined program has."""
    found = []
    carry_out = joining.partition

    def counted(runs):
        parts = list(carry_out(runs))
        found.extend(len(indices) for indices, _ in parts)
        return parts

    monkeypatch.setattr("mhd_jax.engine.simulate.partition", counted)
    return found


def test_a_grid(output, programs):
    """Numbers, data and graphs in one program; what diverges or cannot be is kept apart."""
    pathlib.Path("my.py").write_text(FITS_SEED_0)
    arguments = [
        *("--steps=3", "--eval_every=3", "--seeds=2", "--workdir=w"),
        "--grid=algorithm=naive,isolated",
        "--grid=nu_naive=0.1,0.2",
        "--grid=topology=chain,torus,my.py:late",  # three clients are no torus
        "--grid=learning_rate=0.03,1e30",
    ]
    out = output(sweep, *SMALL, *arguments)
    # naive: 2 weights × 2 rates × (2 seeds of the chain, 1 of late); isolated uses no weight.
    assert sorted(programs) == [6, 12]
    with pathlib.Path("w/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in pathlib.Path("w/results.jsonl").read_text().splitlines()]
    assert len(lines) == len(rows) and [line["case"] for line in lines] == [r["case"] for r in rows]
    status_of = {(r["case"], r["seed"]): r["status"] for r in rows}
    assert len(status_of) == (2 * 2 * 2 + 2 * 2) * 3
    for (case, seed), said in status_of.items():
        fits = "topology=torus" not in case and not ("my.py:late" in case and seed == "1")
        fast = "learning_rate=1e30" in case
        assert said == ("refused" if not fits else "diverged" if fast else "finished")
    assert {r["nu_naive"] for r in rows if r["algorithm"] == "isolated"} == {""}
    for row in rows:
        if row["status"] == "finished":
            summary = json.loads((pathlib.Path(row["folder"]) / "summary.json").read_text())
            assert summary["beta_sh"][row["head"]] == float(row["beta_sh"])
            settings = summary["settings"]
            named = {"my.py:late": "custom"}.get(row["topology"], row["topology"])
            assert settings["topology"]["name"] == named
            if row["algorithm"] == "naive":
                assert settings["hyperparameters"]["nu_naive"] == float(row["nu_naive"])
        else:
            assert row["reason"] and not row["beta_sh"]
    table = json.loads(pathlib.Path("w/table.json").read_text())
    whole = next(row for row in table["rows"] if row["case"] == rows[0]["case"])
    main = [row for row in rows if (row["case"], row["head"]) == (whole["case"], "main")]
    values = [float(row["beta_sh"]) for row in main]
    low, high = scipy.stats.t.interval(0.95, 1, np.mean(values), scipy.stats.sem(values))
    assert whole["beta_sh"]["main"]["mean"] == pytest.approx(np.mean(values))
    assert whole["beta_sh"]["main"]["half_width"] == pytest.approx((high - low) / 2)
    assert any("torus" in note and "refused" in note for note in table["notes"])
    assert pathlib.Path("w/sweep.png").exists() and "1.0" not in out.splitlines()[-1]
    page = pathlib.Path("w/report.html").read_text()  # of the finished study, with all its lines
    assert has_report(pathlib.Path("w")) and page.count('<tr><th scope="row"') == sum(
        max(len(row["beta_sh"]), 1) for row in table["rows"]
    )
    assert f"{whole['beta_sh']['main']['mean']:.3f} ±" in page and all(
        markupsafe.escape(note) in page for note in table["notes"]
    )
    removal.discard(pathlib.Path("w"))  # nothing is there that --overwrite would not know


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "give --grid, --vary or --search"),
        (["--grid=nu_aux"], "write it like"),
        (["--grid=nu_oops=1,2"], "there is no flag --nu_oops"),
        (["--grid=nu_aux=1,1"], "names a value twice"),
        (["--grid=nu_aux=much"], "--nu_aux does not take 'much'"),
        (["--grid=seed=1,2"], "is the sweep's own"),
        (["--grid=topology=a/g,a_g"], "'topology=a/g' and 'topology=a_g' would share a folder"),
        (["--grid=patience=1,3", "--early_stopping=train/loss"], "--patience is the same for all"),
        (["--vary=tensorboard=true,false"], "--tensorboard is the same for all runs of a sweep"),
        (["--grid=skew=1,2", "--grid=skew=3"], "in two --grid"),
        (["--grid=skew=1,2", "--vary=skew=3"], "--grid and --vary are several ways"),
        (
            ["--vary=skew=1,2", "--search=tpe", "--space=skew=1..2"],
            "--vary and --search are several",
        ),
        (["--search=tpe"], "--search needs a --space, like"),
        (["--grid=skew=1,2", "--trials=3"], "--trials is about --search; give --search=tpe"),
        (["--vary=temperature=-1"], "temperature must be positive"),
        (["--grid=topology=dyck,torus", "--num_clients=3"], "dyck"),
        (["--grid=topology=ring,chain", "--degree=2"], "--degree is not used by any of the graphs"),
        (["--grid=degree=2,3"], "--degree is not used by any of the graphs"),
    ],
)
def test_what_cannot_be_swept(refused, arguments, said):
    assert said in refused(sweep, *SMALL, *arguments)


def test_options_of_one_graph_stand_beside_others():
    with flagsaver.flagsaver():
        for name in flags.FLAGS:
            flags.FLAGS[name].present = 0
        flags.FLAGS(["sweep", "--algorithm=isolated", "--offsets=1,4"])
        axes = cases.axes(["topology=circulant,ring", "degree=2,3"], "grid")
        found, notes = cases.read(cases.grid(axes[:1]))
        assert [case.name for case in found] == ["topology=circulant", "topology=ring"]
        offsets = [dict(case.settings.topology_options).get("offsets") for case in found]
        assert offsets == [(1, 4), None]
        assert not notes
        by_graph = run_flags.settings_by_graph(["circulant", "ring"])
        assert by_graph == {case.settings.topology: case.settings for case in found}
        with pytest.raises(mhd.ConfigError, match="--degree is not used by any of the graphs"):
            cases.read(cases.grid(axes))
        with pytest.raises(mhd.ConfigError, match="--offsets is not used by any of the graphs"):
            run_flags.settings_by_graph(["ring", "chain"])


@pytest.mark.parametrize(
    ("arguments", "kind", "names"),
    [
        (["algorithm=isolated,naive", "nu_naive=1,2"], "grid", ["isolated", "naive 1", "naive 2"]),
        (
            ["algorithm=isolated,mhd", "public_batch_size=4,8"],
            "grid",
            ["isolated", "mhd 4", "mhd 8"],
        ),
        (
            ["algorithm=supervised,mhd", "link_loss=0.1,0"],
            "grid",
            ["supervised", "mhd 0.1", "mhd 0"],
        ),
        (["algorithm=isolated", "augment_public=true"], "vary", ["base", "isolated"]),
        (["learning_rate=0.1,1e-1"], "grid", ["0.1"]),
    ],
)
def test_a_run_is_one_case_whatever_it_leaves_unused(arguments, kind, names):
    with flagsaver.flagsaver():
        for name in flags.FLAGS:
            flags.FLAGS[name].present = 0
        flags.FLAGS(["sweep", "--algorithm=supervised"])
        axes = cases.axes(arguments, kind)
        assignments = cases.grid(axes) if kind == "grid" else cases.one_at_a_time(axes)
        found, notes = cases.read(assignments)
    values = [" ".join(value for _, value in case.given) or "base" for case in found]
    assert values == names
    repeated = len(assignments) - len(names)
    assert notes == [f"{repeated} combination(s) that repeat another were left out."]


@pytest.mark.slow
def test_an_ablation(output, programs):
    arguments = [*SMALL, "--steps=2", "--eval_every=2", "--seeds=2", "--workdir=w"]
    arguments += ["--num_aux_heads=1", "--nu_emb=0"]
    arguments += ["--vary=algorithm=isolated", "--vary=num_aux_heads=2"]
    output(ablation, *arguments)
    found = json.loads(pathlib.Path("w/table.json").read_text())
    names = [row["case"] for row in found["rows"]]
    assert names == ["base", "algorithm=isolated", "num_aux_heads=2"]

    def accuracy(seed, case, head):
        path = pathlib.Path("w", case, f"seed_{seed}", "summary.json")
        return json.loads(path.read_text())["beta_sh"][head]

    claims = {row["claim"]: row for row in found["orderings"]}
    base, alone = ("base", "aux_1"), ("algorithm=isolated", "main")
    for claim, larger, smaller in (
        ("1. β_sh: the last head over isolated", base, alone),
        ("2. β_sh of the last head: m = 2 over m = 1", ("num_aux_heads=2", "aux_2"), base),
    ):
        differences = [accuracy(seed, *larger) - accuracy(seed, *smaller) for seed in (0, 1)]
        assert claims[claim]["mean"] == pytest.approx(np.mean(differences))
        assert claims[claim]["holds_in"] == sum(d > 0 for d in differences)
    assert not any("random" in claim for claim in claims)  # no such case
    for name in ("ablation.png", "orderings.png", "table.md", "results.csv"):
        assert (pathlib.Path("w") / name).exists()

    programs.clear()
    before = pathlib.Path("w/table.md").read_text()
    output(ablation, *arguments)
    assert pathlib.Path("w/table.md").read_text() == before
    assert not programs  # all are only read
    removal.discard(pathlib.Path("w"))  # nothing is there that --overwrite would not know


def test_an_ablation_tells_of_confident_selection_where_the_base_has_it(refused):
    for selection, number in (("most_confident", 1), ("mean", 0)):
        claims = [each.claim for each in ablation.orderings(2, selection)]
        assert sum("confident over random" in claim for claim in claims) == number
        assert len(claims) == len({*claims}) == 11 + number
    for other in (["--grid=nu_aux=1,2"], ["--search=tpe", "--space=nu_aux=1..2"]):
        assert "leave --algorithm, --grid and --search out" in refused(ablation, *other)
    assert "--trials is about --search" in refused(ablation, "--trials=3")


@pytest.mark.parametrize("carry_out", [study.run, study.explore])
def test_two_cases_of_one_name_are_refused(carry_out, tmp_path):
    of_one_name = [
        study.Case("base", folder, RunSettings(), mhd.algorithms.isolated()) for folder in "ab"
    ]
    with pytest.raises(mhd.ConfigError, match="two cases are called 'base'; name each once"):
        carry_out(of_one_name, [0], tmp_path)


def test_an_interval_of_few():
    nothing = {"mean": None, "std": None, "half_width": None}
    assert over_seeds.interval([None]) == nothing
    assert over_seeds.interval([0.5, None]) == {**nothing, "mean": 0.5}


def test_a_long_name_makes_a_folder_of_its_own():
    one, other = (folder_name("topology=" + "a/" * 100 + end) for end in "xy")
    assert one != other and "/" not in one and len(one) < 140


def heads(**means):
    return {head: over_seeds.interval([mean, mean]) for head, mean in means.items()}


def test_a_figure_over_a_flag_whose_values_are_in_any_order():
    """More heads or fewer, a line goes from left to right, with each case's own last head."""
    found = {"3": heads(main=0.1, aux_3=0.3), "1": heads(main=-0.5, aux_1=0.2), "2": heads(main=0)}
    rows = [
        {
            "given": {"num_aux_heads": number},
            "algorithm": "mhd",
            "beta_sh": by_head,
            "beta_priv": by_head,
        }
        for number, by_head in found.items()
    ]
    panel = sweep.figure(rows, [("num_aux_heads", tuple(found))]).axes[0]
    drawn = {bars.get_label(): bars.lines[0] for bars in panel.containers}
    assert drawn.keys() == {"mhd, main", "mhd, last"}
    assert drawn["mhd, main"].get_xydata().tolist() == [[0, -0.5], [1, 0], [2, 0.1]]
    assert drawn["mhd, last"].get_xydata().tolist() == [[0, 0.2], [1, 0], [2, 0.3]]
    assert panel.get_ylim()[0] < -0.5


def test_a_figure_that_failed_is_not_said_to_be_there(capsys, tmp_path):
    table = study.Table(("case",), [["base"]])
    drawn = {"whole": Figure, "torn": lambda: 1 / 0}
    with pytest.warns(UserWarning, match="division by zero"):
        study.publish(tmp_path, {}, [table], drawn)
    said = capsys.readouterr().out
    assert f"plot: {tmp_path}/whole.png" in said and "torn.png" not in said
    assert (tmp_path / "whole.png").exists()


def test_names_stand_in_tables_as_they_are(capsys, tmp_path):
    """Neither rich's markup nor another column is made of them."""
    name = "dataset=./a[b]|c[/i].npz"
    table = study.Table((name, "β"), [[name, "1"]], title=name)
    study.publish(tmp_path, {}, [table], {})
    assert capsys.readouterr().out.count(name) == 3
    heading, _, line = (tmp_path / "table.md").read_text().splitlines()
    escaped = r"dataset=./a[b]\|c[/i].npz"
    assert (heading, line) == (f"| {escaped} | β |", f"| {escaped} | 1 |")

    value = {"main": {"mean": 0.5, "std": None}}
    row = {"algorithm": name, "beta_sh": value, "beta_priv": value}
    comparison.show([row | {"total_bytes": 0, "seconds_per_step": 0}], name, tmp_path)
    assert capsys.readouterr().out.count(name) == 2
    summary = {"status": "finished", "algorithm": name, "data": {}}
    summary |= {"beta_sh": {name: 0.5}, "beta_priv": {name: None}}
    train._show(mhd.Result(summary, [], None), tmp_path)
    assert capsys.readouterr().out.count(name) == 2


@pytest.mark.slow
def test_what_was_stopped_is_said(output, tmp_path):
    given = [*SMALL, "--steps=9", "--eval_every=1", "--seeds=2", "--learning_rate=9"]
    given += ["--early_stopping=train/loss", "--patience=1"]  # at this rate a loss soon rises
    output(sweep, *given, "--grid=algorithm=isolated", "--workdir=w")
    with pathlib.Path("w/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    summaries = [
        json.loads((pathlib.Path(row["folder"]) / "summary.json").read_text()) for row in rows
    ]
    assert [summary["status"] for summary in summaries] == ["stopped"] * 2
    for row, summary in zip(rows, summaries, strict=True):
        assert (row["status"], row["reason"]) == ("stopped", summary["stopped_because"])
    assert "2 of 2 runs were stopped" in pathlib.Path("w/table.md").read_text()

    said = f"isolated, seed 1, was stopped at step {summaries[1]['steps']}: "
    for folder, told in (
        ("c", output(compare, *given, "--algorithms=isolated", "--workdir=c")),
        ("r", python("-m", "experiments.report", "c", "--output=r", cwd=tmp_path).stdout),
    ):
        assert said in told and said in (pathlib.Path(folder) / "table.md").read_text()
