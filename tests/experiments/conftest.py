"""How binaries are called: in this process, or in one of their own."""

import os
import subprocess
import sys

import pytest

from tests.builders import ROOT


@pytest.fixture
def refused(call):
    """Gives the one line by which a binary refuses its arguments."""

    def run(binary, *arguments):
        status, out, err = call(binary, *arguments)
        assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    return run


@pytest.fixture
def start():
    """Starts Python as a process of its own, outside any cluster."""

    def run(*arguments, cwd=None, stdout=subprocess.PIPE, **variables):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=kept | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables,
        )

    return run


@pytest.fixture
def python(start):
    """Runs Python to its end as a process of its own."""

    def run(*arguments, timeout=200, **options):
        process = start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()  # which does nothing to one that has ended
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run
