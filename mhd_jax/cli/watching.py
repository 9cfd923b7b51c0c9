"""The flags of what watches runs (trackers, early stopping), and the callbacks that they choose."""

from __future__ import annotations

from collections.abc import Collection

from absl import flags

import mhd_jax as mhd

_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard",
    False,
    "Whether every run's numbers also go to event files in its folder, for tensorboard --logdir=runs "
    "(extra tensorboard).",
)
_WANDB_PROJECT = flags.DEFINE_string(
    "wandb_project",
    None,
    "Project of Weights & Biases that gets every run's numbers (extra wandb); "
    "WANDB_MODE=offline keeps them here.",
)
_EARLY_STOPPING = flags.DEFINE_string(
    "early_stopping",
    None,
    "What is to become better on the validation set, like beta_sh/aux_3 (or train/loss): a run in which "
    "it has not for --patience evaluations stops.",
)
_PATIENCE = flags.DEFINE_integer(
    "patience", 5, "Evaluations without a better value after which --early_stopping stops a run."
)


def watchers(label: str | None = None) -> list[mhd.Callback]:
    """Returns the trackers that the flags name, and a progress bar with this label.

    Raises:
      mhd.ConfigError: a tracker that cannot be used, or early stopping that cannot work.
    """
    found: list[mhd.Callback] = []
    if _PATIENCE.present and _EARLY_STOPPING.value is None:
        raise mhd.ConfigError("--patience is about --early_stopping; give both, or neither.")
    if _EARLY_STOPPING.value is not None:
        found.append(mhd.callbacks.EarlyStopping(_EARLY_STOPPING.value, _PATIENCE.value))
    if _TENSORBOARD.value:
        found.append(mhd.callbacks.TensorBoard())
    if _WANDB_PROJECT.value is not None:
        found.append(mhd.callbacks.WandB(_WANDB_PROJECT.value))
    return [*found, mhd.callbacks.ShowProgress(label)]


def in_vain(measured: Collection[str]) -> str | None:
    """Returns a sentence on the given flags that have no effect on a finished run; None without any.

    Args:
      measured: the names of the metrics of one's own that the run has.
    """
    wanted = [name.rpartition(":")[2] for name in (flags.FLAGS.metrics or "").split(",") if name]
    given = {
        "metrics": not {*wanted} <= {*measured},
        _EARLY_STOPPING.name: _EARLY_STOPPING.value is not None,
        _TENSORBOARD.name: _TENSORBOARD.value,
        _WANDB_PROJECT.name: _WANDB_PROJECT.value is not None,
    }
    names = [f"--{name}" for name, is_given in given.items() if is_given]
    if not names:
        return None
    return (
        f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no effect on a run that has "
        "finished; begin anew with --overwrite, or in another --workdir."
    )
