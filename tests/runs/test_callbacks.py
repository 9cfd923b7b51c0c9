"""What watchers are told, and the numbers that trackers make of it."""

import contextlib
import sys

import pytest

import mhd_jax as mhd
from mhd_jax.runs.callbacks.tracker import Log, Tracker, numbers_of
from tests.builders import Linear, simulate_in, thinned, tiny_clients, tiny_dataset

RUN = {"topology": "ring", "algorithm": "isolated", "steps": 6, "batch_size": 4}


def test_numbers_have_names():
    record = {
        "step": 5,
        "seed": 7,
        "beta_sh": {"main": 0.5, "aux_1": 0.25},
        "beta_priv": {"main": None},
        "per_client": {"beta_sh": {"main": [0.4, None, 0.6]}},
        "train": {"loss": 1.5, "aux_loss": None},
        "bytes": 10,
    }
    assert numbers_of(record) == {
        "beta_sh/main": 0.5,
        "beta_sh/aux_1": 0.25,
        "per_client/beta_sh/main/0": 0.4,
        "per_client/beta_sh/main/2": 0.6,
        "train/loss": 1.5,
        "bytes": 10,
    }
    crowd = {"beta_sh": {"main": 0.5}, "per_client": {"beta_sh": {"main": [0.5] * 65}}}
    assert numbers_of(crowd) == {"beta_sh/main": 0.5}


class Diary(mhd.Callback):
    """Notes what it is told, and may end the run at a step."""

    def __init__(self, end_at=None, by=None):
        self.told = []
        self._end_at, self._by = end_at, by

    def on_start(self, runs, step):
        for run in runs:
            history = [record["step"] for record in run.history]
            self.told.append((run.settings["seed"], run.folder.name, history, step))

    def on_evaluation(self, record):
        self.told.append((record["seed"], record["step"]))
        if record["step"] == self._end_at:
            raise self._by

    def on_end(self, status):
        self.told.append(status)


def test_watchers_learn_which_runs_start_where_and_how_they_end(tmp_path):
    def told(diary):
        with contextlib.suppress(KeyboardInterrupt, OSError):
            mhd.simulate_many(
                [{**RUN, "clients": tiny_clients(), "seed": seed} for seed in (4, 1)],
                workdirs=[tmp_path / "a", tmp_path / "b"],
                callbacks=diary,
                eval_every=2,
                write_reports=False,
            )
        return diary.told

    start = [(4, "a", [], 0), (1, "b", [], 0)]
    assert told(Diary(2, KeyboardInterrupt)) == [*start, (4, 2), "interrupted"]
    start = [(4, "a", [2], 2), (1, "b", [2], 2)]
    assert told(Diary(4, OSError("no disk"))) == [*start, (4, 4), "failed"]
    start = [(4, "a", [2, 4], 4), (1, "b", [2, 4], 4)]
    assert told(Diary()) == [*start, (4, 6), (1, 6), "finished"]


@pytest.mark.parametrize("rates", [(0.1, 1e30, 0.2), (1e30, 1e30)])
def test_trackers_tell_runs_that_diverge_from_those_that_go_on(rates):
    logs, ends = [], []

    class Noted(Log):
        def __init__(self):
            self.last, self.noted = 0, []

        def write(self, step, numbers):
            self.noted.append(step)

        def close(self, status):
            self.noted.append(status)

    class Noting(Tracker):
        def open(self, run, step):
            logs.append(Noted())
            return logs[-1]

        def on_end(self, status):
            ends.append(status)
            super().on_end(status)

    clients = mhd.make_clients(tiny_dataset(), 4, Linear(), partition="iid")
    runs = [RUN | {"clients": clients, "optimizer": mhd.optim.SGD(rate)} for rate in rates]
    mhd.simulate_many(runs, eval_every=3, keep_going=True, callbacks=Noting())
    assert [log.noted for log in logs] == [
        [3, 6, "finished"] if rate < 1 else ["failed"] for rate in rates
    ]
    assert ends == ["finished" if min(rates) < 1 else "failed"]


class Failing(Tracker):
    """A tracker that fails where it is told to, and counts what it is asked."""

    def __init__(self, at):
        super().__init__()
        self.at, self.asked = at, []

    def open(self, run, step):
        self.ask("open")
        ask = self.ask

        class Asks(Log):
            last = 0
            write = lambda self, step, numbers: ask("write")
            close = lambda self, status: ask("close")

        return Asks()

    def ask(self, what):
        self.asked.append(what)
        if what == self.at:
            raise OSError("no such server\nreally")


@pytest.mark.parametrize(
    ("at", "asked"),
    thinned(
        [
            ("open", ["open"]),
            ("write", ["open", "write"]),
            ("close", ["open", *["write"] * 3, "close"]),
        ],
        3,
    ),
)
def test_a_tracker_that_fails_ends_no_run_and_is_asked_no_more(at, asked, tmp_path):
    tracker, diary = Failing(at), Diary()
    for again in (1, 2):  # another run asks it anew
        with pytest.warns(UserWarning, match=r"Failing failed \(OSError: no such server\)"):
            how = {"clients": tiny_clients(), "callbacks": [tracker, diary], "eval_every": 2}
            simulate_in(tmp_path / str(again), **RUN, **how)
        assert tracker.asked == asked * again
        assert (tmp_path / str(again) / "summary.json").exists()
    assert diary.told[-2:] == [(0, 6), "finished"]


def test_an_error_of_ones_own_callback_ends_the_run_and_says_what_is_saved(tmp_path):
    def start(workdir, callback):
        how = {"clients": tiny_clients(), "callbacks": callback, "eval_every": 2}
        simulate_in(workdir, **RUN, **how)

    def stops(record):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as raised:
        start(tmp_path / "saved", stops)
    (note,) = raised.value.__notes__
    assert str(tmp_path / "saved") in note and "the same command resumes it" in note
    assert "\n" not in note

    class Stops(mhd.Callback):
        def on_compiled(self, seconds):
            raise ZeroDivisionError("before anything is saved")

    with pytest.raises(ZeroDivisionError) as raised:
        start(tmp_path / "unsaved", Stops())
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("tensorboardX", "tensorboard", mhd.callbacks.TensorBoard),
        ("wandb", "wandb", lambda: mhd.callbacks.WandB("project")),
    ],
)
def test_a_tracker_that_is_not_installed_says_how_to_get_it(monkeypatch, module, extra, make):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(mhd.ConfigError, match=rf"{module} is not installed; .*\.\[{extra}\]"):
        make()


@pytest.mark.parametrize("silence", [0, 3600])
def test_where_lines_stay_none_says_nothing_for_long(silence, monkeypatch, capsys):
    monkeypatch.setattr("mhd_jax.callbacks.progress._LONGEST_SILENCE", silence)
    settings = {"steps": 6, "eval_every": 6, "steps_per_dispatch": 2, "batch_size": 2}
    mhd.simulate("ring", tiny_clients(3), "isolated", **settings, progress=True)
    lines = capsys.readouterr().err
    assert ("step 2 of 6" in lines) == ("step 4 of 6" in lines) == (silence == 0)
    assert "step 6 of 6" in lines and "β_sh main" in lines


def test_a_run_that_is_stopped_says_so_at_the_end(capsys):
    def stop(record, view):
        if record["step"] == 2:
            view.stop("enough")

    settings = {"steps": 6, "eval_every": 2, "batch_size": 4, "callbacks": stop}
    mhd.simulate("ring", tiny_clients(3), "isolated", **settings, progress=True)
    assert capsys.readouterr().err.splitlines()[-1] == "isolated: stopped at step 2 of 6: enough"
