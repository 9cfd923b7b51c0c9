"""A demo of one to two minutes: isolated training, naive distillation and MHD on real digits.

MHD learns from the most confident teacher, as in its paper, or from all by who is fit to teach.

Eight clients hold scikit-learn's handwritten digits, each mostly two of the ten classes.
They learn on a complete graph by sharing predictions on a tenth of the data, without labels.
"""

from __future__ import annotations

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import comparison, launch, study
from mhd_jax.cli.settings import RunSettings

_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 1000, "Training steps.", lower_bound=1)
flags.DEFINE_string("workdir", "runs/demo", "Folder of the comparison.")


def main() -> None:
    """Runs the demo and prints its table."""
    by_density = mhd.algorithms.mhd(num_targets="all", target_selection="density_ratio")
    algorithms = {
        "isolated": mhd.algorithms.isolated(),
        "naive": mhd.algorithms.naive(),
        "mhd": mhd.algorithms.mhd(),
        "mhd_density_ratio": by_density,
    }
    workdir = study.workdir("runs/demo")
    settings = RunSettings(steps=_STEPS.value, eval_every=100)
    seeds = range(_SEEDS.value)
    comparison.require_own(settings, list(algorithms), seeds, workdir)
    launch.console().print(__doc__, markup=False)
    rows, notes = comparison.compare(settings, algorithms, seeds, workdir)
    note = (
        "β_sh: accuracy on all ten digits alike. β_priv: accuracy on the client's own mix of "
        "digits. Auxiliary heads learn from the heads one rank below, the main head from the "
        "client's own labels. mhd_density_ratio weighs teachers by how dense samples like x are "
        "where each has its knowledge from (docs/density_ratio.md)."
    )
    comparison.show(rows, "mean over 8 clients", workdir, [note, *notes])


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, several_processes=True)
