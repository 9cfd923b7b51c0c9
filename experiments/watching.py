"""The flags of trackers (TensorBoard, Weights & Biases), and the callbacks that they choose."""

from __future__ import annotations

from absl import flags

import mhd_jax as mhd

_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard",
    False,
    "Whether every run's numbers also go to event files in its folder, for tensorboard --logdir=runs "
    "(pip install -e .[tensorboard]).",
)
_WANDB_PROJECT = flags.DEFINE_string(
    "wandb_project",
    None,
    "Project of Weights & Biases that gets every run's numbers (pip install -e .[wandb]); "
    "WANDB_MODE=offline keeps them here.",
)


def watchers(label: str | None = None) -> list[mhd.Callback]:
    """Returns the trackers that the flags name, and a progress bar with this label.

    Raises:
      mhd.ConfigError: a tracker that cannot be used.
    """
    found: list[mhd.Callback] = []
    if _TENSORBOARD.value:
        found.append(mhd.callbacks.TensorBoard())
    if _WANDB_PROJECT.value is not None:
        found.append(mhd.callbacks.WandB(_WANDB_PROJECT.value))
    return [*found, mhd.callbacks.ShowProgress(label)]
