r"""Measures the cost of a step against the number of clients: time, memory, compilation.

  python -m experiments.scaling --models=mlp,lenet5,resnet20 --workdir=runs/scaling
  python -m experiments.scaling --models=mlp --algorithms=mhd,qg_dsgd --topology=random_regular \
      --num_clients=125,250,500,1000 --workdir=runs/load

Each client trains on synthetic images with private batches of 32 and, if the algorithm has public
batches, of 64. The folder gets scaling.json, scaling.md, scaling.png and .svg.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
from absl import flags

import mhd_jax as mhd
from experiments.benchmark import compilation, dispatches, images_of_clients
from experiments.timing import in_turn
from mhd_jax.algorithms import ALGORITHMS
from mhd_jax.cli import launch
from mhd_jax.core.files import folder_here, make_folder
from mhd_jax.engine.prepare import prepare
from mhd_jax.runs.drawing import Figure, save_figure
from mhd_jax.runs.figures import row_styles
from mhd_jax.runs.records import write_json
from mhd_jax.studies import tables

_SHAPES = {"mlp": (8, 8, 1), "lenet5": (28, 28, 1), "resnet20": (32, 32, 3)}
_MOST = {"mlp": 256, "lenet5": 256, "resnet20": 32}
_HEADINGS = (
    "model",
    "algorithm",
    "K",
    "ms per step",
    "ms per client",
    "memory, MB",
    "compilation, s",
)
_DEGREE = 4  # the degree of random regular graphs

_MODELS = flags.DEFINE_list("models", list(_SHAPES), "Models to measure.")
_ALGORITHMS = flags.DEFINE_list(
    "algorithms", ["mhd"], "Algorithms to measure, with their defaults."
)
_NUM_CLIENTS = flags.DEFINE_list(
    "num_clients", [], "Numbers of clients; by default 1, 4, 16 … up to what suits a model."
)
_TOPOLOGY = flags.DEFINE_string("topology", "ring", "Graph; random_regular has degree 4 here.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/scaling", "Folder for the table and the plot.")


@dataclasses.dataclass(frozen=True)
class Cost:
    """One measurement.

    Attributes:
      step_seconds: the time of a step, the median over dispatches.
      compile_seconds: the time to compile a dispatch.
      memory_bytes: the state and the temporary memory of the compiled step, on all devices.
      chunk: the clients of one device that were computed together; None for all.
    """

    model: str
    algorithm: str
    num_clients: int
    step_seconds: float
    compile_seconds: float
    memory_bytes: int
    chunk: int | None


def measure(model: str, algorithm: str, topology: str, num_clients: int) -> Cost:
    """Measures the cost for a number of clients, on synthetic images."""
    count = 40 * num_clients + 400
    clients = images_of_clients(num_clients, model, norm=None, count=count, shape=_SHAPES[model])
    optimizer = mhd.optim.SGD(momentum=0.9)  # some algorithms need momentum
    run = prepare(
        _graph(topology, num_clients), clients, algorithm, steps=10_000, optimizer=optimizer
    )
    compile_seconds, memory_bytes = compilation(run)
    (one_step,) = in_turn(dispatches(run, 1), repetitions=1).medians()
    steps = max(1, int(0.3 / one_step))
    (seconds,) = in_turn(dispatches(run, steps), repetitions=5, steps=steps).medians()
    return Cost(
        model,
        algorithm,
        num_clients,
        seconds,
        compile_seconds,
        memory_bytes,
        run.execution.chunk,
    )


def _graph(topology: str, num_clients: int) -> mhd.Topology:
    options = {"degree": _DEGREE} if topology == "random_regular" else {}
    few = topology == "ring" and num_clients < 3
    return mhd.topology.named("complete" if few else topology, num_clients, **options)


def markdown(costs: Sequence[Cost]) -> str:
    """Returns the table as Markdown."""
    lines = [
        [
            c.model,
            c.algorithm,
            str(c.num_clients),
            f"{1e3 * c.step_seconds:.3g}",
            f"{1e3 * c.step_seconds / c.num_clients:.3g}",
            f"{c.memory_bytes / 1e6:.3g}",
            f"{c.compile_seconds:.1f}",
        ]
        for c in costs
    ]
    return tables.markdown(_HEADINGS, lines)


def figure(costs: Sequence[Cost], topology: str) -> Figure:
    """Plots time, memory and compilation against K."""
    plot = Figure(figsize=(12, 3.6), layout="constrained")
    axes = plot.subplots(1, 3)
    panels = (
        ("step_seconds", "seconds per step"),
        ("memory_bytes", "bytes, all devices"),
        ("compile_seconds", "seconds of compilation"),
    )
    for axis, (field, label) in zip(axes, panels, strict=True):
        lines = list(dict.fromkeys(f"{c.model}, {c.algorithm}" for c in costs))
        for line, style in row_styles(lines).items():
            own = [c for c in costs if f"{c.model}, {c.algorithm}" == line]
            values = [getattr(c, field) for c in own]
            axis.plot([c.num_clients for c in own], values, **style, label=line)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("clients")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if field == "compile_seconds":
            axis.set_ylim(bottom=0)
        else:
            axis.set_yscale("log")
    axes[0].legend()
    device = jax.devices()[0]
    plot.suptitle(f"{topology}: {jax.device_count()} × {device.device_kind}")
    return plot


def _numbers_of_clients(model: str) -> list[int]:
    """Returns the numbers of clients to measure: the flag's, or up to the model's largest."""
    if _NUM_CLIENTS.value:
        given = [int(n) for n in _NUM_CLIENTS.value if n.isdecimal() and int(n) > 0]
        if len(given) < len(_NUM_CLIENTS.value):
            raise mhd.ConfigError("--num_clients takes positive integers, like 125,250,500.")
        return given
    factor = 2 if model == "resnet20" else 4
    return [factor**n for n in range(10) if factor**n <= _MOST[model]]


def main() -> None:
    """Measures what the flags name, and writes the table and the plot."""
    for name, given, known in (
        ("models", _MODELS.value, _SHAPES),
        ("algorithms", _ALGORITHMS.value, ALGORITHMS),
    ):
        unknown = [each for each in given if each not in known]
        if unknown or not given:
            raise mhd.ConfigError(
                f"--{name} takes {', '.join(known)}; unknown: {', '.join(unknown)}."
            )
    numbers = {model: _numbers_of_clients(model) for model in _MODELS.value}
    for number in {n for some in numbers.values() for n in some}:
        _graph(_TOPOLOGY.value, number)  # refuses impossible graphs
    folder = folder_here(_WORKDIR.value, "--workdir")
    make_folder(folder, "workdir")
    console = launch.console()
    costs: list[Cost] = []
    for model, algorithm in itertools.product(_MODELS.value, _ALGORITHMS.value):
        for number in numbers[model]:
            costs.append(measure(model, algorithm, _TOPOLOGY.value, number))
            console.print(costs[-1], highlight=False)
            write_json(folder / "scaling.json", [dataclasses.asdict(cost) for cost in costs])
    (folder / "scaling.md").write_text(markdown(costs), encoding="utf-8")
    save_figure(lambda: figure(costs, _TOPOLOGY.value), folder / "scaling")
    console.print(f"table and plot: {folder}", markup=False)


if __name__ == "__main__":
    launch.run(main)
