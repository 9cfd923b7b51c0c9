"""Where commands leave their runs: a folder for each setting, and --overwrite."""

import json
import os
import pathlib
import shutil

import pytest
from absl import flags
from absl.testing import flagsaver

import mhd_jax as mhd
from mhd_jax.cli import workdirs
from mhd_jax.cli.commands import compare, sweep, train
from mhd_jax.runs import environment, locks, removal
from tests.builders import SMALL, tiny_run

OWN = """
import mhd_jax as mhd


def mine(weight: float = 1.0):
    return mhd.algorithms.naive(nu_naive=weight)
"""


@pytest.fixture
def folder(output):
    """Gives the folder that train takes for its runs, without training."""

    def of(*arguments):
        first = output(train, "--steps=2", "--dry_run", *arguments).splitlines()[0]
        assert first.startswith("folder: runs/")
        return first.removeprefix("folder: runs/")

    return of


@pytest.mark.slow
def test_a_setting_has_its_own_folder_however_it_is_written(folder, tmp_path):
    given = ["--algorithm=naive", "--topology=ring", "--num_clients=3"]
    own = folder(*given)
    assert own.startswith("naive-ring-") and len(own) == len("naive-ring-3f2a9c")
    silent = ["--seed=0", "--keep_checkpoints=7", "--compilation_cache="]  # a default; no results
    assert folder(*silent, *given[::-1]) == own
    assert len({own, folder(*given, "--seed=1"), folder(*given, "--nu_naive=2")}) == 3

    (tmp_path / "my.py").write_text(OWN)
    before = folder("--algorithm=my.py:mine", "--num_clients=3")
    (tmp_path / "my.py").write_text(OWN + "# another thought\n")
    assert folder("--algorithm=my.py:mine", "--num_clients=3") != before


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        (compare, "--algorithms=isolated,my.py:mine"),
        (sweep, "--grid=algorithm=isolated;my.py:mine"),
        (sweep, "--vary=topology=ring, my.py:mine"),
    ],
)
def test_a_folder_is_of_the_code_that_lists_name(command, argument, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [command.__name__])

    def folder(*arguments):
        with flagsaver.flagsaver():
            flags.FLAGS([command.__name__, *arguments])
            return workdirs.chosen("x")

    missing = folder(argument)
    (tmp_path / "my.py").write_text(OWN)
    before, beside = folder(argument), folder("--seeds=4")
    assert folder(argument) == before
    (tmp_path / "my.py").write_text(OWN + "# another thought\n")
    assert len({missing, before, folder(argument)}) == 3 and folder("--seeds=4") == beside


def test_a_command_without_overwrite_removes_nothing(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    assert not workdirs.overwrites()


def test_a_signal_may_come_before_the_flags_are_parsed(monkeypatch):
    unparsed = flags.FlagValues()
    flags.DEFINE_bool("overwrite", False, "", flag_values=unparsed)
    monkeypatch.setattr(flags, "FLAGS", unparsed)
    assert not workdirs.overwrites()


@pytest.mark.slow
def test_overwrite_begins_anew_once_all_is_checked(output, refused):
    arguments = [*SMALL, "--algorithm=isolated", "--workdir=w"]
    output(train, *arguments)
    kept = pathlib.Path("w/summary.json")
    before = kept.read_bytes()
    said = refused(train, *arguments, "--steps=4")
    assert "steps is 6 there and 4 now" in said and "--overwrite" in said
    refused(train, *arguments, "--topology=gird", "--overwrite")
    refused(compare, *arguments[:-1], "--workdir=.", "--algorithms=isolated,mdh", "--overwrite")
    pathlib.Path("w/thoughts.txt").write_text("mine")
    said = refused(train, *arguments, "--steps=4", "--overwrite")
    assert "w/thoughts.txt is of no run, so that nothing was removed" in said
    assert kept.read_bytes() == before
    pathlib.Path("w/thoughts.txt").unlink()
    output(train, *arguments, "--steps=4", "--overwrite")
    assert json.loads(kept.read_text())["steps"] == 4


@pytest.mark.slow
def test_overwrite_makes_a_comparison_of_a_run(output, refused):
    output(train, *SMALL, "--algorithm=isolated", "--workdir=w")
    few = [*SMALL, "--steps=2", "--algorithms=isolated", "--workdir=w"]
    assert "w holds a single run" in refused(compare, *few)
    output(compare, *few, "--overwrite")
    assert (
        not pathlib.Path("w/summary.json").exists()
        and pathlib.Path("w/isolated/seed_0/summary.json").exists()
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("--patience=3", "--patience is about --early_stopping"),
        ("--early_stopping=beta_sh/main", "EarlyStopping"),
        ("--early_stopping=beta_sh/aux_9 --validation_fraction=0.1", "there is no beta_sh/aux_9"),
        ("--early_stopping=train/nope", "there is no train/nope to watch"),
        ("--keep_best", "keep_best"),
        ("--keep_checkpoints=0", "keep_checkpoints must be"),
        ("--steps_per_dispatch=0", "steps_per_dispatch must be"),
        ("--metrics=f1", "f1"),
    ],
)
def test_what_no_run_can_have_is_refused_before_anything_is_removed(
    refused, tmp_path, given, sentence
):
    tiny_run(tmp_path / "w")
    how, given = [*SMALL, "--algorithm=isolated"], given.split()
    assert sentence in refused(train, *how, "--workdir=w", *given, "--overwrite")
    assert sentence in refused(train, *how, "--workdir=new", *given, "--dry_run")
    how[-1] = "--algorithms=isolated"
    assert sentence in refused(compare, *how, "--workdir=w", *given, "--overwrite")
    assert (tmp_path / "w/summary.json").exists()


def test_a_removal_that_is_killed_can_be_taken_up(tmp_path, monkeypatch):
    tiny_run(tmp_path / "study/a/seed_0")
    for name in ("table.json", "table.md", "a/seed_0/accuracy.png", "a/seed_0/accuracy.svg"):
        (tmp_path / "study" / name).write_text("{}")
    files = [path for path in (tmp_path / "study").rglob("*") if path.is_file()]
    unlink = os.unlink
    for survivors in range(1, len(files)):
        folder = shutil.copytree(tmp_path / "study", tmp_path / "killed" / str(survivors))
        left = len(files) - survivors

        def killed(path, *given, folder=folder, **how):
            nonlocal left
            if pathlib.Path(path).name != "lock":
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
            unlink(path, *given, **how)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "unlink", killed)  # by which shutil and pathlib remove files
            removal.discard(folder)
        assert any(path.is_file() for path in folder.rglob("*"))
        removal.discard(folder)
        assert list(folder.iterdir()) == []


def test_overwrite_keeps_the_run_that_is_continued(tmp_path):
    tiny_run(tmp_path / "study/a")
    origins = [None, str(tmp_path / "study/a")]
    with flagsaver.flagsaver(overwrite=True):
        for workdir in ("study", "study/a"):
            with pytest.raises(mhd.ConfigError, match=r"--overwrite would remove .*/study/a, from"):
                workdirs.make_room(tmp_path / workdir, origins)
        workdirs.make_room(tmp_path / "study/b", origins)
    assert (tmp_path / "study/a/summary.json").exists()


@pytest.mark.slow
def test_overwrite_keeps_the_run_that_a_case_continues(tmp_path, output, refused):
    output(train, *SMALL, "--algorithm=isolated", "--workdir=study/a")
    own = ["--algorithm=isolated", "--grid=continue_from=study/a", "--workdir=study", "--seeds=1"]
    said = refused(sweep, *SMALL, *own, "--overwrite")
    assert "--overwrite would remove study/a, from which continue_from starts" in said
    assert (tmp_path / "study/a/summary.json").exists()


@pytest.mark.parametrize("given", ["--overwrite", "-overwrite", "--overwrite=true", "-overwrite=1"])
def test_a_command_is_recorded_without_overwrite(given, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mhd train", "--workdir=w", given])
    assert environment.command() == "mhd train --workdir=w"


def test_a_run_with_damaged_settings_is_removed(tmp_path):
    tiny_run(tmp_path / "w")
    (tmp_path / "w/config.json").write_text("{")
    removal.discard(tmp_path / "w")
    assert list((tmp_path / "w").iterdir()) == []
    (tmp_path / "w/config.json").write_text("{")  # of somebody's program
    with pytest.raises(mhd.ConfigError, match="holds no runs; nothing was removed"):
        removal.discard(tmp_path / "w")


def test_only_folders_of_runs_are_removed_and_none_in_use(tmp_path):
    removal.discard(tmp_path / "nothing")
    tiny_run(tmp_path / "study/a")
    with locks.locked(tmp_path / "study/a"), pytest.raises(mhd.ConfigError, match="in use"):
        removal.discard(tmp_path / "study")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.json").write_text("{}")
    for path in (other, other / "notes.json"):
        with pytest.raises(mhd.ConfigError, match="holds no runs; nothing was removed"):
            removal.discard(path)
    assert (other / "notes.json").exists() and (tmp_path / "study/a/summary.json").exists()
    (tmp_path / "study/link").symlink_to(other)
    with pytest.raises(mhd.ConfigError, match="link is of no run"):
        removal.discard(tmp_path / "study")
    (tmp_path / "study/link").unlink()
    # Of a kind that runs leave, too, but not by them.
    for mine in ("thoughts.md", "a/numbers.csv", "a/client.npz", "own/photo.png", "a/more.json"):
        path = tmp_path / "study" / mine
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        with pytest.raises(mhd.ConfigError, match=f"{path} is of no run, so that nothing was"):
            removal.discard(tmp_path / "study")
        path.unlink()
    removal.discard(tmp_path / "study")
    assert list((tmp_path / "study").iterdir()) == []


@pytest.mark.slow
def test_a_run_with_other_settings_is_refused_before_others_train(output, refused):
    output(train, *SMALL, "--algorithm=naive", "--workdir=w/naive/seed_0")
    given = [*SMALL, "--algorithms=isolated,naive", "--seeds=1", "--workdir=w"]
    assert "w/naive/seed_0 holds a run with other settings" in refused(compare, *given, "--steps=4")
    assert not pathlib.Path("w/isolated").exists()
