"""What a run was computed with: versions, devices, the code; and what of it is another now."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

from mhd_jax.core.types import PyTree
from mhd_jax.version import __version__

_VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
CONFIGURED = (  # what else decides on numbers
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
# Programs that follow from the others of a run.
EFFECTS = ("initial parameters", "train step", "predictions and their evaluation")


def environment() -> dict[str, Any]:
    """Versions, device, options of JAX, code and command that a run was made with."""
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
    """What computes something else now: the causes, where they are known, and else the effects."""
    differing = [what for what in now if then.get(what) != now[what]]
    return [what for what in differing if what not in EFFECTS] or differing


def what_traces(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an `environment` on which a program's digest depends, beside the code."""
    rest = {name: environment.get(name) for name in ("backend", *CONFIGURED)}
    return {**environment.get("versions", {}), **rest}


def differing_entries(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is another now than in a folder, in words."""
    return [
        f"{key} {then.get(key)} there, {now[key]} now" for key in now if then.get(key) != now[key]
    ]


def versions() -> dict[str, str | None]:
    """Those of the packages that decide the results."""
    found: dict[str, str | None] = {"mhd_jax": __version__}
    for package in _VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def decisive_environment(carry: PyTree) -> dict[str, Any]:
    """What must be equal for a run to go on bit for bit: versions, and the devices of its arrays."""
    devices = jax.devices()
    used = max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(carry))
    return {**versions(), "device": devices[0].device_kind, "devices": used}


def command() -> str | None:
    """How this program was started; None where that was not from a file, as in a notebook."""
    started_from = getattr(sys.modules["__main__"], "__file__", None)
    return shlex.join(["python", *sys.orig_argv[1:]]) if started_from else None


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from; "+" marks uncommitted changes."""
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
