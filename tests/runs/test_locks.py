"""One process at a time in a run's folder; what two real ones do is in tests/engine/test_stopping.py."""

import errno
import fcntl
import json
import os

import pytest

import mhd_jax as mhd
from mhd_jax.runs import locks
from mhd_jax.runs.folder import FORMAT
from tests.builders import tiny_clients, tiny_run


def test_a_folder_in_use_is_refused_until_its_run_ends_however_that_ends(tmp_path):
    def files():  # but for the checkpoint that is being saved
        return {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def again(record):
        before = files()
        with pytest.raises(mhd.ConfigError, match=rf"in use by process {os.getpid()} on .*Wait"):
            tiny_run(tmp_path)
        assert files() == before
        raise RuntimeError("a watcher's own")

    with pytest.raises(RuntimeError, match="a watcher's own"):
        tiny_run(tmp_path, callbacks=again)
    assert tiny_run(tmp_path).started_at == 1
    assert not locks.file_of(tmp_path).exists()


def test_a_finished_run_is_read_while_the_folder_is_locked(tmp_path):
    tiny_run(tmp_path)
    with locks.locked(tmp_path):
        assert tiny_run(tmp_path).started_at == 2


def test_runs_of_one_program_need_folders_of_their_own(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    runs = [{"topology": "ring", "clients": tiny_clients(), "steps": 1}] * 2
    with pytest.raises(mhd.ConfigError, match="workdirs must differ"):
        mhd.simulate_many(runs, workdirs=[tmp_path / "a", tmp_path / "link"])
    assert not (tmp_path / "a").exists()


def test_another_run_that_has_come_to_the_folder_since_it_was_looked_at(tmp_path, monkeypatch):
    lock = locks._lock

    def late(*arguments):
        config = {"format": FORMAT, "settings": {"steps": 9}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        lock(*arguments)

    monkeypatch.setattr(locks, "_lock", late)
    with pytest.raises(mhd.ConfigError, match="holds a run with other settings"):
        tiny_run(tmp_path)


def test_a_lock_that_was_removed_while_it_was_taken_is_taken_anew(tmp_path, monkeypatch):
    flock, seen = fcntl.flock, []

    def late(file, operation):
        flock(file, operation)
        if not seen:
            locks.file_of(tmp_path).unlink()  # as the process does that had it
        seen.append(file)

    monkeypatch.setattr(fcntl, "flock", late)
    with locks.locked(tmp_path), pytest.raises(mhd.ConfigError, match="in use"):
        tiny_run(tmp_path)
    assert len(seen) == 2


def test_file_systems_without_locks_are_told_of(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"):
        assert tiny_run(tmp_path).summary["status"] == "finished"
