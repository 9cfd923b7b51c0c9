"""The flag of commands that are about one algorithm."""

from __future__ import annotations

from absl import flags

from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.cli import flags as run_flags
from mhd_jax.core.types import Algorithm

_ALGORITHM = flags.DEFINE_enum("algorithm", "mhd", list(ALGORITHMS), "How clients learn.")


def value() -> Algorithm:
    """Returns the algorithm that the flags describe."""
    return run_flags.algorithm(_ALGORITHM.value, strict=True)[0]
