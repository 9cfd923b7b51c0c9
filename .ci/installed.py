"""A new user's first session with the wheel, in an environment and a folder of their own.

  python .ci/installed.py dist/*.whl [--record=docs/session.txt]

Installs the wheel with the locked versions into a fresh virtual environment outside the clone, and
runs the commands below beside a user's own folder `experiments` in a terminal of 80 columns. The
first one that fails ends the check with status 1. With --record a file gets what the terminal
showed.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios

from sklearn.datasets import load_wine

CLONE = pathlib.Path(__file__).parents[1]
LINES, COLUMNS = 24, 80
SESSION = """
mhd --version
mhd doctor
mhd demo --steps=20 --seeds=1
cat my.py
mhd train --algorithm=my.py:gentle --weight=0.5 --num_clients=4 --steps=100
head -3 wine.csv
mhd train --dataset=wine.csv --label=grower --num_clients=3 --steps=100 --workdir=runs/wine
mhd show runs/wine --json > wine.json
python -c "import json; print(json.load(open('wine.json'))['beta_sh'])"
mhd report runs/wine runs/gentle-complete-*
mhd trian
"""
FAILS = "mhd trian"  # with a sentence
ALGORITHM = '''"""Naive distillation that begins gently."""

import mhd_jax as mhd


def gentle(weight: float = 0.1):
    return mhd.algorithms.naive(nu_naive=weight)
'''


def main() -> None:
    """Installs the wheel, and runs the session."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=pathlib.Path)
    parser.add_argument("--record", type=pathlib.Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = pathlib.Path(temporary).resolve()
        install(given.wheel, home / "venv")
        furnish(home / "study")
        shown = [run(line, home) for line in SESSION.strip().splitlines()]
    if given.record:
        given.record.write_text("\n".join(shown), encoding="utf-8")


def install(wheel: pathlib.Path, environment: pathlib.Path) -> None:
    """Makes a virtual environment that holds the wheel, with the locked versions."""
    uv = [str(pathlib.Path(sys.executable).with_name("uv")), "--quiet"]
    subprocess.run([*uv, "venv", "--python", sys.executable, environment], check=True)
    where = ["--python", environment, "--constraint", CLONE / "requirements.txt"]
    subprocess.run([*uv, "pip", "install", *where, wheel], check=True)


def furnish(folder: pathlib.Path) -> None:
    """Makes the user's folder: own experiments, which nobody may import, an algorithm, a table."""
    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / "__init__.py").write_text("raise ImportError('not of mhd_jax')\n")
    (folder / "my.py").write_text(ALGORITHM)
    wine = load_wine()
    with (folder / "wine.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*wine.feature_names[:4], "grower"])
        for row, label in zip(wine.data, wine.target, strict=True):
            table.writerow([*row[:4], wine.target_names[label]])


def run(line: str, home: pathlib.Path) -> str:
    """Runs a command in a terminal, checks its end, and returns what the terminal showed."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX", "XLA", "XDG"))
    }
    path = f"{home / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**kept, "PATH": path, "HOME": str(home), "TERM": "dumb", "JAX_PLATFORMS": "cpu"}
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    ends = {"stdin": its, "stdout": its, "stderr": its}
    process = subprocess.Popen(line, shell=True, cwd=home / "study", env=variables, **ends)
    os.close(its)
    output = b""
    while part := _read(mine):
        output += part
    os.close(mine)
    status = process.wait()
    shown = _as_shown(f"$ {line}\n{output.decode()}", home)
    print(shown, flush=True)
    if (status == 0) == (line == FAILS):
        sys.exit(f"{line}: status {status}")
    return shown


def _read(terminal: int) -> bytes:
    """Reads from a terminal; nothing once all who write to it have ended."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # as Linux says it
        return b""


def _as_shown(text: str, home: pathlib.Path) -> str:
    """Returns the lines that a terminal shows at last, without what is this machine's own."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.replace("\r\n", "\n"))
    text = text.replace(str(home), "~")
    text = re.sub(r"(?<= on )Linux-\S+", "Linux", text)
    text = re.sub(r"\d+\.\d [GT]B", "… GB", text)
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join(
        line[start : start + COLUMNS]
        for line in lines
        for start in range(0, max(1, len(line)), COLUMNS)
    )


if __name__ == "__main__":
    main()
