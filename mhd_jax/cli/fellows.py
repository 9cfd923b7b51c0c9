"""Detects from the environment whether a cluster started other processes of this run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# Variables that srun sets in each process of a Slurm step, and that JAX needs.
_OF_A_STEP = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_NUMBERS = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Fellows:
    """The processes of a run, as found in the environment.

    Attributes:
      count: the number of processes, with this one, that can find each other by themselves; 1 for
        a single process, None if only JAX can tell.
      note: the reason for a single process, if the user may have meant several.
    """

    count: int | None = 1
    note: str = ""


def fellows(environ: Mapping[str, str]) -> Fellows:
    """Returns the processes of this program that Slurm, a TPU pod or MPI has started.

    Under Slurm only srun starts several processes. In a terminal or a batch script of an allocation
    of several tasks, Python is started once, although Slurm's variables of the job are set.
    """
    if all(name in environ for name in _OF_A_STEP):
        return _in_a_step(environ)
    tasks = environ.get("SLURM_NTASKS") or "1"
    if _number(tasks) != 1:
        return Fellows(note=f"SLURM_NTASKS is {tasks!r}, but srun has not started this process")
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if (_number(environ.get(name, "1")) or 0) > 1:
            return Fellows(
                note=f"{name} is {environ[name]!r}, but processes of MPI do not find each other "
                "without --coordinator_address"
            )
    hosts = [host for host in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host.strip()]
    platforms = environ.get("JAX_PLATFORMS", "")
    if len(hosts) > 1 and (not platforms or "tpu" in platforms):
        return Fellows(None)
    return Fellows()


def _in_a_step(environ: Mapping[str, str]) -> Fellows:
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    count = _number(environ[name])
    if count is not None and count < 2:
        return Fellows()
    for odd in (name, *_NUMBERS):
        if _number(environ.get(odd, "")) is None:
            return Fellows(note=f"{odd} is {environ.get(odd)!r}, of which no number can be read")
    return Fellows(count)


def _number(text: str) -> int | None:
    """Parses a non-negative integer of fewer than 10 digits; None for other texts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
