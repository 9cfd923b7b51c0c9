"""The flags of the data set and of its partition among clients."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import own_code
from mhd_jax.cli.field_flags import defaults, define_fields
from mhd_jax.cli.settings import RunSettings
from mhd_jax.data import split_files
from mhd_jax.data.features import CATEGORIES, MISSING
from mhd_jax.data.partition import PARTITIONS, Partition, named

FLAGS = flags.FLAGS

_HELP = {
    "dataset": "Data set: digits (embedded), one that tensorflow-datasets has prepared (cifar10), or "
    "the path of a folder of images (./images), of an .npz file, or of a table (.csv, .tsv, .parquet, "
    "or a folder of Hugging Face's datasets).",
    "data_dir": "Folder of prepared data sets; by default tensorflow-datasets' own.",
    "train_split": "Training samples of a prepared data set, like train or train[:20%].",
    "test_split": "Test samples of a prepared data set, like test or validation.",
    "test_fraction": "Share of the samples set aside as the test split, where the data has none of "
    "its own; by default 0.2.",
    "image_size": "Side in pixels that images of files are resized to.",
    "label": "Column of a table's labels, texts or whole numbers.",
    "features": "Columns of a table that make up a sample, by comma; by default all others.",
    "owners": "Column of a table that names each sample's owner; each owner is one client, whose "
    "own test samples are evaluated, too.",
    "categories": "one_hot makes a feature of each text in a table's columns of texts; without it "
    "such columns are refused.",
    "missing": "mean puts the training samples' mean for a table's missing values; without it they are "
    "refused.",
    "text": "Column of a table's texts, which are the samples, numbered word by word.",
    "text_length": "How many words of a text are read; by default as many as the longest has, at most "
    "256.",
    "pixels": "Whether integers of an .npz file or a table's lists are pixels, divided by 255, or stay integers; by "
    "default those in 0 … 255 are pixels.",
    "tokens": "Whether integers of an .npz file or a table's lists are tokens, which models embed.",
    "regression": "Whether the labels of a table or an .npz file are numbers to predict, instead of "
    "classes.",
    "vocabulary_size": "How many different tokens there are; by default the largest one plus one, and "
    "of texts the most frequent ones, at most 10,000.",
    "crop_size": "Side of the middle of images that models see; by default all of it.",
    "standardize": "Whether each channel of images, or each feature of a table, is brought to mean 0 "
    "and deviation 1 over the training samples; by default, features are.",
    "num_clients": "K, how many clients take part.",
    "public_dataset": "Data set whose training samples, without labels, are the public set, named "
    "like --dataset; by default a share of --dataset's own.",
    "public_split": "Which of them, where it is a prepared data set; by default train.",
    "public_size": "How many public samples to use of those that there are; private samples do not "
    "depend on it.",
    "allow_overlap": "Whether samples of --public_dataset may be private, validation or test "
    "samples, too.",
    "public_fraction": "Share of the training samples set aside, without labels, as the public set; "
    "by default 0.1.",
    "test_partition": "File of each test sample's client (.npy or .csv), −1 for nobody's: clients are "
    "also evaluated on their own.",
    "validation_fraction": "Share of the training samples set aside with labels, to choose settings "
    "on.",
}
_SET_ASIDE = ("public_fraction", "validation_fraction")
_PARTITION_HELP = {
    "primary_labels": {
        "labels_per_client": "Primary labels of each client",
        "skew": "How much likelier a client gets samples of its primary labels: weight 1 + skew; 0 is "
        "iid, inf gives primary labels only",
        "assignment": "How primary labels are assigned",
    },
    "dirichlet": {
        "alpha": "α of the Dirichlet distribution: 0.1 is strongly skewed",
        "balanced": "Whether clients have equal sizes, as in the CCL authors' split",
        "min_samples": "Samples that each client has at least",
    },
    "shards": {"shards_per_client": "Shards of one label, mostly, that each client gets"},
}
_BY_PARTITION = {name: defaults(cls) for name, cls in PARTITIONS.items()}
PARTITION_FLAGS = [field for fields in _BY_PARTITION.values() for field in fields]

define_fields(RunSettings, _HELP, {"categories": CATEGORIES, "missing": MISSING})
flags.DEFINE_string(
    "partition",
    "primary_labels",
    f"How private data is dealt to clients: {', '.join(PARTITIONS)}, or the path of an assignment: "
    "the split.npz of a run or of inspect_data, which says which samples are public and for "
    "validation too; or each training sample's client, −1 for nobody's, as .npy or .csv.",
)
for _name, _texts in _PARTITION_HELP.items():
    _full = {field: f"{text} (partition {_name})." for field, text in _texts.items()}
    define_fields(PARTITIONS[_name], _full, {"assignment": ["balanced", "random"]})
flags.DEFINE_integer("seed", 0, "Seed of the data split and of training; the first of several.")


def values() -> dict[str, Any]:
    """Returns the fields of `RunSettings` that these flags set.

    Raises:
      mhd.ConfigError: flags that contradict each other, or an unknown partition.
    """
    return {name: FLAGS[name].value for name in _HELP} | {"partition": _partition()}


def _partition() -> Partition | pathlib.Path | None:
    """Returns the partition; None for that by the data's owners."""
    chosen: Any = FLAGS["partition"].value
    if FLAGS["owners"].value is not None:
        _require_no_other_partition()
        return None
    is_own = own_code.is_own(chosen)
    partition = own_code.load(chosen) if is_own else named(chosen)
    fields = _BY_PARTITION.get(chosen, {})
    for name, others in _BY_PARTITION.items():
        for field in others:
            if FLAGS[field].present and field not in fields:
                raise mhd.ConfigError(
                    f"--{field} belongs to --partition={name}, not to --partition={chosen}; "
                    "leave one of them out."
                )
    if is_own:
        return partition() if isinstance(partition, type) else partition
    if isinstance(partition, pathlib.Path):
        for name in _SET_ASIDE:
            if FLAGS[name].present and split_files.is_whole(partition):
                raise mhd.ConfigError(
                    f"--{name} is not used by --partition={chosen}, a file that says which samples "
                    "are public and for validation; leave one of them out."
                )
        return partition
    return PARTITIONS[chosen](**{field: FLAGS[field].value for field in fields})


def _require_no_other_partition() -> None:
    for name in ("partition", *PARTITION_FLAGS):
        if FLAGS[name].present:
            raise mhd.ConfigError(
                f"--owners says who gets which samples, and so does --{name}; leave one of them out."
            )
