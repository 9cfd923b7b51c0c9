"""Downloads and prepares a data set of tensorflow-datasets for training.

  mhd prepare --dataset=cifar10 --data_dir=DIR

Preparing needs TensorFlow (pip install tensorflow-cpu importlib_resources, or the extra prepare),
training does not.
After an interruption the same command starts again, but keeps finished downloads; on a prepared
data set it changes nothing.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import launch, preparation
from mhd_jax.core.commands import typed
from mhd_jax.data import tfds

_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "As tensorflow-datasets calls it, with its config if it has several: imagenette/160px-v2.",
    required=True,
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared data sets; by default tensorflow-datasets' own."
)
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir",
    None,
    "Folder of what must be downloaded by hand; by default downloads/manual in --data_dir.",
)
_IMPORTS = flags.DEFINE_string(
    "imports", None, "Module that registers a data set of your own, like my_package.my_data."
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Whether to prepare again what is prepared, as when it is damaged."
)


def main() -> None:
    """Prepares the data set that the flags name."""
    name, root = _DATASET.value, tfds.root_folder(_DATA_DIR.value)
    folder = tfds.newest_version(name, root)
    if folder and not _OVERWRITE.value:
        done = f"{folder} is prepared and whole; nothing was changed."
    else:
        try:
            folder = preparation.prepare(name, root, _MANUAL_DIR.value, _IMPORTS.value, launch.say)
        except mhd.ConfigError as error:
            preparation.end(f"error: {error}", 2)
        done = f"prepared {folder}"
    builder = tfds.open_folder(folder)
    train = f"{typed('train')} --dataset={name} --data_dir={root}{_splits(builder)}"
    launch.say("\n".join([done, *_description(builder, folder), train]))


def _description(builder: Any, folder: pathlib.Path) -> list[str]:
    """Returns lines that describe a data set and its splits; reads a sample of each split."""
    _, label_key = tfds.supervised(builder.info)
    size = preparation.in_mib(sum(path.stat().st_size for path in folder.iterdir()))
    classes = builder.info.features[label_key].num_classes
    lines = [f"{builder.info.full_name}: {classes} classes, {size} on disk"]
    for split, info in builder.info.splits.items():
        shape = " × ".join(map(str, tfds.Records(builder, split).image_shape))
        lines.append(f"{split}: {info.num_examples:,} samples, the first an image of {shape}")
    return lines


def _splits(builder: Any) -> str:
    """Returns the flags that training needs if the splits are not called train and test."""
    names = list(builder.info.splits)
    train = "train" if "train" in names else names[0]
    others = [name for name in ("test", "validation", *names) if name in names and name != train]
    if others:
        chosen = {"train": train, "test": others[0]}
    else:
        chosen = {"train": f"{train}[:80%]", "test": f"{train}[80%:]"}
    return "".join(f" '--{key}_split={name}'" for key, name in chosen.items() if key != name)


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, computes=False)
