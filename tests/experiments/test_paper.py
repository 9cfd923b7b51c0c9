"""The study of the paper's questions: what is kept of a run, what is run again, and the tables."""

import json
import pathlib
import re
import signal

import numpy as np
import pytest
import scipy.stats
from absl import flags
from absl.testing import flagsaver

import mhd_jax as mhd
from experiments import filled_page, paper, paper_cases, paper_tables
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli import kept, study
from mhd_jax.studies import over_seeds
from tests.builders import ROOT, SignalAt

SMALL = (
    *("--num_clients=4", "--model=mlp_small", "--other_model=mlp", "--nu_emb=0"),
    *("--steps=4", "--eval_every=4", "--batch_size=4", "--public_batch_size=4", "--results=kept"),
)
FEW = "--only=isolated,naive"


def records(folder="kept"):
    """The records in a folder: their text by the name of their file."""
    root = pathlib.Path(folder)
    return {str(path.relative_to(root)): path.read_text() for path in root.glob("*/seed_*.json")}


def interrupted_after(monkeypatch, count):
    """Lets Control-C come in the run that follows `count` others."""
    watchers = study.watchers
    monkeypatch.setattr(
        study,
        "watchers",
        lambda label="": [
            *watchers(label),
            *([SignalAt(2, signal.SIGINT)] if label.startswith(f"[{count + 1}/") else []),
        ],
    )


@pytest.mark.slow
def test_a_study_that_is_cut_loses_no_run_and_repeats_none(call, output, refused, monkeypatch):
    arguments = (*SMALL, FEW, "--seeds=2", "--steps_per_dispatch=2")
    with monkeypatch.context() as patch:
        interrupted_after(patch, 3)
        status, _, said = call(paper, *arguments, "--workdir=w")
    assert status == 130, said
    first = records()
    # All cases of a seed come before the next seed.
    assert first.keys() == {"isolated/seed_0.json", "naive/seed_0.json", "isolated/seed_1.json"}
    output(paper, *arguments, "--workdir=w")
    whole = records()
    assert len(whole) == 4 and whole.items() >= first.items()

    # What has a record is not run again, whatever the workdir.
    output(paper, *arguments, "--workdir=elsewhere")
    assert records() == whole and not pathlib.Path("elsewhere").exists()
    pathlib.Path("kept/naive/seed_1.json").unlink()
    before = pathlib.Path("w/naive/seed_1/summary.json").stat().st_mtime_ns
    output(paper, *arguments, "--workdir=w")  # a finished run is only read
    assert pathlib.Path("w/naive/seed_1/summary.json").stat().st_mtime_ns == before
    again, then = (json.loads(each["naive/seed_1.json"]) for each in (records(), whole))
    assert again["beta_sh"] == then["beta_sh"] and again["timing"] == then["timing"]

    # Other settings are never mixed with these, neither in runs nor in tables.
    for more in (["--workdir=v"], ["--tables"]):
        said = refused(paper, *arguments, "--learning_rate=0.5", *more)
        assert "kept/isolated/seed_0.json" in said
        assert "optimizer.learning_rate is 0.03 there and 0.5 now" in said
    assert not pathlib.Path("v").exists()


def test_a_record_says_what_the_run_was(output):
    output(paper, *SMALL, "--only=naive", "--seeds=1", f"--workdir={pathlib.Path('w').resolve()}")
    text = records()["naive/seed_0.json"]
    found = json.loads(text)
    summary = json.loads(pathlib.Path("w/naive/seed_0/summary.json").read_text())
    assert found["settings"] == summary["settings"]
    for metric in ("beta_sh", "beta_priv"):
        assert found[metric] == pytest.approx(summary[metric], abs=1e-6)
        for mine, whole in zip(found["per_client"], summary["per_client"], strict=True):
            assert mine[metric] == pytest.approx(whole[metric], abs=1e-6)
    assert found["communication"]["total_bytes"] == summary["communication"]["total_bytes"]
    assert found["machine"]["cores"] >= 1 and found["machine"]["versions"]["jax"]
    assert str(pathlib.Path.cwd()) not in text and len(text) < 6000


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m x --data_dir=/a/b/tfds --n=3", "python -m x --data_dir=DIR/tfds --n=3"),
        ("python -m x --workdir ~/runs/a/", "python -m x --workdir DIR/a/"),
        ("python '/a b/x.py' '--w=/c d/e'", "python DIR/x.py --w=DIR/e"),
        ("python -m x --flagfile=some/x.flags", "python -m x --flagfile=some/x.flags"),
    ],
)
def test_a_command_names_no_folder_of_a_machine(command, expected):
    assert kept.without_folders(command) == expected


@pytest.mark.slow
def test_a_run_that_diverges_is_kept_as_such_and_the_others_go_on(output):
    arguments = (*SMALL, FEW, "--seeds=1", "--workdir=w", "--nu_naive=1e38")
    output(paper, *arguments)
    found = {name: json.loads(text) for name, text in records().items()}
    assert found["isolated/seed_0.json"]["status"] == "finished"
    assert found["naive/seed_0.json"]["status"] == "diverged"
    assert "no longer finite" in found["naive/seed_0.json"]["reason"]
    assert "naive: the loss of client" in pathlib.Path("kept/tables.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--questions=main,what"], "not what"),
        (["--only=mhd_m=2"], "--only takes some of isolated"),  # which is a case of heads
        (["--algorithm=mhd"], "--algorithm is the study's own choice"),
        (["--questions=models", "--model=mlp_small:2,mlp:2"], "models needs one model of this"),
        (["--questions=models", "--other_model=my.py:net"], "models needs one model of this"),
        (["--questions=main,graphs", "--partition=iid"], "graphs needs --partition=primary_labels"),
        (["--questions="], "--questions must name each of them once, and at least one"),
        (["--tables", "--results=missing"], "missing holds no record of a run"),
    ],
)
def test_what_cannot_be_asked(refused, arguments, said):
    assert said in refused(paper, *SMALL, *arguments)


def test_records_that_cannot_be_written_are_refused_before_anything_trains(refused):
    pathlib.Path("file").touch()
    said = refused(paper, *SMALL, "--only=isolated", "--results=file/kept", "--workdir=w")
    assert "cannot make the folder of records file/kept" in said
    assert not pathlib.Path("w").exists()


def the_questions(*arguments, shared=(*SMALL, "--pilot_steps=10")):
    with flagsaver.flagsaver():
        for name in flags.FLAGS:
            flags.FLAGS[name].present = 0
        flags.FLAGS(["paper", *shared, *arguments])
        given = flags.FLAGS
        return paper_cases.questions(run_flags.settings(), given.other_model, given.pilot_steps)


def test_equal_cases_of_several_questions_are_one_run():
    asked = the_questions("--nu_aux=1")
    weights, main = asked["weights"][""], asked["main"][""]
    assert weights["mhd_nu_aux=1"] is asked["heads"][""]["mhd_m=3"] is main["mhd"]
    assert weights["mhd_nu_aux=3"].algorithm.hyperparameters["nu_aux"] == 3
    folders = [c.folder for g in asked.values() for each in g.values() for c in each.values()]
    distinct = {id(c) for g in asked.values() for each in g.values() for c in each.values()}
    assert len(set(folders)) == len(distinct)


def test_cases_differ_in_what_their_question_asks_alone():
    asked = the_questions()
    both = asked["weights"][""]["mhd_nu_aux=3_nu_emb=1"].algorithm.hyperparameters
    assert (both["nu_aux"], both["nu_emb"], both["num_aux_heads"]) == (3, 1, 3)
    assert {c.settings.topology for c in asked["graphs"]["islands"].values()} == {
        "complete",  # of isolated clients, which have no graph
        "islands",
    }
    for groups in ("graphs", "labels", "models"):
        for group in asked[groups].values():
            assert [c.algorithm.name for c in group.values()] == ["isolated", "naive", "mhd", "mhd"]
            assert len({str(c.settings.partition) for c in group.values()}) == 1
    one = asked["models"]["one mlp"]["one_mlp_mhd"].settings
    assert one.model == "mlp_small:3,mlp:1"
    assert (
        asked["models"]["one mlp_small"]["one_mlp_small_mhd"].settings.model == "mlp:3,mlp_small:1"
    )
    assert asked["others"][""]["fedmd"].settings.steps == 8  # half of them on private samples
    assert asked["others"][""]["idkd"].settings.steps == 4
    unequal = the_questions(
        "--steps=60", "--private_steps=2", "--distill_steps=1", "--digest_steps=1"
    )
    others = {name: case.settings.steps for name, case in unequal["others"][""].items()}
    assert (others["fedmd"], others["ds_fl"], others["selective_fd"]) == (72, 90, 90)
    assert unequal["others"][""]["ds_fl"].settings.eval_every == 6  # of 4 elsewhere
    for case in asked["pilots"][""].values():
        assert (case.settings.steps, case.settings.validation_fraction) == (10, 0.1)


def write_records(case, accuracies, models=("mlp_small",) * 4):
    """Writes records of a case by hand: `accuracies` are β_sh by client and head, for each seed."""
    for seed, by_client in accuracies.items():
        heads = ["main", *(f"aux_{rank}" for rank in range(1, len(by_client[0])))]
        each = [dict(zip(heads, own, strict=True)) for own in by_client]
        means = dict(zip(heads, np.mean(by_client, axis=0).tolist(), strict=True))
        settings = kept.known_without_data(case.settings, case.algorithm)
        settings["topology"] = {"name": case.settings.topology}
        clients = [
            {"client": i, "model": model, "beta_sh": own, "beta_priv": own}
            for i, (own, model) in enumerate(zip(each, models, strict=True))
        ]
        content = {"seed": seed, "status": "finished", "settings": settings, "per_client": clients}
        content |= {
            "beta_sh": means,
            "beta_priv": means,
            "communication": {"total_bytes": 2_000_000},
        }
        content["by_hops"] = [
            {"hops": 0, "pairs": 3, "accuracy": means},
            {"hops": 2, "pairs": 1, "accuracy": {head: value / 2 for head, value in means.items()}},
        ]
        kept.write(kept.path(pathlib.Path("kept"), case.folder, seed), content)


def table_rows():
    return json.loads(pathlib.Path("kept/tables.json").read_text())


def test_tables_are_made_of_records_alone(output):
    rng = np.random.default_rng(0)
    asked = the_questions()
    main, weights = asked["main"][""], asked["weights"][""]
    heads = {"isolated": 1, "naive": 1, "mhd": 4}
    drawn = {
        name: {seed: rng.uniform(0, 0.4, (4, count)) for seed in range(3)}
        for name, count in heads.items()
    }
    del drawn["mhd"][1]
    for name, each in drawn.items():
        write_records(main[name], each)
    better = {0: np.full((4, 1), 0.9)}  # with a weight that has one seed
    write_records(weights["naive_nu=3"], better)
    output(paper, *SMALL, "--seeds=3", "--tables")
    assert not pathlib.Path("runs").exists()

    (row,) = (
        row for row in table_rows()["main"] if row["case"] == "mhd" and row["head"] == "aux_3"
    )
    pairs = {n: [drawn[n][seed][:, -1].mean() for seed in (0, 2)] for n in drawn}
    assert row["seeds"] == [0, 2]
    for name, values in (
        ("beta_sh", np.array(pairs["mhd"])),
        ("less_isolated", np.subtract(pairs["mhd"], pairs["isolated"])),
        ("less_naive", np.subtract(pairs["mhd"], pairs["naive"])),
    ):
        low, high = scipy.stats.t.interval(0.95, 1, values.mean(), scipy.stats.sem(values))
        assert row[name]["mean"] == pytest.approx(values.mean(), abs=1e-6), name
        assert row[name]["half_width"] == pytest.approx((high - low) / 2, abs=1e-6), name
    # The best naive is one of the question's own, and seeds that both have are compared.
    (other,) = (row for row in table_rows()["weights"] if row["case"] == "isolated")
    assert other["best_naive"] == "naive_nu=3"
    expected = drawn["isolated"][0].mean() - 0.9
    assert other["less_naive"] == {
        "mean": pytest.approx(expected),
        "std": None,
        "half_width": None,
    }
    text = pathlib.Path("kept/tables.md").read_text()
    assert over_seeds.as_cell(row["beta_sh"]) in text
    assert "mhd has not been run with seed 1." in text
    assert "supervised has not been run with seed 0, 1, 2." in text
    assert "| heads |" not in text  # nothing of its own has been run
    assert {path.name for path in pathlib.Path("kept/figures").iterdir()} == {
        f"{question}_heads.{kind}" for question in ("main", "weights") for kind in ("png", "svg")
    }


def test_tables_by_model_and_by_hops(output):
    asked = the_questions()
    mixed, chain = asked["models"]["one mlp"], asked["graphs"]["chain"]
    models = ("mlp_small",) * 3 + ("mlp",)
    write_records(mixed["one_mlp_isolated"], {0: [[0.1], [0.2], [0.3], [0.7]]}, models)
    write_records(mixed["one_mlp_mhd"], {0: [[0.1, v] for v in (0.3, 0.4, 0.5, 0.8)]}, models)
    write_records(chain["chain_mhd"], {0: [[0.6, 0.4]] * 4})
    write_records(chain["skew=inf_isolated"], {0: [[0.5]] * 4})
    output(paper, *SMALL, "--seeds=1", "--tables")
    gains = {
        row["model"]: row["less_isolated"]["mean"]
        for row in table_rows()["models"]
        if row["case"] == "one_mlp_mhd" and row["head"] == "aux_1"
    }
    assert gains == {"mlp_small": pytest.approx(0.2), "mlp": pytest.approx(0.1)}
    # Accuracies by hops are of all clients, and so no model's own.
    assert {len(row["by_hops"]) for row in table_rows()["models"]} == {0}
    assert {len(row["by_hops"]) for row in table_rows()["graphs"]} == {2}
    lines = pathlib.Path("kept/tables.md").read_text().splitlines()
    assert "| graphs | graph | head | 0 hops | 2 hops |" in lines
    main = lines.index("| chain_mhd | chain | main | 0.600 | 0.300 |")
    assert lines[main + 1] == "|  | chain | aux_1 | 0.400 | 0.200 |"
    assert not any(
        line.startswith("| skew=inf_isolated | chain | main | 0.500 | 0") for line in lines
    )
    assert pathlib.Path("kept/figures/graphs_hops.svg").exists()


def test_equal_cases_are_one_row(output):
    weights = the_questions("--nu_aux=1")["weights"][""]
    write_records(weights["mhd_nu_aux=1"], {0: [[0.5] * 4] * 4})  # which is mhd's, and nu_emb=0's
    output(paper, *SMALL, "--nu_aux=1", "--seeds=1", "--tables")
    assert {row["case"] for row in table_rows()["weights"]} == {"mhd"}


PAGE = """Before.

<!-- made: kept/main -->
| old | table |
<!-- end -->

Between.

<!-- made: others/main -->
<!-- end -->
"""


def test_tables_of_a_page_are_made_anew_and_all_else_stays(output):
    write_records(the_questions()["main"][""]["isolated"], {0: [[0.25]] * 4})
    page = pathlib.Path("page.md")
    page.write_text(PAGE)
    for _ in range(2):
        output(paper, *SMALL, "--seeds=1", "--tables", "--page=page.md")
        before, table, after = re.split(
            "<!-- made: kept/main -->\n|<!-- end -->\n\nB", page.read_text()
        )
        assert before == "Before.\n\n" and f"B{after}" == PAGE[PAGE.index("Between.") :]
        assert table.splitlines()[3].startswith("| isolated | main | 1 | 0.250 | 0.250 |")


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("No table.", "page.md has no place for a table of kept; put <!-- made: kept/main -->"),
        ("<!-- made: kept/graphs_hops -->\n<!-- end -->\n", "but records make main"),
        (None, "page.md cannot be read"),
    ],
)
def test_a_page_without_a_place_for_tables_is_refused(refused, page, said):
    write_records(the_questions()["main"][""]["isolated"], {0: [[0.25]] * 4})
    if page is not None:
        pathlib.Path("page.md").write_text(page)
    assert said in refused(paper, *SMALL, "--seeds=1", "--tables", "--page=page.md")


@pytest.mark.parametrize(
    ("results", "preset", "others"),
    [
        ("tiny_imagenet", "tiny_imagenet", []),
        ("tiny_imagenet_long", "tiny_imagenet", ["--steps=10000", "--eval_every=2000"]),
        ("tiny_imagenet_longest", "tiny_imagenet", ["--steps=20000", "--eval_every=4000"]),
        ("cifar10", "cifar10_paper", []),
        ("cifar10_ccl", "cifar10_ccl_short", []),
    ],
)
def test_the_page_of_results_is_made_of_its_records(results, preset, others):
    flagfile = f"--flagfile={ROOT / 'experiments/presets' / preset}.flags"
    questions = the_questions(shared=[flagfile, *others])
    seeds = dict.fromkeys(questions, range(3))
    made = paper_tables.of_records(ROOT / "experiments/results" / results, questions, seeds)
    text = (ROOT / "experiments/RESULTS.md").read_text(encoding="utf-8")
    assert filled_page.filled(text, results, made.tables) == text


def test_other_settings_are_refused_in_tables(refused):
    write_records(the_questions("--model=mlp")["main"][""]["mhd"], {0: [[0.5] * 4] * 4})
    said = refused(paper, *SMALL, "--tables")
    assert "clients.models is ['mlp:4'] there and ['mlp_small:4'] now" in said


def test_a_damaged_record_is_refused(refused):
    file = kept.path(pathlib.Path("kept"), "mhd", 0)
    file.parent.mkdir(parents=True)
    file.write_text('{"seed": 0')
    assert f"{file} cannot be read" in refused(paper, *SMALL, "--tables")
    with pytest.raises(mhd.ConfigError, match="cannot be read"):
        kept.read(file, {})
