"""How all tests run: small programs, compiled fast."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

# Many small programs of few steps: compiling them well would take longer than running them badly.
# Fusion emitters alone triple the time, and code in parts for several threads costs a fifth more.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mhd_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from mhd_jax.cli import launch
from mhd_jax.runs.callbacks import live_page

# Small programs are compiled faster than they are written and read. Processes that tests start share.
jax.config.update("jax_enable_compilation_cache", False)
gc.set_threshold(10_000)  # tracing makes many objects and little garbage


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Lets a file's programs go at its end: files share few, and all of them weigh gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def float64():
    """64-bit arithmetic, for comparisons with NumPy."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def at_once(monkeypatch):
    """Lets pages be written as soon as there is news."""
    monkeypatch.setattr(live_page, "_LEAST_WAIT", 0)
    monkeypatch.setattr(live_page, "_SHARE", 0)


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """Runs a binary in this process and gives its status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "_end_by_signals", lambda: None)  # of this process

    def run(binary, *arguments):
        with flagsaver.flagsaver():
            for name in flags.FLAGS:
                flags.FLAGS[name].present = 0
            monkeypatch.setattr(sys, "argv", [binary.__name__, *arguments])
            start = getattr(binary, "start", lambda: launch.run(binary.main))  # a study has none
            with pytest.raises(SystemExit) as ended:
                start()
        printed = capfd.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def refused(call):
    """Gives the one line by which a binary refuses its arguments."""

    def run(binary, *arguments):
        status, out, err = call(binary, *arguments)
        assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    return run


@pytest.fixture
def output(call):
    """Gives what a binary prints that ends well."""

    def run(binary, *arguments):
        status, out, err = call(binary, *arguments)
        assert status == 0, err
        return out

    return run
