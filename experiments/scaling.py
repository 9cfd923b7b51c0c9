"""What a step costs against the number of clients: time, memory, compilation.

  python -m experiments.scaling --models=mlp,lenet5,resnet20 --workdir=runs/scaling

Each client trains by MHD on a ring with private batches of 32 and a public one of 64. The
folder gets scaling.json, scaling.md, scaling.png and .svg.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

import mhd_jax as mhd
from experiments import launch
from experiments.benchmark import alternating_medians, no_compilation_cache
from mhd_jax import memory, report
from mhd_jax.checkpoint import write_json
from mhd_jax.figures import line_styles
from mhd_jax.run import prepare

_SHAPES = {"mlp": (8, 8, 1), "lenet5": (28, 28, 1), "resnet20": (32, 32, 3)}
_MOST = {"mlp": 256, "lenet5": 256, "resnet20": 32}

_MODELS = flags.DEFINE_list("models", list(_SHAPES), "Models to measure.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/scaling", "Folder for the table and the plot.")


@dataclasses.dataclass(frozen=True)
class Cost:
    """One measurement.

    Attributes:
      step_seconds: the median of dispatches, per step.
      compile_seconds: of the program of a dispatch.
      memory_bytes: the state, and what the compiled step needs beside it, of all devices.
      chunk: clients of one device that were computed together.
    """

    model: str
    num_clients: int
    step_seconds: float
    compile_seconds: float
    memory_bytes: int
    chunk: int | None


def measure(model: str, num_clients: int) -> Cost:
    """The cost of MHD on a ring of so many clients, on made images."""
    rng = np.random.default_rng(0)
    shape = _SHAPES[model]
    count = 40 * num_clients + 400
    images = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    data = mhd.data.arrays(images, np.arange(count) % 10)
    clients = mhd.make_clients(data, num_clients, model, partition="iid")
    graph = "ring" if num_clients > 2 else "complete"
    run = prepare(graph, clients, "mhd", steps=10_000)
    with no_compilation_cache():
        started = time.perf_counter()
        compiled: Any = run.lower(run.carry).compile()
        compile_seconds = time.perf_counter() - started
        holder = [run.advance(run.start(), 1)]
    started = time.perf_counter()
    holder[0] = jax.block_until_ready(run.advance(holder[0], 1))
    steps = max(1, int(0.3 / (time.perf_counter() - started)))

    def advance() -> Any:
        holder[0] = run.advance(holder[0], steps)
        return holder[0]

    seconds = alternating_medians(advance, repetitions=5)[0] / steps
    devices = 1 if run.execution.mesh is None else run.execution.mesh.size
    beside = devices * compiled.memory_analysis().temp_size_in_bytes
    return Cost(
        model,
        num_clients,
        seconds,
        compile_seconds,
        memory.num_bytes(run.carry) + beside,
        run.execution.chunk,
    )


def markdown(costs: Sequence[Cost]) -> str:
    """The table."""
    lines = [
        "| model | K | ms per step | ms per client | memory, MB | compilation, s |",
        "|---|---|---|---|---|---|",
    ]
    for c in costs:
        ms = 1e3 * c.step_seconds
        lines.append(
            f"| {c.model} | {c.num_clients} | {ms:.3g} | {ms / c.num_clients:.3g} "
            f"| {c.memory_bytes / 1e6:.3g} | {c.compile_seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def figure(costs: Sequence[Cost]) -> Figure:
    """Time, memory and compilation against K."""
    plot = Figure(figsize=(12, 3.6), layout="constrained")
    axes = plot.subplots(1, 3)
    panels = (
        ("step_seconds", "seconds per step"),
        ("memory_bytes", "bytes, all devices"),
        ("compile_seconds", "seconds of compilation"),
    )
    for axis, (field, label) in zip(axes, panels, strict=True):
        models = list(dict.fromkeys(c.model for c in costs))
        for model, style in zip(models, line_styles(len(models)), strict=True):
            own = [c for c in costs if c.model == model]
            values = [getattr(c, field) for c in own]
            axis.plot([c.num_clients for c in own], values, **style, label=model)
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
    plot.suptitle(f"MHD on a ring: {jax.device_count()} × {device.device_kind}")
    return plot


def main() -> None:
    """Measures by the flags."""
    unknown = [name for name in _MODELS.value if name not in _SHAPES]
    if unknown or not _MODELS.value:
        raise mhd.ConfigError(
            f"--models takes {', '.join(_SHAPES)}; unknown: {', '.join(unknown)}."
        )
    folder = pathlib.Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    console = launch.console()
    costs: list[Cost] = []
    for model in _MODELS.value:
        num_clients = 1
        while num_clients <= _MOST[model]:
            costs.append(measure(model, num_clients))
            console.print(costs[-1], highlight=False)
            num_clients *= 4 if model != "resnet20" else 2
        write_json(folder / "scaling.json", [dataclasses.asdict(cost) for cost in costs])
    (folder / "scaling.md").write_text(markdown(costs), encoding="utf-8")
    report.save_figure(figure(costs), folder / "scaling")
    console.print(f"table and plot: {folder}", markup=False)


if __name__ == "__main__":
    launch.run(main)
