r"""Runs several algorithms on the same clients and seeds, and writes one table of the results.

  mhd compare --algorithms=isolated,naive,mhd,supervised --seeds=3 \
      --topology=complete --steps=2000 --workdir=runs/compare

Flags are those of mhd train; a hyperparameter applies to the algorithms that have it.
The same command again resumes interrupted runs, and only reads finished ones.
"""

from __future__ import annotations

from absl import flags

from mhd_jax.cli import comparison, json_flag, launch, seed_flags, workdirs
from mhd_jax.cli import flags as run_flags
from mhd_jax.core import multihost
from mhd_jax.runs.records import read_json

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", ["isolated", "naive", "mhd", "supervised"], "Algorithms to compare."
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(json_flag)
flags.adopt_module_key_flags(launch)


def main() -> None:
    """Runs the comparison that the flags describe."""
    algorithms, unused = run_flags.algorithms(_ALGORITHMS.value)
    notes = run_flags.notes_on_unused(unused)
    settings = run_flags.settings()
    workdir = workdirs.chosen("compare", settings.topology)
    seeds = seed_flags.values()
    rows, notes = comparison.compare(settings, algorithms, seeds, workdir, notes)
    if not json_flag.asked():
        comparison.show(rows, f"mean over clients, {len(seeds)} seed(s)", workdir, notes)
    elif multihost.is_main():
        json_flag.say({"folder": str(workdir), **read_json(workdir / "table.json")})


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, several_processes=True)
