"""Callbacks of a run: the base class `Callback`, early stopping, pages, a progress bar, trackers."""

from mhd_jax.runs.callbacks.base import Callback, WatchedRun
from mhd_jax.runs.callbacks.early_stopping import EarlyStopping
from mhd_jax.runs.callbacks.live_report import LiveReport
from mhd_jax.runs.callbacks.progress import ShowProgress
from mhd_jax.runs.callbacks.tensorboard import TensorBoard
from mhd_jax.runs.callbacks.wandb import WandB

__all__ = [
    "Callback",
    "EarlyStopping",
    "LiveReport",
    "ShowProgress",
    "TensorBoard",
    "WandB",
    "WatchedRun",
]
