"""What surrounds a run: a cluster, JAX's options, matplotlib's, a pipe, a terminal, paths."""

import functools
import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.cli import launch
from mhd_jax.cli.commands import compare, train
from mhd_jax.cli.commands import data as inspect_data
from mhd_jax.cli.fellows import fellows
from mhd_jax.core import modes
from mhd_jax.core.files import file_here, folder_here
from mhd_jax.topology.graphs import TOPOLOGIES
from tests.builders import ROOT, SMALL, python, simulate_in, thinned, tiny_clients

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
}
ALONE = ["--algorithm=isolated", *SMALL]


@pytest.mark.parametrize(
    ("environ", "count", "note"),
    [
        ({}, 1, ""),
        (STEP, 2, ""),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, 1, ""),  # srun -n 1 in an allocation of two
        ({**STEP, "SLURM_NTASKS": "2(x2)"}, 2, ""),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "abc"}, 1, "SLURM_STEP_NUM_TASKS is 'abc'"),
        ({**STEP, "SLURM_PROCID": "x"}, 1, "SLURM_PROCID is 'x'"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, 1, "srun has not started this process"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 1, "srun has not"),
        ({"SLURM_NTASKS": "2(x2)"}, 1, "SLURM_NTASKS is '2(x2)'"),
        ({"SLURM_NTASKS": "1"}, 1, ""),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, "without --coordinator_address"),
        ({"OMPI_COMM_WORLD_SIZE": "many"}, 1, ""),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, None, ""),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "JAX_PLATFORMS": "cpu"}, 1, ""),
        ({"TPU_WORKER_HOSTNAMES": "t0,"}, 1, ""),
    ],
)
def test_who_is_one_of_several_processes(environ, count, note):
    found = fellows(environ)
    assert found.count == count
    assert note in found.note and bool(note) == bool(found.note)


@pytest.fixture
def of_a_job(monkeypatch):
    """A terminal of an allocation of two tasks."""
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_NTASKS", "2")


@pytest.mark.slow
def test_python_by_itself_in_an_allocation_is_alone(call, of_a_job, monkeypatch):
    status, _, err = call(inspect_data, "--num_clients=3", "--output=i")
    assert (status, err) == (0, "")
    monkeypatch.setattr(launch, "run", functools.partial(launch.run, several_processes=True))
    status, _, err = call(train, *ALONE, "--workdir=w")
    assert status == 0
    assert err.splitlines()[0] == (
        "note: SLURM_NTASKS is '2', but srun has not started this process; it runs alone"
    )


def test_programs_that_are_one_process_do_not_join_others(refused):
    flags = ["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=0"]
    assert "this program is one process" in refused(inspect_data, *flags)


@pytest.mark.slow
def test_a_process_whose_fellow_never_comes_says_so():
    program = (
        "import sys; from experiments import launch, train; launch._PATIENCE = 1; "
        "launch.run(train.main, several_processes=True)"
    )
    done = python("-c", program, *ALONE, **STEP)
    assert done.returncode == 4
    assert "have not come in 1 s; start all of them" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("platform", thinned(["tpu", "nonsense"], 2))
def test_a_platform_that_is_not_there_is_named(platform, tmp_path):
    program = (
        "import sys; import mhd_jax as mhd; from experiments import launch, train\n"
        "try: mhd.make_clients('digits')\n"
        "except mhd.ConfigError as e: print(e)\n"
        "launch.run(train.main)"
    )
    done = python("-c", program, "--workdir=w", JAX_PLATFORMS=platform, cwd=tmp_path)
    assert done.stdout.startswith(f"JAX_PLATFORMS asks for '{platform}', on which JAX cannot start")
    assert done.stdout.count("\n") == 1
    assert done.returncode == 2 and done.stderr == f"error: {done.stderr[7:]}"
    assert f"asks for '{platform}'" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


STRICT = {
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
}


@pytest.fixture
def strict():
    """All of JAX's strict modes at once, of all threads."""
    before = {name: getattr(jax.config, name) for name in STRICT}
    for name, value in STRICT.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.slow
def test_runs_in_strict_modes(strict, tmp_path):
    def told(record):
        seen.append(jax.config.jax_numpy_rank_promotion)

    settings = {"steps": 4, "eval_every": 2, "batch_size": 4, "public_batch_size": 4}
    with_report = functools.partial(mhd.simulate, workdir=tmp_path / "device")
    without = functools.partial(simulate_in, tmp_path / "host")
    for placement, start in (("device", with_report), ("host", without)):
        for _ in range(2):  # the second reads what the first has saved
            seen = []
            result = start(
                mhd.topology.ring(4),
                tiny_clients(public_fraction=0.3, validation_fraction=0.1),
                mhd.algorithms.mhd(pool_size=2, pool_refresh=2),
                data_placement=placement,
                faults=mhd.Faults(link_loss=0.1),
                keep_best=True,
                callbacks=told,
                **settings,
            )
            assert result.predict(np.zeros((2, 4), np.float32)).shape[:2] == (4, 2)
        assert set(seen) <= {"allow"}
    assert jax.config.jax_numpy_rank_promotion == "raise"


@pytest.mark.slow
def test_graphs_in_strict_modes(strict):
    sizes = {"dyck": 32, "petersen": 10, "hypercube": 16, "torus": 16}
    for name in TOPOLOGIES:
        graph = mhd.topology.named(name, sizes.get(name, 8))
        mhd.topology.metropolis_hastings(graph.at(3))
        mhd.topology.describe(graph, 10)
        assert graph.most_neighbours is not None or name == "custom"
    changing = [{"redraw_every": 3}, {"meet_every": 3}]
    for name, options in zip(("random_regular", "islands"), changing, strict=True):
        mhd.topology.named(name, 8, **options).at(4)
    mhd.topology.named("ring@0,complete@3", 8).at(4)
    mhd.topology.from_function(lambda step: 1.0 - np.eye(8) * (step + 1 - step), 8).at(3)


def test_standard_modes_are_left_again():
    with jax.numpy_rank_promotion("raise"):
        with pytest.raises(ZeroDivisionError), modes.standard():
            assert jax.config.jax_numpy_rank_promotion == "allow"
            raise ZeroDivisionError
        assert jax.config.jax_numpy_rank_promotion == "raise"


def test_a_run_is_compiled_where_compilation_is_off_and_says_so():
    def run():
        clients = tiny_clients(public_fraction=0.3)
        return mhd.simulate("ring", clients, "mhd", steps=2, eval_every=2, batch_size=4).summary

    compiled = run()
    with jax.disable_jit():
        with pytest.warns(UserWarning, match="jax.debug.print"):
            assert run()["beta_sh"] == compiled["beta_sh"]
        assert jax.config.jax_disable_jit


@pytest.mark.parametrize(
    "url",
    ["gs://bucket/run", "s3://bucket", "file:///run", "hdfs://node/run", pathlib.Path("gs://b/c")],
)
def test_a_url_is_no_folder(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mhd.ConfigError, match="not a URL like"):
        mhd.simulate("ring", tiny_clients(), "isolated", steps=1, batch_size=4, workdir=url)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_binaries_take_folders_of_this_machine(call, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    status, out, err = call(train, *ALONE, "--workdir=~/runs/a")
    assert status == 0, err
    assert (tmp_path / "home/runs/a/summary.json").exists() and f"{tmp_path}/home/runs/a" in out
    done = python("-m", "experiments.report", "~/runs/a", HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    for binary, flag in ((train, "workdir"), (compare, "workdir"), (inspect_data, "output")):
        said = refused(binary, f"--{flag}=gs://bucket/x")
        assert f"--{flag} is the path of a folder of this machine" in said
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_paths_as_people_write_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_here("~/runs", "workdir") == tmp_path / "runs"
    assert folder_here("a:b/c:/d", "workdir") == pathlib.Path("a:b/c:/d")
    assert folder_here("./~x", "workdir") == pathlib.Path("~x")
    for odd in ("~nobody at all/x", "a\nb", "a\0b", "", "x" * 300, None, 3, b"x"):
        with pytest.raises(mhd.ConfigError, match=r"^workdir ") as raised:
            folder_here(odd, "workdir")
        assert "\n" not in str(raised.value)


def test_files_that_cannot_be_written_are_refused_beforehand(tmp_path):
    (tmp_path / "there").write_text("kept")
    assert file_here(tmp_path / "new/below/x.json", "--output").parent.is_dir()
    assert file_here(tmp_path / "there", "--output").read_text() == "kept"
    assert not any(path.is_file() for path in (tmp_path / "new").rglob("*"))
    for path, sentence in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "there/x", "cannot make the folder of --output"),
        ("/proc/x", "cannot be written"),
    ):
        with pytest.raises(mhd.ConfigError, match=sentence):
            file_here(path, "--output")


def test_matplotlib_starts_whatever_it_is_told(tmp_path):
    """Even where a matplotlibrc cannot be read, and a backend is none."""
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: \xff\xfe True\n")
    program = (
        "import pathlib; from mhd_jax import drawing\n"
        "drawing.save_figure(lambda: drawing.Figure(), pathlib.Path('drawn'))"
    )
    done = python("-c", program, cwd=tmp_path, MPLBACKEND="nonsense")
    assert done.returncode == 0 and "matplotlib cannot start with what it is told" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"matplotlibrc", "drawn.png", "drawn.svg"}


def test_matplotlib_is_imported_in_one_place():
    """So that no binary needs what its user has told matplotlib."""
    for path in [*(ROOT / "mhd_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        if path.name != "drawing.py":
            assert not re.search(r"^\s*(from|import) matplotlib", path.read_text(), re.MULTILINE)


@pytest.mark.slow
def test_a_run_ends_whatever_surrounds_it(tmp_path):
    """Nobody reads it, its cache cannot be written, its home is not there, its terminal has no Greek."""
    program = (
        "import os, sys; from experiments import launch, train\n"
        "def main():\n"
        "    train.main(); open('after', 'w')\n"
        "launch.run(main)"
    )
    command = ["-c", program, *ALONE, "--workdir=w", "--eval_every=6"]
    (tmp_path / "file").write_text("")
    cache = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "file")}
    odd = cache | {"COLUMNS": "many", "TMPDIR": "nowhere", "PYTHONIOENCODING": "ascii"}
    reading, writing = os.pipe()
    os.close(reading)
    done = python(*command, cwd=tmp_path, stdout=writing, **odd)
    os.close(writing)
    assert done.returncode == 0 and "BrokenPipe" not in done.stderr, done.stderr
    assert (tmp_path / "after").exists()
    assert json.loads((tmp_path / "w/summary.json").read_text())["steps"] == 6
    done = python(*command, cwd=tmp_path, PYTHONIOENCODING="ascii")  # tells what it holds
    assert done.returncode == 0, done.stderr
    assert r"\u03b2_sh" in done.stdout


def test_an_error_that_nobody_foresaw_has_a_status_of_its_own(call, monkeypatch):
    def main():
        raise RuntimeError("odd")

    monkeypatch.setattr(train, "main", main)
    status, _, err = call(train)
    assert status == 70 and err.startswith("Traceback") and err.endswith("RuntimeError: odd\n")


def test_a_folder_that_cannot_be_written_is_named(call, monkeypatch):
    def main():
        raise PermissionError(13, "Permission denied", "runs/report/table.json")

    monkeypatch.setattr(train, "main", main)
    status, _, err = call(train)
    assert status == 5 and err.count("\n") == 1
    assert err.startswith("error: runs/report/table.json cannot be written (Permission denied).")
