"""The environment of a run (versions, devices, code), and its changes since the run started."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

from mhd_jax.core.commands import by_mhd
from mhd_jax.core.types import PyTree
from mhd_jax.version import __version__

_VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
CONFIGURED = (  # options of JAX that affect results
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
# Programs that change with a run's other programs, such as its models.
EFFECTS = ("initial parameters", "train step", "predictions and their evaluation")


def environment() -> dict[str, Any]:
    """Returns versions, device, options of JAX, commit and command of this process."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions(),
        "platform": platform.platform(),
        "backend": device.platform,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "xla_flags": os.environ.get("XLA_FLAGS"),
        **{name: getattr(jax.config, name) for name in CONFIGURED},
        "git_commit": git_commit(),
        "command": command(),
    }


def changed_programs(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the names of changed programs: the causes if there are any, else the effects."""
    differing = [what for what in now if then.get(what) != now[what]]
    return [what for what in differing if what not in EFFECTS] or differing


def what_traces(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of an `environment` on which programs' digests depend."""
    rest = {name: environment.get(name) for name in ("backend", *CONFIGURED)}
    return {**environment.get("versions", {}), **rest}


def differing_entries(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each entry of a folder's environment that differs now."""
    return [
        f"{key} {then.get(key)} there, {now[key]} now" for key in now if then.get(key) != now[key]
    ]


def versions() -> dict[str, str | None]:
    """Returns the versions of the packages that determine the results."""
    found: dict[str, str | None] = {"mhd_jax": __version__}
    for package in _VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def decisive_environment(carry: PyTree) -> dict[str, Any]:
    """Returns what must be equal to resume a run bit for bit: versions, and its arrays' devices."""
    devices = jax.devices()
    used = max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(carry))
    return {**versions(), "device": devices[0].device_kind, "devices": used}


def command() -> str | None:
    """Returns the command that takes up what this process does; None if it runs no file.

    A notebook runs none. `--overwrite` is left out: a run that has begun anew is to go on.
    """
    started_from = getattr(sys.modules["__main__"], "__file__", None)
    if by_mhd():
        parts = [*sys.argv[0].split(), *sys.argv[1:]]
    elif started_from:
        parts = ["python", *sys.orig_argv[1:]]
    else:
        return None
    return shlex.join(part for part in parts if not re.fullmatch(r"--?overwrite(=.*)?", part))


def git_commit() -> str | None:
    """Returns the commit of this package's checkout; "+" marks uncommitted changes."""
    here = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(here), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "-uno") else commit
