"""The algorithms, one file each. A new one is one file and one line here."""

from mhd_jax.algorithms.base import hyperparameters
from mhd_jax.algorithms.isolated import isolated, supervised
from mhd_jax.algorithms.mhd import mhd
from mhd_jax.algorithms.naive import naive

ALGORITHMS = {
    "mhd": mhd,
    "naive": naive,
    "isolated": isolated,
    "supervised": supervised,
}

__all__ = ["ALGORITHMS", "hyperparameters", "isolated", "mhd", "naive", "supervised"]
