"""Data sets: loading, augmentation, the split over clients, and the drawing of batches."""

from mhd_jax.data.augmentation import Augmentation
from mhd_jax.data.dataset import Dataset, arrays
from mhd_jax.data.sources import load
