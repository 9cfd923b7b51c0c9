"""A finished run that a program measures anew on the test samples: the flags, and what it reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import data_flags, kept  # noqa: F401
from mhd_jax.core.files import folder_here, make_folder
from mhd_jax.runs import environment
from mhd_jax.runs.finished import FinishedRun, read_run
from mhd_jax.runs.records import write_json
from mhd_jax.topology.graphs import linked

_RUN = flags.DEFINE_string("run", None, "The folder of a finished run.")
_NUMBERS = flags.DEFINE_string("numbers", None, "The JSON file that gets the numbers.")
flags.declare_key_flag("data_dir")


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
      mhd.ConfigError: there is none, or one without links between clients or without classes; or
        --numbers cannot be written.
    """
    if _RUN.value is None:
        raise mhd.ConfigError("name the folder of a finished run by --run=DIR.")
    run = read_run(folder_here(_RUN.value, "--run"))
    if _NUMBERS.value is not None:
        make_folder(folder_here(_NUMBERS.value, "--numbers").parent, "folder of --numbers")
    links = run.summary["topology"].get("links")
    if links is None or "targets" in run.summary["data"]:
        raise mhd.ConfigError(
            f"the run in {run.path} has no links between clients, or no classes; name a run of "
            "clients that learn classes from neighbours."
        )
    counts = np.array(run.summary["data"]["private_samples"])
    where = flags.FLAGS.data_dir
    options = {} if where is None else {"data_dir": where}
    data = mhd.data.load(run.config["settings"]["clients"]["dataset"], **options)
    return MeasuredRun(run, data, linked(links, len(counts)), counts)


def keep(**numbers: Any) -> None:
    """Writes numbers, and the command that found them, to the file of --numbers, if there is one."""
    if _NUMBERS.value is not None:
        asked = kept.without_folders(environment.command() or "")
        write_json(folder_here(_NUMBERS.value, "--numbers"), {"command": asked, **numbers})
