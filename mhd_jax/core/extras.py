"""Packages that only some need, and the extras of this package that bring them."""

from __future__ import annotations

import importlib
from typing import Any

from mhd_jax.core.errors import ConfigError

# By module: its extra, and who needs it.
EXTRAS = {
    "tensorflow_datasets": ("tfds", "training on prepared data sets, like CIFAR-10"),
    "tensorflow": ("prepare", "preparing data sets"),
    "pyarrow": ("arrow", "Parquet files, and folders that Hugging Face's datasets saved"),
    "cv2": ("opencv", "decoding image files faster"),
    "optuna": ("search", "mhd sweep --search"),
    "tensorboardX": ("tensorboard", "--tensorboard"),
    "wandb": ("wandb", "--wandb_project"),
}


def require(module: str) -> Any:
    """Imports and returns a module of a package that only some need.

    Raises:
      ConfigError: the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ConfigError(f"{package} is not installed; {bring(EXTRAS[package][0])}.") from error


def bring(extra: str) -> str:
    """Returns the clause that says how an extra is installed."""
    return f"pip install 'mhd_jax[{extra}]' brings it, in a clone pip install -e .[{extra}]"
