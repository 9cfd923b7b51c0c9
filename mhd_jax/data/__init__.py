"""Data sets: where they come from, who owns what, and how batches are drawn."""

from mhd_jax.data.augmentation import Augmentation
from mhd_jax.data.dataset import Dataset, arrays
from mhd_jax.data.sources import load

__all__ = ["Augmentation", "Dataset", "arrays", "load"]
