"""The flag of commands that are about one algorithm."""

from __future__ import annotations

from absl import flags

from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.field_flags import define_choice
from mhd_jax.core.types import Algorithm

define_choice("algorithm", "mhd", list(ALGORITHMS), "How clients learn.")
flags.declare_key_flag("algorithm")


def value() -> Algorithm:
    """Returns the algorithm that the flags describe."""
    return run_flags.algorithm(flags.FLAGS.algorithm, strict=True)[0]
