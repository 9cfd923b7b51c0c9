"""The command `mhd`: how commands are found, what they say, and what a wheel brings."""

import ast
import json
import pathlib
import re
import shutil
import sys
import tomllib
import zipfile

import numpy as np
import pytest
from absl.flags import FLAGS

import mhd_jax
from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli import main, presets
from mhd_jax.cli.commands import doctor, show, train
from mhd_jax.core import commands, extras
from mhd_jax.core.errors import ConfigError
from mhd_jax.version import __version__
from tests.builders import ROOT, SMALL, python


@pytest.fixture
def mhd(monkeypatch, capsys):
    """Calls `mhd` as far as it needs no flags: its status, and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mhd", *arguments])
        try:
            main.main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(mhd, asked):
    status, out, err = mhd(*asked)
    assert (status, err) == (0, "")
    listed = re.findall(r"^  (\w+)  +\S", out, flags=re.MULTILINE)
    there = {path.stem for path in (ROOT / "mhd_jax/cli/commands").glob("*.py")} - {"__init__"}
    assert set(listed) == set(commands.COMMANDS) == there


def test_the_overview_needs_no_jax():
    program = (
        "import sys; sys.argv = ['mhd', '--help']\n"
        "from mhd_jax.cli.main import main; main(); print(*sys.modules)"
    )
    done = python("-c", program)
    assert done.returncode == 0 and "trains clients" in done.stdout
    assert not {"jax", "numpy", "flax", "absl", "rich"} & set(done.stdout.split())


def test_a_command_that_is_not_there(mhd):
    assert mhd("trian") == (1, "", "error: there is no command 'trian'; did you mean train?\n")
    status, _, err = mhd("xyz")
    assert status == 1 and "choose one of train, compare, " in err and err.count("\n") == 1
    said = "error: there is no command or algorithm 'fedvag'; did you mean fedavg?\n"
    assert mhd("help", "fedvag") == (1, "", said)
    assert "'tran'; did you mean train?" in mhd("help", "tran")[2]


def test_the_version(mhd):
    assert mhd("--version") == (0, f"mhd_jax {__version__}\n", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert (ROOT / "CHANGELOG.md").read_text().count(f"\n## {__version__}") == 1


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder of a run of `mhd train`."""
    folder = tmp_path_factory.mktemp("run")
    flags = [*SMALL, "--algorithm=isolated", "--workdir=w"]
    done = python("-m", "mhd_jax", "train", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "w"


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_mhd_trains(run_folder):
    """A run's folder tells the command that repeats it."""
    assert read(run_folder / "summary.json")["steps"] == 6
    command = read(run_folder / "config.json")["environment"]["command"]
    assert command.startswith("mhd train --steps=6 ") and command.endswith(" --workdir=w")


def test_python_loads_what_the_command_has_trained(run_folder):
    """On one device, where the command has one for each core."""
    loaded, data = mhd_jax.load(run_folder), mhd_jax.data.load("digits")
    decisions = loaded.predict(data.test_inputs)[:, :, 0].argmax(axis=-1)
    right = decisions == data.test_labels
    by_class = [right[:, data.test_labels == c].mean() for c in range(10)]
    assert loaded.summary["beta_sh"]["main"] == pytest.approx(np.mean(by_class), abs=1e-6)


@pytest.mark.parametrize("command", commands.BINARIES)
def test_a_clone_has_the_binary(command):
    """By its old name, which its help names, too."""
    name = commands.BINARIES[command]
    text = (ROOT / "experiments" / f"{name}.py").read_text()
    assert f'stand_in(__name__, "{command}")' in text
    module = ast.parse((ROOT / f"mhd_jax/cli/commands/{command}.py").read_text())
    opening = commands.as_binary(ast.get_docstring(module))
    assert not re.search(rf"mhd ({'|'.join(commands.COMMANDS)})", opening)
    if command != "demo":
        assert f"\n  python -m experiments.{name} " in opening


def test_messages_name_what_can_be_typed(monkeypatch):
    assert commands.typed("prepare") == "python -m experiments.prepare_data"  # in this clone
    monkeypatch.setattr(sys, "argv", ["mhd train"])
    assert commands.typed("prepare") == commands.named("prepare") == "mhd prepare"
    monkeypatch.setattr(sys, "argv", ["notebook"])
    monkeypatch.setattr(commands, "_CLONE", pathlib.Path("not/there"))
    assert commands.typed("report") == "mhd report"


def test_presets_of_commands_come_with_the_package():
    """Each is the clone's file, so that there is one copy."""
    folder = ROOT / "experiments" / "presets"
    of_commands = "|".join(commands.BINARIES.values())
    pattern = rf"python -m experiments\.(?:{of_commands}) --flagfile"
    expected = {path.stem for path in folder.glob("*") if re.search(pattern, path.read_text())}
    found = presets.known()
    assert set(found) == expected
    assert all(each.path.resolve() == folder / f"{each.name}.flags" for each in found.values())
    assert found["cifar10_mhd"].command == "compare" and found["imagenet_mhd"].command == "train"


def test_presets_are_named_on_command_lines():
    path = str(presets.known()["digits_skew"].path)
    given = [
        "x",
        "--flagfile=preset:digits_skew",
        "--flagfile",
        "preset:digits_skew",
        "preset:none",
    ]
    expected = ["x", f"--flagfile={path}", "--flagfile", path, "preset:none"]
    assert presets.resolved(given) == expected
    with pytest.raises(ConfigError, match=r"no preset 'digit_skew'; did you mean digits_skew\.$"):
        presets.resolved(["--flagfile=preset:digit_skew"])


def test_a_run_is_shown(run_folder, output, refused):
    shutil.copytree(run_folder, "w")
    summary = read(run_folder / "summary.json")
    (shown,) = output(show, "w", "--json").splitlines()
    found = json.loads(shown)
    assert found["folder"] == "w" and {name: found[name] for name in summary} == summary
    text = output(show, "w")
    assert "w: isolated on digits, 3 clients, complete, seed 0\nfinished at step 6\n" in text
    sh, priv = (summary[metric]["main"] for metric in ("beta_sh", "beta_priv"))
    assert re.search(rf"main +│ {sh:.3f} │ {priv:.3f}", text)
    pathlib.Path("table.md").write_text("| isolated | 0.5 |\n")  # as a comparison of runs has it
    assert output(show, ".").startswith("table.md:\n\n| isolated | 0.5 |\n\nw: isolated on digits")
    assert len(output(show, ".", "--json").splitlines()) == 1

    pathlib.Path("w/summary.json").unlink()  # as if it had not finished
    found = json.loads(output(show, "w", "--json"))
    assert (found["status"], found["step"]) == ("unfinished", 6)
    assert found["beta_sh"] == summary["beta_sh"]
    assert "not finished: evaluated at step 6 of 6" in output(show, "w")
    pathlib.Path("w/config.json").write_text('{"settings": 3}')
    assert "w does not hold a whole run" in refused(show, "w")
    assert "there is no folder v" in refused(show, "v")


def test_the_doctor_tells_what_would_go_wrong(call, monkeypatch):
    for name in ("JAX_PLATFORMS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    status, out, _ = call(doctor)
    assert f"mhd_jax {__version__}" in out and "devices: " in out and "jax 0." in out
    assert all(f"for {purpose}: {module} " in out for module, (_, purpose) in extras.EXTRAS.items())
    assert (status == 0) == ("problem: " not in out)
    monkeypatch.setitem(doctor.__dict__, "_LEAST_FREE", float("inf"))
    status, out, _ = call(doctor)
    assert status == 2 and re.search(r"problem: \S+ has only .* left for runs", out)


def test_a_package_that_only_some_need_is_named_with_its_extra(monkeypatch):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for module, (extra, _) in extras.EXTRAS.items():
        assert extra in declared["optional-dependencies"]
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf"^{module} is not installed; .*mhd_jax\[{extra}\]"):
            extras.require(module)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """What a wheel that is built from this folder holds, by name."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")  # where nothing of an earlier build lies
    for name in ("mhd_jax", "experiments"):
        unwanted = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    program = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    built = python("-c", program, cwd=folder, PYTHONPATH="")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_wheel_holds_the_package_alone(wheel):
    listed = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mhd_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = f"mhd_jax-{__version__}.dist-info/"
    assert {name for name in wheel if not name.startswith(information)} == listed
    assert "mhd_jax/py.typed" in wheel and "mhd_jax/runs/templates/run.html" in wheel
    preset = (ROOT / "experiments/presets/cifar10_mhd.flags").read_text()
    assert wheel["mhd_jax/cli/flagfiles/cifar10_mhd.flags"] == preset
    assert "mhd = mhd_jax.cli.main:main" in wheel[f"{information}entry_points.txt"]
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", wheel[f"{information}METADATA"], re.M)
    assert "jax" in needed and not {"tensorflow-datasets", "tensorflow", "wandb"} & set(needed)


def listed(text):
    """The flags of a help by group."""
    groups, title = {}, ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            title = line.split(",")[0].rstrip(":")
        elif found := re.match(r"  --(?:\[no\])?(\w+)( |$)", line):
            groups.setdefault(title, []).append(found[1])
    return groups


@pytest.fixture(scope="module")
def helped():
    """What `mhd` prints for several command lines, each by a process of its own."""

    def run(*arguments, **environment):
        done = python("-m", "mhd_jax", *arguments, **environment)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return done.stdout

    return run


def test_help_lists_the_chosen_algorithms_flags_by_group(helped):
    text = helped("train", "--algorithm=fedavg", "-h", COLUMNS="70")
    groups = listed(text)
    assert list(groups) == [
        *("run", "data", "graph", "model", "algorithm", "optimizer", "faults", "devices", "output")
    ]
    assert set(groups["algorithm"]) == {"adversaries", *hyperparameters(ALGORITHMS["fedavg"])}
    assert "topology" in groups["graph"] and "skew" in groups["data"]
    flags_of_it = text[text.index("\nrun:") :].splitlines()
    assert max(map(len, flags_of_it)) <= 70
    assert all(line[:30] == " " * 30 for line in flags_of_it if line.startswith("     "))


@pytest.mark.slow
def test_help_of_all_lists_every_flag_once(helped):
    found = [name for names in listed(helped("train", "--help=all")).values() for name in names]
    assert len(found) == len(set(found)) and set(run_flags.HYPERPARAMETER_HELP) < set(found)
    defined = {flag.name for flag in FLAGS.get_key_flags_for_module(train.__name__)}
    assert set(found) == defined
    assert "overwrite" in listed(helped("help", "prepare"))["flags"]


@pytest.mark.slow
def test_help_of_an_algorithm(helped):
    text = helped("help", "naive")
    assert text.startswith("naive: Returns naive distillation") and "ν_naive · mean_x CE" in text
    assert "arXiv 2211.15774" in text and "algorithms/mhd.py" in text
    assert set(listed(text)["options"]) == set(hyperparameters(ALGORITHMS["naive"]))


@pytest.mark.slow
def test_help_of_ones_own_algorithm(helped, tmp_path):
    (tmp_path / "my.py").write_text(
        '"""E = mc²"""\n\n'
        "def mine(needed, speed=3.0, label_smoothing=0.1):\n"
        '    """What is mine."""\n'
    )
    text = helped("help", f"{tmp_path}/my.py:mine")
    assert "mine: What is mine." in text and "E = mc²" in text and "(default: 3.0)" in text
    assert listed(text)["options"] == ["needed", "speed", "label_smoothing"]
    done = python("-m", "mhd_jax", "help", f"{tmp_path}/my.py:min")
    assert done.returncode == 2 and done.stderr.startswith("error: there is no min in ")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--stepz=5", "there is no flag --stepz; did you mean --steps?"),
        ("--steps=many", "flag --steps=many: invalid literal for int() with base 10: 'many'"),
    ],
)
def test_a_flag_that_does_not_parse_is_one_line(call, argument, sentence, monkeypatch):
    monkeypatch.setattr(train, "__name__", "mhd train")  # which the process is called
    assert call(train, argument) == (1, "", f"error: {sentence}\n")


@pytest.mark.slow
def test_a_warning_is_one_line_that_says_what_to_do(tmp_path):
    few = ["--num_clients=2", "--steps=1", "--batch_size=2000", "--algorithm=isolated"]
    done = python("-m", "mhd_jax", "train", *few, "--model=mlp_small", "--dry_run", cwd=tmp_path)
    (line,) = [line for line in done.stderr.splitlines() if "repeats samples" in line]
    assert line.startswith("warning: a private batch has 2,000 samples") and ".py" not in line
