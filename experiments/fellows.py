"""Whether other processes of a run were started beside this one, as the environment says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# What a step of Slurm, which srun starts, tells each of its processes, and JAX asks for.
_OF_A_STEP = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_NUMBERS = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Fellows:
    """What an environment says of other processes.

    Attributes:
      count: of processes, this one included, that find each other by themselves; 1 where it is
        alone, None where JAX knows.
      note: why it runs alone, where that may not be what its user meant.
    """

    count: int | None = 1
    note: str = ""


def fellows(environ: Mapping[str, str]) -> Fellows:
    """The processes that Slurm, a TPU pod or MPI has started of this program.

    Only srun starts several. In a terminal or a batch script of an allocation of several tasks
    Python is started once, and Slurm's variables of the job stand there all the same.
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
    """A whole number of a reasonable length; None where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
