"""The flags of the data set and of its partition among clients."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from absl import flags

import mhd_jax as mhd
from experiments.settings import RunSettings
from mhd_jax.data import split_files
from mhd_jax.data.partition import PARTITIONS, Partition, named

FLAGS = flags.FLAGS

_SETTINGS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(RunSettings)}
_SET_ASIDE = ("public_fraction", "validation_fraction")
_PLAIN = (
    "dataset",
    "data_dir",
    "train_split",
    "test_split",
    "test_fraction",
    "image_size",
    "pixels",
    "crop_size",
    "standardize",
    "num_clients",
    "public_dataset",
    "public_split",
    "public_size",
    "allow_overlap",
    *_SET_ASIDE,
)
_PARTITION_FLAGS: dict[str, dict[str, Any]] = {
    name: {field.name: field.default for field in dataclasses.fields(cls)}
    for name, cls in PARTITIONS.items()
}

flags.DEFINE_string(
    "dataset",
    _SETTINGS["dataset"],
    "Data set: digits (embedded), one that tensorflow-datasets has prepared (cifar10), or the path "
    "of a folder of images (./images) or of an .npz file.",
)
flags.DEFINE_string(
    "data_dir", None, "Folder of prepared data sets; by default tensorflow-datasets' own."
)
flags.DEFINE_string(
    "train_split", None, "Training samples of a prepared data set, like train or train[:20%]."
)
flags.DEFINE_string(
    "test_split", None, "Test samples of a prepared data set, like test or validation."
)
flags.DEFINE_float(
    "test_fraction",
    None,
    "Share of the samples set aside as the test split, where the data has none of its own; by "
    "default 0.2.",
)
flags.DEFINE_integer("image_size", None, "Side in pixels that images of files are resized to.")
flags.DEFINE_bool(
    "pixels",
    None,
    "Whether integers of an .npz file are pixels, divided by 255, or stay integers; by default those "
    "in 0 … 255 are pixels.",
)
flags.DEFINE_integer(
    "crop_size", None, "Side of the middle of images that models see; by default all of it."
)
flags.DEFINE_bool(
    "standardize",
    _SETTINGS["standardize"],
    "Whether each channel of images is brought to mean 0 and deviation 1 over the training images.",
)
flags.DEFINE_integer("num_clients", _SETTINGS["num_clients"], "K, how many clients take part.")
flags.DEFINE_string(
    "partition",
    "primary_labels",
    f"How private data is dealt to clients: {', '.join(PARTITIONS)}, or the path of an assignment: "
    "the split.npz of a run or of inspect_data, which says which samples are public and for "
    "validation too; or each training sample's client, −1 for nobody's, as .npy or .csv.",
)
primary = _PARTITION_FLAGS["primary_labels"]
flags.DEFINE_integer(
    "labels_per_client",
    primary["labels_per_client"],
    "Primary labels of each client (partition primary_labels).",
)
flags.DEFINE_float(
    "skew",
    primary["skew"],
    "How much likelier a client gets samples of its primary labels: weight 1 + skew; 0 is "
    "iid, inf gives primary labels only (partition primary_labels).",
)
flags.DEFINE_enum(
    "assignment",
    primary["assignment"],
    ["balanced", "random"],
    "How primary labels are assigned (partition primary_labels).",
)
dirichlet = _PARTITION_FLAGS["dirichlet"]
flags.DEFINE_float(
    "alpha",
    dirichlet["alpha"],
    "α of the Dirichlet distribution: 0.1 is strongly skewed (partition dirichlet).",
)
flags.DEFINE_bool(
    "balanced",
    dirichlet["balanced"],
    "Whether clients have equal sizes, as in the CCL authors' split (partition dirichlet).",
)
flags.DEFINE_integer(
    "min_samples",
    dirichlet["min_samples"],
    "Samples that each client has at least (partition dirichlet).",
)
flags.DEFINE_integer(
    "shards_per_client",
    _PARTITION_FLAGS["shards"]["shards_per_client"],
    "Shards of one label, mostly, that each client gets (partition shards).",
)
flags.DEFINE_float(
    "public_fraction",
    None,
    "Share of the training samples set aside, without labels, as the public set; by default 0.1.",
)
flags.DEFINE_string(
    "public_dataset",
    None,
    "Data set whose training samples, without labels, are the public set, named like --dataset; by "
    "default a share of --dataset's own.",
)
flags.DEFINE_string(
    "public_split", None, "Which of them, where it is a prepared data set; by default train."
)
flags.DEFINE_integer(
    "public_size",
    None,
    "How many public samples to use of those that there are; private samples do not depend on it.",
)
flags.DEFINE_bool(
    "allow_overlap",
    _SETTINGS["allow_overlap"],
    "Whether samples of --public_dataset may be private, validation or test samples, too.",
)
flags.DEFINE_float(
    "validation_fraction",
    _SETTINGS["validation_fraction"],
    "Share of the training samples set aside with labels, to choose settings on.",
)
flags.DEFINE_integer("seed", 0, "Seed of the data split and of training; the first of several.")


def values() -> dict[str, Any]:
    """Returns the fields of `RunSettings` that these flags set.

    Raises:
      mhd.ConfigError: flags that contradict each other, or an unknown partition.
    """
    return {name: FLAGS[name].value for name in _PLAIN} | {"partition": _partition()}


def _partition() -> Partition | pathlib.Path:
    chosen: Any = FLAGS["partition"].value
    partition = named(chosen)
    fields = _PARTITION_FLAGS.get(chosen, {})
    for name, others in _PARTITION_FLAGS.items():
        for field in others:
            if FLAGS[field].present and field not in fields:
                raise mhd.ConfigError(
                    f"--{field} belongs to --partition={name}, not to --partition={chosen}; "
                    "leave one of them out."
                )
    if isinstance(partition, pathlib.Path):
        for name in _SET_ASIDE:
            if FLAGS[name].present and split_files.is_whole(partition):
                raise mhd.ConfigError(
                    f"--{name} is not used by --partition={chosen}, a file that says which samples "
                    "are public and for validation; leave one of them out."
                )
        return partition
    return PARTITIONS[chosen](**{field: FLAGS[field].value for field in fields})
