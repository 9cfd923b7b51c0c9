"""Pages and figures of finished runs, and how those are read again and compared."""

import copy
import dataclasses
import html
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import mhd_jax as mhd
from experiments import pictures
from mhd_jax.cli import finished
from mhd_jax.engine.summary import _by_class
from mhd_jax.runs import drawing, figures, report, vega
from mhd_jax.runs import page as pages
from mhd_jax.runs import settings as dotted
from mhd_jax.runs.finished import read_run
from mhd_jax.runs.records import write_json
from mhd_jax.studies.folder import write
from mhd_jax.studies.rows import summarise
from tests.builders import Linear, python, tiny_dataset

K, C = 3, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """MHD with two seeds, and one supervised model."""
    root = tmp_path_factory.mktemp("runs")

    def run(name, algorithm, seed=0):
        clients = mhd.make_clients(tiny_dataset(), K, Linear(), public_fraction=0.3, seed=seed)
        settings = {"steps": 4, "eval_every": 2, "batch_size": 4, "public_batch_size": 5}
        mhd.simulate("ring", clients, algorithm, seed=seed, workdir=root / name, **settings)

    for seed in (0, 1):
        run(f"mhd/seed_{seed}", mhd.algorithms.mhd(num_aux_heads=1), seed)
    run("supervised", mhd.algorithms.supervised())
    return root


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def run(folders):
    """MHD's first seed."""
    return read_run(folders / "mhd/seed_0")


@pytest.fixture
def runs(run, folders):
    """Both seeds of MHD."""
    return [run, read_run(folders / "mhd/seed_1")]


def altered(run, **settings):
    """A finished run, had it had other settings."""
    settings = {**run.summary["settings"], **settings}
    return dataclasses.replace(run, summary={**run.summary, "settings": settings})


def strong(run):
    own = run.summary["settings"]["hyperparameters"]
    return altered(run, hyperparameters={**own, "nu_aux": 2.0})


@pytest.mark.slow
def test_evaluations_hold_accuracies_by_class(run, folders):
    last = run.history[-1]["per_client"]
    assert [record["step"] for record in run.history] == [2, 4]
    assert list(last["per_class_accuracy"]) == ["main", "aux_1"]
    for head, found in last["per_class_accuracy"].items():
        assert np.shape(found) == (K, C)
        of_summary = [client["per_class_accuracy"][head] for client in run.summary["per_client"]]
        np.testing.assert_array_equal(found, np.round(of_summary, 4))
        np.testing.assert_allclose(np.mean(found, axis=1), last["beta_sh"][head], atol=1e-4)
    pooled = read_run(folders / "supervised").history[0]["per_client"]
    assert list(pooled["per_class_accuracy"]) == ["main"]


def test_many_clients_and_classes_are_left_out():
    assert np.shape(_by_class(np.zeros((40, 2, 100)))["per_class_accuracy"]["aux_1"]) == (40, 100)
    assert _by_class(np.zeros((40, 2, 101))) == {}
    assert _by_class(np.full((1, 1, 2), np.nan)) == {"per_class_accuracy": {"main": [[None, None]]}}


def test_the_page_says_what_the_run_found(folders):
    summary = read(folders / "mhd/seed_0/summary.json")
    page = (folders / "mhd/seed_0/report.html").read_text()
    gain = summary["beta_sh"]["aux_1"] - summary["beta_sh"]["main"]
    assert f"last head, aux_1, has β_sh {summary['beta_sh']['aux_1']:.3f}" in page
    assert f"from main to last, {gain:+.3f}".replace("-", "−") in page
    assert f"{pages.as_bytes(summary['communication']['total_bytes'])} were sent in all" in page
    assert not re.search(r'(src|href)="?(http|//)', page)
    assert page.count(str(vega.library())) == 1  # which has tags of its own
    own_part = page.replace(str(vega.library()), "")
    assert not re.search(r"<img(?![^>]* alt=\"[^\"]+\")", own_part)
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    view = json.loads(re.search(r'id="client-data">(.*?)</script>', page)[1])
    assert [client["name"] for client in view["clients"]] == ["0", "1", "2"]
    own = view["clients"][1]
    held = summary["data"]["private_samples"][1]
    assert own["samples"] == held
    known = f"{sum(held)} samples from {np.count_nonzero(held)} classes"
    assert own["facts"]["private data"] == known
    last = summary["per_client"][1]["beta_sh"]["aux_1"]
    assert own["curves"]["beta_sh"][1][-1] == pytest.approx(last, abs=1e-4)


def test_a_run_has_its_graph_and_a_pooled_model_has_none(folders):
    page = (folders / "mhd/seed_0/report.html").read_text()
    assert page.count('class="client"') == K and "The graph at work" in page
    assert "The graph at work" not in (folders / "supervised/report.html").read_text()


def test_the_pictures_of_readme_are_drawings_of_a_demos_run(output, folders, tmp_path):
    assert "graph_at_work.svg" in output(
        pictures, f"--demo={folders}", f"--pictures={tmp_path / 'out'}"
    )
    assert "β_sh (uniform labels)" in texts(tmp_path / "out/accuracy_by_head.svg")
    root = ElementTree.parse(tmp_path / "out/graph_at_work.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert sum(each.get("class") == "client" for each in root.iter()) == K


def test_a_comparison_shows_its_verdict(runs, tmp_path):
    two = [*runs, dataclasses.replace(runs[0], summary={**runs[0].summary, "seed": 2})]
    weaker = copy.deepcopy(two)
    for run in weaker:
        run.summary["beta_sh"] = {head: x / 2 for head, x in run.summary["beta_sh"].items()}
    names = {"mhd": two, "weaker": weaker}
    rows = [summarise(name, [run.summary for run in each]) for name, each in names.items()]
    write(tmp_path, rows, names, [], {})
    page = (tmp_path / "report.html").read_text()
    for sentence in read(tmp_path / "table.json")["verdict"]:
        assert sentence in html.unescape(page) and sentence in (tmp_path / "table.md").read_text()
    assert re.findall(r'data-baseline="(\w+)"( hidden)?', page) == [
        ("mhd", ""),
        ("weaker", " hidden"),
    ]


def test_a_pooled_model_stands_for_all(folders):
    page = (folders / "supervised/report.html").read_text()
    assert "One model learned arrays from what 3 clients hold together" in page
    assert "the only head has" in page and "Nothing was sent." in page
    (client,) = json.loads(re.search(r'id="client-data">(.*?)</script>', page)[1])["clients"]
    counts = read(folders / "supervised/summary.json")["data"]["private_samples"]
    assert client["samples"] == np.sum(counts, axis=0).tolist()


def test_figures_are_files_for_screens_and_papers(run, folders, tmp_path):
    names = {path.stem for path in (folders / "mhd/seed_0").glob("*.png")}
    assert names == {path.stem for path in (folders / "mhd/seed_0").glob("*.svg")}
    assert {"accuracy", "per_class_over_time", "hops", "followed"} <= names
    for name in ("one", "two"):
        drawing.save_figure(lambda: figures.accuracy(run.history, 0.25), tmp_path / name)
    for ending in (".png", ".svg"):
        one, two = ((tmp_path / name).with_suffix(ending).read_bytes() for name in ("one", "two"))
        assert one == two
    assert {"β_sh (uniform labels)", "step", "chance, 0.25"} <= texts(tmp_path / "one.svg")


def texts(drawn):
    """The words of a figure that is an SVG file."""
    return {e.text for e in ElementTree.parse(drawn).iter() if e.tag.endswith("text")}


SETTINGS_OF_A_USER = {  # text.usetex needs LaTeX, which is not there
    "text.usetex": True,
    "font.family": "no such font",
    "figure.autolayout": True,
    "savefig.bbox": "tight",
    "axes.prop_cycle": "cycler('color', ['r'])",
    "svg.fonttype": "path",
    "backend": "pdf",
}


@pytest.mark.slow
def test_figures_look_the_same_whatever_matplotlib_is_told(run, tmp_path):
    import matplotlib

    for name, told in (("plain", {}), ("told", SETTINGS_OF_A_USER)):
        with matplotlib.rc_context(told):
            (tmp_path / name).mkdir()
            report.write(dataclasses.replace(run, path=tmp_path / name))
            assert all(matplotlib.rcParams[key] for key, value in told.items() if value is True)
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert "accuracy.png" in files and "accuracy.svg" in files
    for name in files:
        assert (tmp_path / "told" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_plot_is_made_in_its_own_style(run):
    import matplotlib

    result = mhd.Result(dict(run.summary), list(run.history), None)
    with matplotlib.rc_context({"text.usetex": True}):
        figure = result.plot()
    assert not any(text.get_usetex() for text in figure.findobj(matplotlib.text.Text))


def test_dollars_in_names_make_no_formula(tmp_path):
    names = ["$5", r"$\frac$", "a$b$", "c"]
    split = lambda: figures.data_split(np.ones((2, 4)), names)
    assert drawing.save_figure(split, tmp_path / "split") is not None
    assert set(names) <= texts(tmp_path / "split.svg")


def test_a_figure_that_fails_is_named_and_leaves_the_others(run, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no ink\nleft")

    monkeypatch.setattr(figures, "hops", broken)
    (tmp_path / "hops.png").write_bytes(b"of an earlier report")
    with pytest.warns(UserWarning, match=r"hops failed \(RuntimeError: no ink\)") as warned:
        report.write(dataclasses.replace(run, path=tmp_path))
    assert "\n" not in str(warned[0].message)
    page = (tmp_path / "report.html").read_text()
    assert "A figure is missing here" in page and "accuracy on each class" in page
    there = {path.stem for path in tmp_path.glob("*.png")}
    assert "accuracy" in there and "hops" not in there


@pytest.mark.slow
def test_a_page_that_fails_leaves_a_finished_run_whose_next_start_makes_it(tmp_path, monkeypatch):
    def start():
        clients = mhd.make_clients(tiny_dataset(), K, Linear())
        how = {"steps": 2, "batch_size": 4, "workdir": tmp_path / "run"}
        return mhd.simulate("ring", clients, "isolated", **how)

    def broken(name):
        raise OSError("no template")

    with monkeypatch.context() as patch:
        patch.setattr(pages, "_template", broken)
        failed = r"the report of .*run failed .*no template.*experiments.report"
        with pytest.warns(UserWarning, match=failed):
            found = start()
    assert read(tmp_path / "run/summary.json")["beta_sh"] == found.summary["beta_sh"]
    assert not (tmp_path / "run/report.html").exists()
    summary = (tmp_path / "run/summary.json").read_bytes()
    assert start().started_at == 2
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/summary.json").read_bytes() == summary


def test_tables_of_a_comparison_outlive_its_report(runs, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no page")

    monkeypatch.setattr(report, "_comparison_tables", broken)
    with pytest.warns(UserWarning, match="the report of .* failed .*no page"):
        finished.compare(runs, tmp_path / "out")
    assert read(tmp_path / "out/table.json")["rows"][0]["seeds"] == 2
    assert (tmp_path / "out/table.md").exists()


def test_shares_of_each_breakdown_sum_to_1(run):
    tables = report._run_tables(run.summary, None)
    for name in ("bytes_by_type", "bytes_by_dtype"):
        assert sum(row[2].value for row in tables[name].rows) == pytest.approx(1)


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        (mhd.partition.primary_labels(2, 100), "2 primary labels each (skew 100)"),
        (
            mhd.partition.primary_labels(3, float("inf"), assignment="random"),
            "3 primary labels each (skew inf, drawn at random)",
        ),
        (mhd.partition.dirichlet(0.1), "classes dealt by a Dirichlet distribution (α = 0.1)"),
        (mhd.partition.shards(2), "2 shards of sorted samples each"),
        (mhd.partition.iid(), "samples dealt at random"),
        ("custom", "partition custom"),
    ],
)
def test_partitions_in_words(partition, words):
    assert report.partition_in_words(str(partition)) == words


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ([[0, 1], [1, 0], [1, 2], [2, 1]], "2 edges"),
        ([[0, 1], [1, 2], [2, 1], [2, 0]], "4 directed edges"),
        (None, "4 directed edges"),
    ],
)
def test_an_edge_both_ways_is_one(links, words):
    about = {"edges": 4} if links is None else {"edges": 4, "links": links}
    assert pages.edges_in_words(about) == words


def records_at(steps):
    values = [[0.1, 0.2]]
    return [{"step": s, "per_client": {"per_class_accuracy": {"main": values}}} for s in steps]


def test_maps_over_time_stand_at_their_steps():
    figure = figures.per_class_over_time(records_at([0, 100, 200, 300, 1000]))
    ticks = figure.axes[0].get_xticks()
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    steps = np.array([int(name.removeprefix("step ").replace(",", "")) for name in names])
    assert steps[-1] == 1000 and len(steps) >= 3
    np.testing.assert_allclose(
        np.diff(ticks) / np.diff(ticks).sum(), np.diff(steps) / np.ptp(steps)
    )


def test_intervals_stay_within_what_accuracies_can_be():
    value = {"mean": 0.95, "std": 0.2}
    row = {"algorithm": "naive", "beta_sh": {"main": value}, "beta_priv": {"main": value}}
    for axis in figures.comparison([row], chance=0.1).axes:
        (whisker,) = axis.containers[0].lines[2][0].get_segments()
        assert whisker[:, 0] == pytest.approx([0.75, 1])


def test_a_mean_says_of_how_many_pairs_it_is():
    rows = [{"hops": h, "pairs": n, "accuracy": {"main": 0.5}} for h, n in ((0, 103), (None, 1))]
    axis = figures.hops({"by_hops": rows, "beta_sh": {"main": 0.5}}, 0.1).axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0\n103 pairs", "none\n1 pair"]


def test_a_folder_of_an_older_version_still_renders(run, tmp_path):
    newer = ("data", "by_hops", "diagnostics")
    summary = {name: value for name, value in run.summary.items() if name not in newer}
    history = [
        {**record, "per_client": {m: record["per_client"][m] for m in figures.METRICS}}
        for record in run.history
    ]
    config = {"settings": run.config["settings"], "environment": {"python": "3.11"}}
    older = {"config": config, "summary": summary, "history": history}
    report.write(dataclasses.replace(run, path=tmp_path, **older))
    page = (tmp_path / "report.html").read_text()
    assert "written by an older version" in page and "no figure of this over time" in page
    assert "Started from Python" in page
    assert not (tmp_path / "per_class_over_time.png").exists()


def test_runs_that_differ_in_their_seed_alone_are_one_row(folders, tmp_path):
    runs = [read_run(path.parent) for path in sorted(folders.rglob("config.json"))]
    runs[2:2] = map(strong, runs[:2])
    rows = {row["algorithm"]: row for row in finished.compare(runs, tmp_path)}
    assert list(rows) == ["mhd, nu_aux=0.3", "mhd, nu_aux=2.0", "supervised"]
    a, b = (read(folders / f"mhd/seed_{s}/summary.json")["beta_sh"]["aux_1"] for s in (0, 1))
    found = rows["mhd, nu_aux=0.3"]["beta_sh"]["aux_1"]
    assert found["mean"] == pytest.approx((a + b) / 2)
    assert found["std"] == pytest.approx(abs(a - b) / 2**0.5)
    assert rows["supervised"]["beta_sh"]["main"]["std"] is None

    table = read(tmp_path / "table.json")
    nu_aux = dict(zip(rows, (0.3, 2.0, None), strict=True))
    assert table["differing"]["hyperparameters.nu_aux"] == nu_aux
    assert table["settings"]["steps"] == 4
    assert not any("seed" in name or "split" in name for name in table["differing"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml") == 3 and "hyperparameters.nu_aux" in page
    (link, *_) = re.findall(r'href="([^"]*report.html)"', page)
    assert (tmp_path / link).resolve() == folders / "mhd/seed_0/report.html"
    assert "| supervised | main |" in (tmp_path / "table.md").read_text()


def test_the_same_settings_on_other_graphs_are_other_rows(runs, tmp_path):
    others = [altered(run, topology={"name": "ring", "digest": "another"}) for run in runs]
    stopped = {"status": "stopped", "stopped_because": "enough"}
    others[1] = dataclasses.replace(others[1], summary={**others[1].summary, **stopped})
    rows = finished.compare([*runs, *others], tmp_path)
    assert [(row["algorithm"], row["seeds"]) for row in rows] == [("mhd 1", 2), ("mhd 2", 2)]
    assert set(read(tmp_path / "table.json")["differing"]) == {"topology.digest"}
    said = finished.notes([*runs, *others])
    assert said == ["mhd 2, seed 1, was stopped at step 4: enough."]
    assert said[0] in (tmp_path / "table.md").read_text()


def test_settings_in_common_and_those_that_differ(runs):
    common, differing = dotted.compared({"a": runs[:1], "b": [strong(runs[0])]})
    assert differing == {"hyperparameters.nu_aux": [0.3, 2.0]} and common["seed"] == 0
    common, differing = dotted.compared({"a": runs, "b": [strong(runs[0])]})
    assert list(differing) == ["hyperparameters.nu_aux"] and "seed" not in common


def test_folders_that_serve_nothing_are_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half/config.json", {"settings": {}})
    for folder, sentence in (
        ("none", "there is no folder"),
        ("empty", "holds no run"),
        ("half", "has not finished"),
    ):
        with pytest.raises(mhd.ConfigError, match=sentence):
            finished.read([tmp_path / folder])
    (run, other), _ = finished.read([folders / "supervised", folders / "mhd/seed_0"])
    with pytest.raises(mhd.ConfigError, match="holds something else"):
        finished.compare([run, other], folders)
    with pytest.raises(mhd.ConfigError, match="hold the same run"):
        finished.compare([run, dataclasses.replace(run, path=tmp_path / "copy")], tmp_path / "out")


def binary(*arguments):
    """`python -m experiments.report`: its status, and what it printed on stderr and on stdout."""
    done = python("-m", "experiments.report", *arguments)
    return done.returncode, done.stderr, done.stdout


@pytest.mark.slow
def test_one_folder_is_written_again(folders, tmp_path):
    run = tmp_path / "w"
    shutil.copytree(folders / "supervised", run, ignore=shutil.ignore_patterns("checkpoints"))
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert binary(run)[:2] == (0, "")
    assert (run / "report.html").read_text() == before
    status, err, _ = binary(run, "--output=out")
    assert status == 2 and "leave --output out" in err and err.strip().count("\n") == 0


@pytest.mark.slow
def test_runs_that_have_not_finished_are_left_out(folders, tmp_path):
    shutil.copytree(folders, tmp_path / "w")
    (tmp_path / "w" / "mhd" / "seed_1" / "summary.json").unlink()
    status, err, out = binary(tmp_path / "w", f"--output={tmp_path / 'out'}")
    assert (status, err) == (0, "")
    assert f"left out, for it has not finished: {tmp_path / 'w' / 'mhd' / 'seed_1'}\n" in out
    rows = read(tmp_path / "out" / "table.json")["rows"]
    assert {row["algorithm"]: row["seeds"] for row in rows} == {"mhd": 1, "supervised": 1}
