"""Races against other packages: sides work one at a time, and what goes wrong is told."""

import json
import pathlib
import sys
import textwrap

import pytest

from experiments.peers import __main__, turns
from experiments.peers.__main__ import EndedError, _side

FOLDER = pathlib.Path(turns.__file__).parent


def script(tmp_path, name, work):
    path = tmp_path / f"{name}.py"
    start = f"import sys\nsys.path.insert(0, {str(FOLDER)!r})\nfrom turns import take_turns\n"
    path.write_text(start + textwrap.dedent(work))
    return str(path)


LASTING = """
    import threading, time
    log = open({path!r}, "a", buffering=1)

    def background():
        while True:
            time.sleep(0.005)
            log.write("{name}\\n")

    threading.Thread(target=background, daemon=True).start()

    def work():
        print("what packages print is no answer")
        time.sleep(0.05)
        while time.process_time() < 0.1:  # several of the clock's ticks
            pass

    take_turns(work, {{"{name}": "1"}})
"""


def test_the_side_that_waits_is_stopped(tmp_path):
    log = tmp_path / "log"
    scripts = [script(tmp_path, name, LASTING.format(name=name, path=str(log))) for name in "ab"]
    with _side(sys.executable, scripts[0]) as a, _side(sys.executable, scripts[1]) as b:
        assert (a.versions, b.versions) == ({"a": "1"}, {"b": "1"})
        for side, name in ((a, "a"), (b, "b"), (a, "a")):
            log.write_text("")
            assert side.turn() > 0
            assert set(log.read_text().split()) <= {name}
        assert a.megabytes() > 0
        assert a.processor_seconds() > 0.05


def test_a_table_that_cannot_be_written_is_refused_before_the_races(refused):
    pathlib.Path("file").touch()
    assert "cannot make the folder of --races" in refused(__main__, "--races=file/x.json")


def test_a_side_that_ends_tells_why(tmp_path):
    failing = script(tmp_path, "failing", "raise RuntimeError('no such network')")
    with pytest.raises(EndedError, match="no such network"), _side(sys.executable, failing):
        pass


def test_a_piece_of_work_is_done_once_before_and_once_for_each_line(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(sys, "stdin", ["\n", "\n"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # puts it back
    turns.take_turns(lambda: done.append(0), {"package": "2"})
    ready, *times = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == {"versions": {"package": "2"}}
    assert [set(each) for each in times] == [{"seconds"}] * 2
    assert len(done) == 3
