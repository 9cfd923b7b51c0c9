"""Records of speed: kept row by row, and compared by their quartiles."""

import pytest

import mhd_jax as mhd
from experiments import speed
from tests.builders import python


def row(name, value, spread=None):
    return {"row": name, "value": value, "spread": spread}


def test_rows_measured_again_replace_themselves_and_others_stay(tmp_path):
    path = tmp_path / "bench" / "0.json"
    speed.keep([row("a", 1.0), row("b", 2.0)], path)
    speed.keep([row("b", 3.0), row("c", None)], path)
    assert speed.read(path) == [row("a", 1.0), row("b", 3.0), row("c", None)]


def test_only_quartiles_that_do_not_overlap_have_moved():
    then = [
        row("far", 1.0, [0.9, 1.1]),
        row("near", 1.0, [0.9, 1.1]),
        row("none", 2.0),
        row("gone", 1.0),
    ]
    now = [
        row("far", 1.5, [1.2, 1.6]),
        row("near", 1.15, [1.05, 1.2]),
        row("none", 1.0),
        row("new", 1.0),
    ]
    found = speed.compared(then, now)
    assert [(line[0], *line[3:]) for line in found] == [
        ("far", "1.50", "yes"),
        ("near", "1.15", "no"),
        ("none", "0.50", "–"),
    ]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"row": "a"}]', '{"rows": 3}'])
def test_other_files_are_refused_by_their_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(mhd.ConfigError, match=r"other\.json"):
        speed.read(path)


@pytest.mark.slow
def test_a_file_that_cannot_be_written_is_refused_before_rows_are_measured(tmp_path):
    done = python("-m", "experiments.benchmark", "--output=.", cwd=tmp_path, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output '.' is a folder; name a file" in done.stderr


def test_a_file_is_named_by_version_and_machine():
    assert speed.path_here().parent == speed.FOLDER
    assert speed.path_here().name.startswith(mhd.__version__.replace(".", "_"))
