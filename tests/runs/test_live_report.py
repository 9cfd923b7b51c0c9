"""The page of a run that goes on, and what one leaves that does not finish."""

import json
import re

import pytest

import mhd_jax as mhd
from mhd_jax.runs import curves
from mhd_jax.runs.finished import has_report
from tests.builders import Linear, page_of, simulate_in, tiny_clients, tiny_dataset

HOW = {"topology": "ring", "algorithm": "isolated", "steps": 4, "batch_size": 4, "eval_every": 2}


def test_the_page_says_how_far_the_run_is(tmp_path, at_once):
    pages = []

    def look(record):
        pages.append(page_of(tmp_path))
        assert not has_report(tmp_path)

    watchers = [mhd.callbacks.LiveReport(), look]
    mhd.simulate(**HOW, clients=tiny_clients(), workdir=tmp_path, callbacks=watchers)
    titles = [re.search("<title>(.*?): ", page)[1] for page in pages]
    assert titles == ["Step 2 of 4", "Step 4 of 4"]
    assert all('http-equiv="refresh"' in page for page in pages)
    history = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    drawn = json.loads(re.search(r'id="curves-data">(.*?)</script>', pages[-1])[1])
    assert drawn == json.loads(json.dumps(curves.of(history))) and drawn["steps"] == [2, 4]
    each = [record["per_client"]["beta_sh"]["main"] for record in history]
    assert drawn["groups"][0]["panels"][0]["ranges"][0][0] == [
        round(min(values), 4) for values in each
    ]
    assert has_report(tmp_path) and 'http-equiv="refresh"' not in page_of(tmp_path)


def test_pages_are_rare(tmp_path):
    simulate_in(tmp_path, **HOW, clients=tiny_clients(), callbacks=mhd.callbacks.LiveReport())
    assert "<title>Step 0 of 4" in page_of(tmp_path)  # the next one was not due


def test_a_cut_run_says_so(tmp_path, at_once):
    def cut(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watchers = [mhd.callbacks.LiveReport(), cut]
        simulate_in(tmp_path, **HOW, clients=tiny_clients(), callbacks=watchers)
    page = page_of(tmp_path)
    assert "<title>Step 2 of 4" in page and "was interrupted" in page
    assert 'http-equiv="refresh"' not in page and not has_report(tmp_path)


@pytest.mark.slow
def test_runs_that_diverge_say_so_beside_those_that_go_on(tmp_path, at_once):
    clients = mhd.make_clients(tiny_dataset(), 4, Linear(), partition="iid")
    settings = {name: HOW[name] for name in HOW.keys() - {"eval_every"}}
    runs = [
        {**settings, "clients": clients, "optimizer": mhd.optim.SGD(rate)} for rate in (0.1, 1e30)
    ]
    folders = [tmp_path / "good", tmp_path / "bad"]
    how = {"eval_every": 2, "workdirs": folders, "keep_going": True, "write_reports": False}
    mhd.simulate_many(runs, callbacks=mhd.callbacks.LiveReport(), **how)
    good, bad = map(page_of, folders)
    assert "has diverged" in bad and 'http-equiv="refresh"' not in bad
    assert "<title>Step 4 of 4" in good and "diverged" not in good


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, at_once):
    class Blocks(mhd.Callback):
        def on_compiled(self, seconds):
            (tmp_path / "report.html.partial").mkdir()

    with pytest.warns(UserWarning, match="LiveReport failed"):
        watchers = [Blocks(), mhd.callbacks.LiveReport()]
        simulate_in(tmp_path, **HOW, clients=tiny_clients(), callbacks=watchers)
    assert (tmp_path / "summary.json").exists()
