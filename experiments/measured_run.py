"""A finished run that a program measures anew on the test samples: the flags, and what it reads."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import data_flags, kept  # noqa: F401
from mhd_jax.cli.settings import DATA_OPTIONS
from mhd_jax.core.files import file_here, folder_here
from mhd_jax.data.dataset import digest
from mhd_jax.runs import environment
from mhd_jax.runs.finished import FinishedRun, read_run
from mhd_jax.runs.records import write_json
from mhd_jax.topology.graphs import linked

_RUN = flags.DEFINE_string("run", None, "The folder of a finished run.")
_NUMBERS = flags.DEFINE_string("numbers", None, "The JSON file that gets the numbers.")
for _name in ("dataset", *DATA_OPTIONS):
    flags.declare_key_flag(_name)


@dataclasses.dataclass(frozen=True)
class MeasuredRun:
    """A run of clients that learn classes from neighbours.

    Attributes:
      run: its settings, summary and history.
      data: the data set that it names.
      edges: whether i may learn from j at [i, j], bool [K, K].
      counts: the number of labelled private samples by client and class, int [K, C].
    """

    run: FinishedRun
    data: mhd.data.Dataset
    edges: np.ndarray
    counts: np.ndarray

    @property
    def result(self) -> mhd.Result:
        """The run's clients at its end."""
        return mhd.load(self.run.path)


def opened() -> MeasuredRun:
    """Returns the run of --run.

    Raises:
      mhd.ConfigError: there is none, or one without links between clients or without classes; its
        data set cannot be found; or --numbers cannot be written.
    """
    if _RUN.value is None:
        raise mhd.ConfigError("name the folder of a finished run by --run=DIR.")
    run = read_run(folder_here(_RUN.value, "--run"))
    if _NUMBERS.value is not None:
        file_here(_NUMBERS.value, "--numbers")
    links = run.summary["topology"].get("links")
    counts = np.array(run.summary["data"]["private_samples"])
    is_pooled = len(run.summary["per_client"]) < len(counts)
    if links is None or is_pooled or "targets" in run.summary["data"]:
        raise mhd.ConfigError(
            f"the run in {run.path} has no links between clients, one model for all of them, or no "
            "classes; name a run of clients that learn classes from neighbours."
        )
    settings = run.config["settings"]["clients"]
    goals = settings.get("objectives", ["supervised"] * len(counts))
    counts[[goal != "supervised" for goal in goals]] = 0
    return MeasuredRun(run, _data(run.path, settings), linked(links, len(counts)), counts)


def _data(path: pathlib.Path, settings: Mapping[str, Any]) -> mhd.data.Dataset:
    """Returns the data set of the run in a folder, by its settings of clients and the flags.

    Raises:
      mhd.ConfigError: it cannot be loaded, or has other samples than the run's.
    """
    given = {name: flags.FLAGS[name].value for name in DATA_OPTIONS}
    named = flags.FLAGS.dataset if flags.FLAGS["dataset"].present else settings["dataset"]
    data = mhd.data.load(named, **{name: x for name, x in given.items() if x is not None})
    if digest(data) != settings["dataset_digest"]:
        raise mhd.ConfigError(
            f"{data.name} as it is loaded here has other samples, or another test split, than the data "
            f"set of the run in {path}; give the flags of the run that say what its data is, like "
            "--test_fraction, --test_split or --image_size."
        )
    return data


def keep(**numbers: Any) -> None:
    """Writes numbers, and the command that found them, to the file of --numbers, if there is one."""
    if _NUMBERS.value is not None:
        asked = kept.without_folders(environment.command() or "")
        write_json(folder_here(_NUMBERS.value, "--numbers"), {"command": asked, **numbers})
