"""Records of speed: kept row by row, and compared by their quartiles."""

import pytest

import mhd_jax as mhd
from experiments import speed


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


def test_a_file_is_named_by_version_and_machine():
    assert speed.path_here().parent == speed.FOLDER
    assert speed.path_here().name.startswith(mhd.__version__.replace(".", "_"))
