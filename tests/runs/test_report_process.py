"""Reports that another process writes are those that this one would write."""

import dataclasses

import pytest

from mhd_jax.runs import report_process
from mhd_jax.runs.finished import has_report, read_run
from tests.builders import contents, tiny_run


@pytest.fixture
def run(tmp_path):
    """A finished run without a report."""
    tiny_run(tmp_path / "run")
    return read_run(tmp_path / "run")


def test_reports_are_those_of_this_process(run):
    before = contents(run.path)
    report_process.write(run)
    here = contents(run.path)
    for path in here.keys() - before.keys():
        path.unlink()
    with report_process.beside(num_reports=4):
        report_process.write(run)
        assert contents(run.path) == before
    assert contents(run.path) == here and has_report(run.path)


@pytest.mark.slow
def test_reports_that_fail_are_told(run, tmp_path):
    gone = dataclasses.replace(run, path=tmp_path / "gone")
    told = pytest.warns(UserWarning, match=r"report of .*gone failed \(.*does not hold a run")
    with told, report_process.beside(num_reports=4):
        report_process.write(gone)
        report_process.write(run)
    assert has_report(run.path)


@pytest.mark.slow
def test_a_process_that_dies_is_told(run):
    told = pytest.warns(UserWarning, match=r"report of .*run failed \(.* with status -9\)")
    with told, report_process.beside(num_reports=4) as reports:
        report_process.write(run)
        reports._process.kill()
    assert not has_report(run.path)


@pytest.mark.slow
def test_an_interrupt_waits_for_no_report(run):
    with pytest.raises(KeyboardInterrupt), report_process.beside(num_reports=4):
        report_process.write(run)
        raise KeyboardInterrupt
    assert not has_report(run.path)


@pytest.mark.slow
def test_without_a_process_reports_are_written_here(run, monkeypatch):
    monkeypatch.setattr("sys.executable", "/missing/python")
    with report_process.beside(num_reports=4):
        report_process.write(run)
        assert has_report(run.path)
