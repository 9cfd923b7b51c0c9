r"""Shows the data that each client would get, before any training.

  mhd data --dataset=digits --num_clients=8 --partition=dirichlet \
      --alpha=0.1 --output=runs/inspect_data
  mhd data patients.csv --label=outcome --owners=hospital --num_clients=5

Flags are those of mhd train that determine the data; with the same flags, training has the
same split. The output folder gets statistics.json, data_split.png and .svg, and split.npz, which
can be given to --partition.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn
from rich import box
from rich.markup import escape
from rich.table import Table

import mhd_jax as mhd
from mhd_jax.cli import data_flags, launch
from mhd_jax.cli.settings import RunSettings
from mhd_jax.core import multihost
from mhd_jax.core.files import folder_here, make_folder
from mhd_jax.core.shown import shortened
from mhd_jax.data import partition_statistics
from mhd_jax.runs import drawing, figures
from mhd_jax.runs.records import write_json

_OUTPUT = flags.DEFINE_string("output", "runs/inspect_data", "Folder of numbers, plots and split.")
flags.adopt_module_key_flags(data_flags)

_NUMBERS = "statistics.json"
_MOST_COLUMNS = 20  # classes up to which the table of counts has readable names


class _OfAnySamples(nn.Module):
    """A backbone for clients that only hold samples, whatever these are."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> jax.Array:
        """Maps samples, arrays [N, ...], to embeddings [N, 1]."""
        return jnp.zeros((len(jax.tree.leaves(x)[0]), 1))


def main(arguments: Sequence[str] = ()) -> None:
    """Splits the data by the flags, or that of a path beside them, and shows the result."""
    output = folder_here(_OUTPUT.value, "--output")
    _require_own(output)
    settings = data_flags.values()
    if arguments:
        settings["dataset"] = _only(arguments)
    clients = RunSettings(**settings).clients(flags.FLAGS.seed, model=_OfAnySamples())
    found = partition_statistics.describe(clients.label_counts())
    if multihost.is_main():
        write(output, clients, found)

    console = launch.console()
    console.print(repr(clients.data), markup=False, soft_wrap=True)
    names = [escape(name) for name in clients.data.class_names]
    if "owners" in clients.settings:
        owners = ", ".join(shortened(clients.settings["owners"]))
        console.print(f"The clients are the owners {owners}.", markup=False, soft_wrap=True)
    console.print(client_table(found, names))
    counts = count_table(found, names, console.width)
    if counts is not None:
        console.print(counts)
    roles = ", ".join(f"{count:,} {role}" for role, count in clients.role_counts().items())
    console.print(f"samples: {roles}")
    console.print(
        f"The largest client has {found['imbalance']:.2f} times the samples of the smallest."
    )
    console.print(
        "The labels of two clients differ by a total variation of "
        f"{found['mean_total_variation']:.3f} on average (0: same shares, 1: no class in common)."
    )
    console.print(f"plots and split: {output}", markup=False, soft_wrap=True)


def client_table(found: dict[str, Any], class_names: Sequence[str]) -> Table:
    """Returns a table of statistics, with a line for each client."""
    table = Table(title="Private data of each client")
    for heading in ("client", "samples", "classes", "entropy (bits)", "largest class", "its share"):
        table.add_column(heading, justify="left" if heading == "largest class" else "right")
    for client in found["clients"]:
        table.add_row(
            str(client["client"]),
            f"{client['samples']:,}",
            str(client["classes"]),
            f"{client['entropy_bits']:.3f}",
            class_names[client["largest_class"]],
            f"{client['largest_share']:.3f}",
        )
    return table


def count_table(found: dict[str, Any], class_names: Sequence[str], width: int) -> Table | None:
    """Returns a table of samples by client and class; None if `width` characters are too few."""
    digits = max(len(str(count)) for client in found["clients"] for count in client["counts"])
    if len(class_names) > _MOST_COLUMNS or 10 + len(class_names) * (digits + 1) > width:
        return None
    table = Table(title="Private samples by class", box=box.SIMPLE, padding=0, pad_edge=False)
    table.add_column("client", justify="right", no_wrap=True)
    for name in class_names:
        table.add_column(name, justify="right", overflow="fold")
    for client in found["clients"]:
        table.add_row(str(client["client"]), *map(str, client["counts"]))
    return table


def write(output: pathlib.Path, clients: mhd.Clients, found: dict[str, Any]) -> None:
    """Writes the numbers, the split and the plot."""
    make_folder(output, "output folder")
    of_models = ("models", "backbones")
    content = {
        "settings": {k: v for k, v in clients.settings.items() if k not in of_models},
        "class_names": clients.data.class_names,
        "samples": clients.role_counts(),
        **found,
    }
    write_json(output / _NUMBERS, content)
    clients.save_split(output / "split.npz")
    drawing.save_figure(
        lambda: figures.data_split(clients.label_counts(), clients.data.class_names),
        output / "data_split",
    )


def _only(arguments: Sequence[str]) -> str:
    """Returns the data set that is named without a flag."""
    if len(arguments) > 1 or flags.FLAGS["dataset"].present:
        raise mhd.ConfigError(
            f"name one data set, not {arguments[-1]!r} besides; flags are written --name=value."
        )
    return arguments[0]


def _require_own(output: pathlib.Path) -> None:
    """Raises `mhd.ConfigError` for a folder with other content, such as a run and its split."""
    if not output.exists() or (output / _NUMBERS).exists():
        return
    if not output.is_dir() or any(output.iterdir()):
        raise mhd.ConfigError(f"{output} exists and holds no {_NUMBERS}; choose another --output.")


def start() -> None:
    """Starts the command on the arguments of this process."""
    launch.run(main, takes_arguments=True)
