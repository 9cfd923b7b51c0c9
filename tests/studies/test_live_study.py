"""The page of a study that goes on, and what one leaves that does not finish."""

import json
import re

import pytest

import mhd_jax as mhd
from mhd_jax.engine.lane import Lane
from mhd_jax.runs import comparison_curves, page
from mhd_jax.runs.finished import has_report
from mhd_jax.studies.live_study import LiveStudy
from tests.builders import Linear, page_of, tiny_clients, tiny_dataset

HOW = {"steps": 4, "batch_size": 4, "eval_every": 2, "write_reports": False}


def cells(text):
    """The texts of the page's table, row by row."""
    body = re.search("<tbody>(.*?)</tbody>", text, re.S)[1]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr>")[1:]]


def curves_over_steps(text):
    """β_sh over steps as the page's script draws it, of the rows that have evaluations."""
    drawn = json.loads(re.search('id="curves-data">(.*?)</script>', text, re.S)[1])
    return next(panel for panel in drawn["groups"][0]["panels"] if panel["over"] == "step")


def compare(folder, watcher=(), seeds=(0,)):
    algorithms = {"alone": "isolated", "averaged": "dsgd"}
    clients = [tiny_clients() for _ in seeds]
    how = {"seeds": seeds, "workdir": folder, "callbacks": watcher}
    return mhd.compare(algorithms, "ring", clients, **how, **HOW)


@pytest.mark.slow
def test_the_page_says_how_many_runs_have_finished(tmp_path, at_once):
    pages = []

    def look(record):
        if (tmp_path / "report.html").exists():  # the page of the step before
            pages.append(page_of(tmp_path))
            assert not has_report(tmp_path)

    found = compare(tmp_path, look)
    titles = [re.search("<title>(.*?): ", text)[1] for text in pages]
    assert titles == [f"{done} of 2 runs have finished" for done in (0, 0, 1, 1)]
    shares = [float(re.search(r'value="([\d.]+)"', text)[1]) for text in pages]
    assert shares == [0.25, 0.5, 0.75, 1]
    assert all(
        'http-equiv="refresh"' in text and "the study has finished" in text for text in pages
    )
    alone = {m: found.results["alone"][0].summary[m]["main"] for m in ("beta_sh", "beta_priv")}
    told = [f"{value:.3f}" for value in alone.values()]
    assert cells(pages[0]) == [
        ["alone", "0 of 1", "step 2 of 4", "–", "–", ""],
        ["averaged", "0 of 1", "", "–", "–", ""],
    ]
    assert [row[:5] for row in cells(pages[3])] == [
        ["alone", "1 of 1", "", *told],
        ["averaged", "0 of 1", "step 4 of 4", "–", "–"],
    ]
    assert has_report(tmp_path) and 'http-equiv="refresh"' not in page_of(tmp_path)
    over_steps = [curves_over_steps(text) for text in pages]
    assert [panel["at"] for panel in over_steps] == [[[2]], [[2, 4]], [[2, 4], [2]], [[2, 4]] * 2]
    history = found.results["alone"][0].history
    reached = [record["beta_sh"]["main"] for record in history]
    assert over_steps[3]["lines"][0] == pytest.approx(reached, abs=1e-4)


def test_a_cut_study_says_so_and_goes_on(tmp_path, at_once):
    def cut(record, view):
        if view.settings["algorithm"] == "dsgd":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, cut)
    text = page_of(tmp_path)
    assert "<title>1 of 2 runs have finished" in text and "The study was interrupted" in text
    assert 'http-equiv="refresh"' not in text and not has_report(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "was interrupted"),
        (mhd.ConfigError("no data"), "has failed: ConfigError: no data"),
    ],
)
def test_a_study_that_ends_between_two_runs_says_so(tmp_path, at_once, error, said):
    live = LiveStudy(tmp_path, {"first": [tmp_path / "first"], "second": [tmp_path / "second"]})
    with pytest.raises(type(error)), live:
        run = {"topology": "ring", "clients": tiny_clients(), "algorithm": "isolated"}
        run |= {"steps": 4, "batch_size": 4}
        how = {"eval_every": 2, "write_reports": False, "callbacks": live}
        mhd.simulate_many([run], workdirs=[tmp_path / "first"], **how)
        assert "The study" not in page_of(tmp_path)
        raise error
    text = page_of(tmp_path)
    assert f"The study {said}" in text and "1 of 2 runs have finished" in text
    assert 'http-equiv="refresh"' not in text


def test_a_study_that_a_signal_ends_between_two_runs_says_so(tmp_path, at_once):
    live = LiveStudy(tmp_path, {"first": [tmp_path / "first"], "second": [tmp_path / "second"]})
    live.interrupt()
    assert not (tmp_path / "report.html").exists()  # there has been no run
    run = {"topology": "ring", "clients": tiny_clients(), "algorithm": "isolated"}
    run |= {"steps": 2, "batch_size": 4}
    how = {"eval_every": 2, "write_reports": False, "callbacks": live}
    mhd.simulate_many([run], workdirs=[tmp_path / "first"], **how)
    live.interrupt()
    text = page_of(tmp_path)
    assert "The study was interrupted" in text and "1 of 2 runs have finished" in text


def test_a_study_that_fails_before_its_first_run_has_no_page(tmp_path):
    with pytest.raises(ValueError), LiveStudy(tmp_path, {"first": [tmp_path / "first"]}):
        raise ValueError
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_ends_no_study(tmp_path, at_once):
    (tmp_path / "report.html.partial").mkdir()
    with pytest.warns(UserWarning, match="LiveStudy failed"):
        compare(tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["seeds"] == [0]


@pytest.mark.slow
def test_runs_that_diverge_are_counted(tmp_path, at_once):
    clients = mhd.make_clients(tiny_dataset(), 4, Linear(), partition="iid")
    rates = {"small": 0.1, "large": 1e30}
    runs = [
        {
            "topology": "ring",
            "clients": clients,
            "algorithm": "isolated",
            "steps": 4,
            "batch_size": 4,
        }
        | {"optimizer": mhd.optim.SGD(rate)}
        for rate in rates.values()
    ]
    rows = {name: [tmp_path / name] for name in rates}
    how = {"workdirs": [tmp_path / name for name in rates], "keep_going": True, "eval_every": 2}
    mhd.simulate_many(
        runs, callbacks=LiveStudy(tmp_path, rows, "Part."), write_reports=False, **how
    )
    text = page_of(tmp_path)
    assert "Runs that have diverged: 1." in text and "Part." in text and 'value="1.0"' in text


def test_cells_sort_by_the_number_that_they_begin_with():
    texts = ["0.50 ± 0.1 [0.3, 0.7]", "−1,200.5", "–", "mhd", "3 of 4", "3d", "+0.5"]
    found = [(cell.value, cell.is_number) for cell in map(page.of_text, texts)]
    expected = [(0.5, True), (-1200.5, True), (None, True), (None, False)]
    assert found == [*expected, (3, True), (None, False), (0.5, True)]


def test_seeds_whose_runs_have_sent_nothing_have_no_curve_over_bytes():
    def history(sent):
        accuracies = {metric: {"main": 0.5} for metric in ("beta_sh", "beta_priv")}
        return [{"step": step, "bytes": sent * step, **accuracies} for step in (1, 2)]

    rows = {"alone": {0: history(0), 1: history(0)}, "naive": {0: history(8)}}  # seed 1 goes on
    found = comparison_curves.of(rows, None)
    at = {
        group["name"]: next(p["at"] for p in group["panels"] if p["over"].startswith("bytes"))
        for group in found["groups"]
    }
    assert at["seed 0"] == [[8, 16], [8, 16]] and at["seed 1"] == [[], []]


def test_a_comparison_that_ends_between_two_runs_says_so(tmp_path, at_once, monkeypatch):
    begin = Lane.begin

    def cut(lane, step):
        if lane.view.settings["algorithm"] == "dsgd":
            raise KeyboardInterrupt
        return begin(lane, step)

    monkeypatch.setattr(Lane, "begin", cut)
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path)
    text = page_of(tmp_path)
    assert "The study was interrupted" in text and "1 of 2 runs have finished" in text
    assert 'http-equiv="refresh"' not in text
