r"""Runs several algorithms on the same clients and seeds, and writes one table of the results.

  python -m experiments.compare --algorithms=isolated,naive,mhd,supervised --seeds=3 \
      --topology=complete --steps=2000 --workdir=runs/compare

Flags are those of experiments.train; a hyperparameter applies to the algorithms that have it.
The same command again resumes interrupted runs, and only reads finished ones.
"""

from __future__ import annotations

from absl import flags

import mhd_jax as mhd
from experiments import flags as run_flags
from experiments import launch, seed_flags
from experiments.comparison import compare, rich_table
from mhd_jax.core.files import folder_here

_ALGORITHMS = flags.DEFINE_list(
    "algorithms", ["isolated", "naive", "mhd", "supervised"], "Algorithms to compare."
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(launch)


def main() -> None:
    """Runs the comparison that the flags describe."""
    names = [name.strip() for name in _ALGORITHMS.value]
    if not names or len(set(names)) < len(names):
        raise mhd.ConfigError("--algorithms must name each algorithm once, and at least one.")
    algorithms, notes = [], []
    for name in names:
        algorithm, unused = run_flags.algorithm(name, strict=False)
        algorithms.append(algorithm)
        if unused:
            notes.append(f"{name} does not use {', '.join('--' + flag for flag in unused)}.")
    settings = run_flags.settings()
    workdir = folder_here(flags.FLAGS.workdir or "runs/compare", "--workdir")
    seeds = seed_flags.values()
    rows = compare(settings, algorithms, seeds, workdir, notes)
    console = launch.console()
    console.print(rich_table(rows, f"mean over clients, {len(seeds)} seed(s)"))
    for note in notes:
        console.print(note, markup=False)
    launch.tell_report(workdir)


if __name__ == "__main__":
    launch.run(main, several_processes=True)
