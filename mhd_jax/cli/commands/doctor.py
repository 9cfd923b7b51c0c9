"""Looks at versions, devices, folders and optional packages, and says what would go wrong.

  mhd doctor

Status 0 if nothing would, else 2.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Iterator

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.extras import EXTRAS, bring
from mhd_jax.version import __version__

# What needs JAX is imported late, since this command is for those whose JAX does not start, too.
_NEEDED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")
_LEAST_FREE = 1e9  # bytes: checkpoints of larger runs, and compiled programs
_VARIABLES = (
    "JAX_",
    "XLA_",
    "CUDA_VISIBLE_DEVICES",
    "TFDS_DATA_DIR",
    "XDG_CACHE_HOME",
    "SLURM_NTASKS",
)


def main() -> None:
    """Prints what there is, and last the problems."""
    problems: list[str] = []
    from mhd_jax.cli.launch import say

    say(f"mhd_jax {__version__} in {pathlib.Path(__file__).parents[2]}")
    say(f"Python {platform.python_version()} on {platform.platform()}")
    for check in (_versions, _devices, _folders, _variables):
        for line in check(problems):
            say(line)
    for problem in problems:
        say(f"problem: {problem}")
    if problems:
        sys.exit(2)
    say("Nothing here keeps a run from starting.")


def _versions(problems: list[str]) -> Iterator[str]:
    """Yields the versions of packages, needed and optional."""
    installed = {name: _version(name) for name in _NEEDED}
    yield "packages: " + ", ".join(f"{name} {version}" for name, version in installed.items())
    problems += [f"{name} is not installed." for name, found in installed.items() if found is None]
    for module, (extra, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module) is not None:
            yield f"for {purpose}: {module} {_version(module) or 'is installed'}"
        else:
            yield f"for {purpose}: {module} is not installed ({bring(extra)})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(problems: list[str]) -> Iterator[str]:
    """Yields the devices that JAX computes on, with their memory."""
    from rich.filesize import decimal

    from mhd_jax.core.machine import require_devices

    try:
        require_devices()
    except ConfigError as error:
        problems.append(str(error))
        return
    import jax

    from mhd_jax.engine import memory

    devices = jax.devices()
    yield (
        f"devices: {len(devices)} × {devices[0].device_kind}, "
        f"{decimal(memory.whole_bytes())} of memory each"
    )
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        problems.append(f"this machine has NVIDIA's driver, but JAX sees no GPU; {bring('cuda')}.")


def _folders(problems: list[str]) -> Iterator[str]:
    """Yields the folders that runs write to, and the room in them."""
    from rich.filesize import decimal

    from mhd_jax.cli import launch
    from mhd_jax.data import tfds

    cache = launch.cache_folder()
    folders = {"runs, from here": pathlib.Path.cwd(), "prepared data sets": tfds.root_folder(None)}
    if cache is not None:
        folders["compiled programs"] = cache
    for what, folder in folders.items():
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        free = shutil.disk_usage(there).free
        yield f"{what}: {folder}, {decimal(free)} free" + (
            "" if folder == there else ", not made yet"
        )
        if not os.access(there, os.W_OK):
            problems.append(f"{there} cannot be written, so there will be no {what.split(',')[0]}.")
        elif free < _LEAST_FREE:
            problems.append(f"{folder} has only {decimal(free)} left for {what.split(',')[0]}.")
    if cache is None:
        yield "compiled programs: not kept, each start compiles"


def _variables(problems: list[str]) -> Iterator[str]:
    """Yields environment variables that change what is computed, or where."""
    from mhd_jax.cli.fellows import fellows

    for name in sorted(os.environ):
        if name.startswith(_VARIABLES):
            yield f"{name}={os.environ[name]}"
    found = fellows(os.environ)
    if found.note:
        yield f"{found.note}; a run is alone"
    elif found.count != 1:
        yield f"a run has {found.count or 'several'} processes, as the cluster says"


def start() -> None:
    """Starts the command on the arguments of this process."""
    try:
        from mhd_jax.cli import launch
    except Exception as error:  # of JAX, whatever is wrong with it
        print(f"problem: JAX or what it needs cannot be imported ({in_a_line(error)}).")
        sys.exit(2)
    launch.run(main, computes=False)
