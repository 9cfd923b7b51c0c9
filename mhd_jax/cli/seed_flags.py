"""The flag of binaries that run several seeds."""

from __future__ import annotations

from absl import flags

from mhd_jax.cli import data_flags  # noqa: F401  # defines --seed

_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, counted from --seed.", lower_bound=1)


def values() -> list[int]:
    """Returns the seeds that the flags name."""
    return [flags.FLAGS.seed + i for i in range(_SEEDS.value)]
