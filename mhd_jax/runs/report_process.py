"""Reports of runs by a process of their own, while this one trains the next runs.

Drawing is seconds of Python's work for each run: a thread would take turns with the training.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import IO, cast

from mhd_jax.core.commands import typed
from mhd_jax.core.warned import warn
from mhd_jax.runs.decoration import decoration
from mhd_jax.runs.finished import FinishedRun, has_report, read_run

_FEWEST = 4  # reports for which a process pays, as its imports take as long as one of them


class ReportProcess:
    """A process that writes reports one after the other; it starts with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._asked: list[pathlib.Path] = []

    def takes(self, folder: pathlib.Path) -> bool:
        """Leaves the report of a finished run's folder to the process; False if there is none."""
        try:
            self._process = self._process or _started()
            pipe = cast("IO[str]", self._process.stdin)
            print(json.dumps(str(folder)), file=pipe, flush=True)
        except OSError:  # it cannot start, or has ended
            return False
        self._asked.append(folder)
        return True

    def stop(self) -> None:
        """Ends the process at once; the same command writes the reports that are missing then."""
        self._asked.clear()
        if self._process is not None:
            self._process.kill()

    def finish(self) -> None:
        """Waits until all reports are there, and warns of those that are not."""
        if self._process is None:
            return
        said, _ = self._process.communicate()
        for line in said.splitlines():
            warn(json.loads(line))
        if status := self._process.returncode:
            for folder in self._asked:
                if not has_report(folder):
                    reason = f"the process that draws ended with status {status}"
                    warn(f"the report of {folder} failed ({reason}). {_again(folder)}")


_process: ContextVar[ReportProcess | None] = ContextVar("report_process", default=None)


@contextlib.contextmanager
def beside(num_reports: int) -> Iterator[ReportProcess]:
    """Inside the block a process writes the reports of runs, if they are many; all are there after it.

    An interrupt does not wait for them.

    Args:
      num_reports: how many reports are to be written at most.
    """
    process = ReportProcess()
    token = _process.set(process if num_reports >= _FEWEST else None)
    try:
        yield process
    except KeyboardInterrupt:
        process.stop()
        raise
    finally:
        _process.reset(token)
        process.finish()


def write(run: FinishedRun) -> None:
    """Writes a run's figures and its report page, here or beside; an error becomes a warning."""
    process = _process.get()
    if process is not None and process.takes(run.path):
        return
    with decoration(f"the report of {run.path}", _again(run.path)):
        from mhd_jax.runs import report  # importing matplotlib is slow, and only reports need it

        report.write(run)


def _again(folder: pathlib.Path) -> str:
    return f"The run has finished; {typed('report')} {folder} tries again."


def _started() -> subprocess.Popen[str]:
    """Starts the process, which leaves this one's devices and signals alone."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import _main; _main()", sys.argv[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        start_new_session=True,
    )


def _main() -> None:
    """Writes the reports whose folders are read, and says what is to be warned of."""
    from mhd_jax.runs import report

    sys.argv = sys.argv[1:]  # the command's own name, for what it tells users to type
    parent = os.getppid()
    for line in sys.stdin:
        if os.getppid() != parent:  # which was killed
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            folder = pathlib.Path(json.loads(line))
            with decoration(f"the report of {folder}", _again(folder)):
                report.write(read_run(folder))
        for warning in caught:
            print(json.dumps(str(warning.message)), flush=True)
