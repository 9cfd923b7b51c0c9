"""Comparisons from Python: what runs, what is said about it, and what is refused."""

import json

import numpy as np
import pytest
import scipy.stats

import mhd_jax as mhd
from mhd_jax.engine.result import Result
from mhd_jax.studies import over_seeds
from mhd_jax.studies.comparison import Comparison
from tests.builders import Linear, tiny_dataset

SIZES = {"steps": 4, "eval_every": 2, "batch_size": 4, "public_batch_size": 4}
QUIET = {"progress": False, "write_reports": False}


def clients(seed, num_clients=4):
    return mhd.make_clients(tiny_dataset(), num_clients, Linear(), public_fraction=0.3, seed=seed)


def graph(seed):
    return mhd.topology.named("erdos_renyi", 4, edge_probability=0.6, seed=seed)


def algorithms():
    return {
        "mhd": mhd.algorithms.mhd(num_aux_heads=1),
        "mhd, weak": mhd.algorithms.mhd(num_aux_heads=1, nu_aux=0.1),
        "alone": "isolated",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparing") / "w"


@pytest.fixture(scope="module")
def table(folder):
    return mhd.compare(
        algorithms(), graph, clients, seeds=[3, 0, 5], workdir=folder, **SIZES, **QUIET
    )


@pytest.fixture
def shapes(monkeypatch):
    """How many runs each program has."""
    from mhd_jax.engine import joint_runs

    found, partition = [], joint_runs.partition

    def counted(runs):
        parts = list(partition(runs))
        found.extend(len(indices) for indices, _ in parts)
        return parts

    monkeypatch.setattr("mhd_jax.engine.simulate.partition", counted)
    return found


@pytest.mark.slow
def test_runs_are_those_of_simulate_in_one_program_for_a_shape(shapes):
    table = mhd.compare(algorithms(), graph, clients, seeds=[3, 0], **SIZES, progress=False)
    assert sorted(shapes) == [2, 4]  # both weights of MHD, and isolated
    assert [*table.results] == ["mhd", "mhd, weak", "alone"] and table.seeds == (3, 0)
    x = tiny_dataset().test_inputs
    alone = mhd.simulate(graph(0), clients(0), algorithms()["mhd, weak"], seed=0, **SIZES)
    result = table.results["mhd, weak"][1]
    assert result.summary["settings"] == alone.summary["settings"]
    np.testing.assert_allclose(result.predict(x), alone.predict(x), atol=1e-4)


def test_what_the_folder_gets_and_a_second_call(table, folder, shapes):
    stored = json.loads((folder / "table.json").read_text())
    assert [row["algorithm"] for row in stored["rows"]] == ["mhd", "mhd, weak", "alone"]
    assert stored["rows"] == json.loads(json.dumps(table.rows)) and stored["seeds"] == [3, 0, 5]
    assert stored["settings"]["steps"] == 4
    assert stored["differing"]["hyperparameters.nu_aux"] == {
        "mhd": 0.3,
        "mhd, weak": 0.1,
        "alone": None,
    }
    for name in ("table.md", "report.html", "comparison.png", "mhd,_weak/seed_5/summary.json"):
        assert (folder / name).exists()
    again = mhd.compare(
        algorithms(), graph, clients, seeds=[3, 0, 5], workdir=folder, **SIZES, **QUIET
    )
    assert not shapes and again.rows == table.rows
    more = mhd.compare(
        algorithms(), graph, clients, seeds=[3, 0, 5, 1], workdir=folder, **SIZES, **QUIET
    )
    assert sum(shapes) == 3 and more.results["mhd"][0].summary == table.results["mhd"][0].summary
    with pytest.raises(mhd.ConfigError, match="holds a comparison with mhd, weak, alone, seed 1;"):
        mhd.compare(
            {"mhd": "mhd"}, graph, clients, seeds=[3, 0, 5], workdir=folder, **SIZES, **QUIET
        )


def test_tables_show_all_and_frames_hold_all(table, folder):
    text = repr(table)
    assert "Comparison on" in text and "seeds 3, 0, 5" in text and f"folder: {folder}" in text
    for row in table.rows:
        for head, value in row["beta_sh"].items():
            values = [r.summary["beta_sh"][head] for r in table.results[row["algorithm"]]]
            assert value["mean"] == pytest.approx(np.mean(values))
            assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in text
    assert table._repr_html_().count("<tr>") == 1 + 2 + 2 + 1
    frame = table.frame()
    rows = frame if isinstance(frame, list) else frame.to_dict("records")
    assert len(rows) == 3 * 2 * (2 + 2 + 1)
    (one,) = [
        row["value"]
        for row in rows
        if (row["algorithm"], row["seed"], row["metric"], row["head"])
        == ("mhd", 5, "beta_priv", "aux_1")
    ]
    assert one == table.results["mhd"][2].summary["beta_priv"]["aux_1"]


@pytest.mark.parametrize(("width", "inches"), [("column", 3.3), ("page", 6.75)])
def test_figures_for_papers(table, width, inches):
    figure = table.plot(width)
    assert figure.get_size_inches()[0] == pytest.approx(inches)
    texts = [t for axis in figure.axes for t in [axis.xaxis.label, *axis.get_yticklabels()]]
    texts += figure.legends[0].get_texts()
    assert {text.get_fontsize() for text in texts} == {8}
    named = [t.get_text() for axis in figure.axes for t in axis.get_yticklabels()]
    assert {"mhd", "mhd, weak", "alone"} <= set(named)
    widths = [t.get_window_extent().width for t in texts]
    assert max(widths) < figure.bbox.width


def made(seeds=(0, 1, 2, 3), **values):
    """A comparison of made summaries: β_sh of each algorithm's last head, by seed."""
    results = {
        name: [
            Result(
                {
                    "beta_sh": {"main": 0.1, "aux_1": value},
                    "beta_priv": {"main": 1 - value, "aux_1": 0.2},
                    "metrics": {"loss": {"main": 0.0, "aux_1": 40 * value}},
                    "communication": {"total_bytes": 0},
                    "timing": {"seconds_per_step": 0.1, "compile_seconds": 1.0},
                },
                [],
                None,
            )
            for value in of
        ]
        for name, of in values.items()
    }
    return Comparison(results, tuple(seeds))


HIGH, LOW = [0.61, 0.66, 0.59, 0.70], [0.52, 0.55, 0.53, 0.58]


@pytest.mark.parametrize("metric", ["beta_sh", "beta_priv", "loss"])
def test_the_paired_test_is_students(metric):
    table = made(high=HIGH, low=LOW)
    found = table.test("high", "low", metric=metric)
    sign, scale = (-1, 1) if metric == "beta_priv" else (1, 40 if metric == "loss" else 1)
    differences = sign * scale * (np.array(HIGH) - LOW)
    expected = scipy.stats.ttest_rel(differences, np.zeros(4))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.differences == pytest.approx(differences)
    assert found.mean == pytest.approx(differences.mean())
    assert found.interval == pytest.approx(expected.confidence_interval(0.95))
    assert found.heads == (("main",) * 2 if metric == "beta_priv" else ("aux_1",) * 2)
    assert found.verdict == ("behind" if metric == "beta_priv" else "ahead")
    back = table.test("low", "high", metric=metric)
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert found.verdict in repr(found) and "4 seeds" in repr(found)


def test_ties_and_equal_runs():
    table = made(a=[0.2, 0.9, 0.5, 0.4], b=[0.3, 0.5, 0.7, 0.2], c=HIGH)
    assert table.test("a", "b").verdict == "tie"
    same = table.test("c", "c")
    assert (same.mean, same.interval, same.p_value, same.verdict) == (0, (0, 0), 1, "tie")
    main = table.test("a", "b", head="main")
    assert main.heads == ("main", "main") and main.verdict == "tie"
    constant = made(a=[0.75] * 4, b=[0.5] * 4).test("a", "b")
    assert (constant.p_value, constant.verdict) == (0, "ahead")


def test_intervals_end_where_values_do():
    found = made(seeds=(0, 1, 2), a=[1.0, 0.1, 0.9], b=[0.0, 0.3, 0.1]).test("a", "b")
    assert found.interval[1] == 1 and -1 <= found.interval[0] < 0
    value = over_seeds.interval([0.9, 1.0])
    assert over_seeds.as_cell(value).endswith("[0.315, 1.000]")
    assert over_seeds.as_cell(over_seeds.interval([-0.1, 0.8]), "+", (-1, 1)).endswith(
        "[-1.000, 1.000]"
    )


def test_latex_has_the_best_in_bold_unless_it_ties():
    table = made(**{"a_b & c": HIGH, "low": LOW})
    lines = table.to_latex().splitlines()
    (best,) = [line for line in lines if "low" not in line and r"\mathbf{0.640}" in line]
    assert best.strip().startswith(r"a\_b \& c & $\mathbf{0.640} \pm 0.050$ & $0.360")
    (other,) = [line for line in lines if line.strip().startswith("low")]
    assert r"\mathbf{0.455} \pm" in other and "$0.545" in other  # β_priv of the main head
    for mark in ("toprule", "midrule", "bottomrule"):
        assert sum(mark in line for line in lines) == 1
    near = made(high=HIGH, near=[0.60, 0.67, 0.60, 0.69], low=LOW).to_latex()
    assert r"\mathbf{0.640}" not in near and r"\mathbf{0.455}" in near
    assert r"\mathbf" not in made(seeds=(0, 1), high=HIGH[:2], low=LOW[:2]).to_latex()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: t.test("high", "none"), "there is no algorithm 'none'.* high, low"),
        (lambda t: t.test("high", "low", metric="f1"), "no metric 'f1'; .*beta_sh, beta_priv"),
        (lambda t: t.test("high", "low", head="aux_9"), "no head 'aux_9'; .*main, aux_1"),
        (lambda t: t.plot("wide"), "width must be one of column, page"),
        (
            lambda t: made(seeds=(0, 1), a=[0.1, 0.2], b=[0.3, 0.5]).test("a", "b"),
            "at least 3 seeds, but there are 2",
        ),
    ],
)
def test_questions_that_have_no_answer(call, says):
    with pytest.raises(mhd.ConfigError, match=says) as raised:
        call(made(high=HIGH, low=LOW))
    assert "\n" not in str(raised.value)


GIVEN = {"algorithms": {"a": "isolated"}, "topology": "ring", "clients_by_seed": clients}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"algorithms": {}}, "a dictionary by name"),
        ({"algorithms": ["mhd"]}, "a dictionary by name"),
        ({"algorithms": {"a": "mdh"}}, "unknown algorithm 'mdh'"),
        ({"algorithms": {"a/b": "mhd", "a b": "mhd"}}, "would share a folder"),
        ({"algorithms": {"..": "mhd"}}, "a word for its row"),
        ({"algorithms": {"table.json": "mhd"}}, "in the place of the file table.json; rename it"),
        ({"seeds": []}, "seeds must be some"),
        ({"seeds": [1, 1]}, "each named once"),
        ({"seeds": 3}, "a list or a range"),
        ({"clients_by_seed": clients(0)}, "clients_by_seed is a function"),
        ({"clients_by_seed": [clients(0)]}, "clients for 1 seeds, but there are 2"),
        ({"clients_by_seed": lambda: clients(0)}, "is called with the seed: lambda seed"),
        ({"topology": lambda s: 1 - np.eye(4)}, "call its argument seed or step"),
        ({"topology": lambda seed: "rign"}, "rign"),
        ({"seed": 1}, "compare takes no argument seed; did you mean seeds?"),
        ({"nu_aux": 1}, r"mhd\.algorithms\.mhd\(nu_aux=\.\.\.\)"),
        ({"steps": 0}, "steps"),
        (
            {
                "algorithms": {"a": "isolated", "b": "dsgd"},
                "topology": lambda seed: mhd.topology.ring(4, directed=seed == 1),
            },
            "one way only",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_run_trains(change, says, tmp_path):
    seen = []
    how = {**SIZES, **QUIET, "seeds": [0, 1], "callbacks": seen.append, "workdir": tmp_path / "w"}
    with pytest.raises(mhd.ConfigError, match=says) as raised:
        mhd.compare(**{**GIVEN, **how, **change})
    assert "\n" not in str(raised.value)
    assert not seen and not (tmp_path / "w").exists()


def test_a_single_runs_folder_is_not_overwritten(table, folder):
    with pytest.raises(mhd.ConfigError, match="holds a single run"):
        mhd.compare(**GIVEN, workdir=folder / "mhd" / "seed_0", **SIZES, **QUIET)


@pytest.mark.slow
def test_each_algorithm_goes_without_what_it_cannot_have():
    table = mhd.compare(
        {"alone": "isolated", "all": "supervised"},
        lambda step: 1 - np.eye(4),
        [clients(0), clients(1)],
        seeds=[0, 1],
        faults=mhd.Faults(offline=0.5, offline_steps=2),
        **SIZES,
        progress=False,
    )
    assert "faults" in table.results["alone"][0].summary
    assert "faults" not in table.results["all"][0].summary


def test_stopped_runs_are_named(tmp_path):
    def stop(record, view):
        if view.settings["seed"] == 1:
            view.stop("enough")

    given = {**GIVEN, "topology": lambda s: mhd.topology.ring(4)}
    table = mhd.compare(**given, seeds=[0, 1], callbacks=stop, **SIZES, **QUIET, workdir=tmp_path)
    assert table.notes == ("a, seed 1, was stopped at step 2: enough.",)
    assert table.notes[0] in repr(table) and table.notes[0] in (tmp_path / "table.md").read_text()
    assert (tmp_path / "accuracy.png").exists()  # of the steps that both have
