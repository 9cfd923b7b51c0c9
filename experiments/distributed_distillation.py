r"""Tests whether Distributed Distillation converges on any graph, as its paper claims.

  python -m experiments.distributed_distillation --workdir=runs/distributed_distillation

Clients learn the digits, mostly two of ten each, on a ring, a chain and a complete graph, with
decreasing step sizes. Two quantities must vanish: the largest distance of a client's estimate z_i
from the network's average decision s̄, and the largest full-batch gradient of
CE_i + ρ/2 · mean ‖s_i − s̄‖². The spread of the decisions does not vanish; it is reported against
ρ. The folder gets convergence.json, convergence.md, convergence.png and .svg.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array

import mhd_jax as mhd
from mhd_jax.cli import launch, study
from mhd_jax.clients import Clients
from mhd_jax.core.files import make_folder
from mhd_jax.core.trees import num_bytes
from mhd_jax.core.types import Batch, PyTree, State
from mhd_jax.engine.prepare import prepare
from mhd_jax.engine.run import Run
from mhd_jax.models import ClientModel, build_backbone
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.figures import row_styles
from mhd_jax.training.groups import all_params, all_stats, forward, private_gradients

_CLASSES = 10
_RHO = 1.0  # the ρ at which graphs and step sizes are compared

_GRAPHS = flags.DEFINE_list("graphs", ["ring", "chain", "complete"], "Graphs, by name.")
_RHOS = flags.DEFINE_multi_float("rho", [0.1, 10.0], "Other ρ, on the first graph; repeat it.")
_STEPS = flags.DEFINE_integer("steps", 30_000, "Training steps of each run.", lower_bound=1)
_CLIENTS = flags.DEFINE_integer("num_clients", 8, "K, how many clients.", lower_bound=3)
_RATE = flags.DEFINE_float("learning_rate", 0.3, "Step size at the start.", lower_bound=1e-9)
_PUBLIC = flags.DEFINE_integer("public_batch_size", 64, "|R_t|.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the data split and of training.", lower_bound=0)
flags.DEFINE_string("workdir", "runs/distributed_distillation", "Folder for tables and plot.")

Record = dict[str, float]


def everything(clients: Clients) -> Batch:
    """Returns a batch of all private samples of every client, padded, and the whole public set."""
    sizes = clients.label_counts().sum(axis=1)
    rows = np.stack(
        [
            np.resize(np.flatnonzero(clients.owner == i), sizes.max())
            for i in range(clients.num_clients)
        ]
    )
    return Batch(
        inputs=clients.data.preparation(jnp.asarray(clients.data.inputs[rows])),
        labels=jnp.asarray(clients.data.labels[rows]),
        mask=jnp.asarray(np.arange(sizes.max()) < sizes[:, None], jnp.float32),
        public_inputs=clients.data.preparation(jnp.asarray(clients.public_inputs)),
        public_indices=jnp.arange(clients.num_public),
    )


def distances(state: State, batch: Batch, rho: Array) -> dict[str, Array]:
    """Returns the distances of a state from convergence.

    Returns:
      "estimate": max_i of the root mean square over x of ‖z_i(x) − s̄(x)‖; "gradient": max_i of the
      norm of client i's full-batch gradient; "spread": the root mean square of ‖s_i(x) − s̄(x)‖.
    """

    def decisions(params: tuple[PyTree, ...]) -> Array:
        outputs, _ = forward(
            state, params, all_stats(state), batch.public_inputs, shared_inputs=True
        )
        return jax.nn.softmax(outputs.logits[:, :, 0])

    said = decisions(all_params(state))
    mean = said.mean(axis=0)

    def pull(params: tuple[PyTree, ...]) -> Array:
        gaps = jnp.square(decisions(params) - mean).sum(axis=-1)
        return rho / 2 * gaps.mean(axis=1).sum()

    private, _, _ = private_gradients(state, batch, 0.0)
    total = jax.tree.map(jnp.add, private, jax.grad(pull)(all_params(state)))
    squares = sum(
        jnp.square(a).reshape(state.num_clients, -1).sum(axis=1) for a in jax.tree.leaves(total)
    )

    def root_mean_square(gaps: Array) -> Array:
        return jnp.sqrt(jnp.square(gaps).sum(axis=-1).mean(axis=-1))

    return {
        "estimate": root_mean_square(state.extra["estimates"] - mean).max(),
        "gradient": jnp.sqrt(squares).max(),
        "spread": jnp.sqrt(jnp.square(root_mean_square(said - mean)).mean()),
    }


_distances = jax.jit(distances)


def prepared(clients: Clients, graph: str, rho: float, schedule: str) -> Run:
    """Returns a run that is ready to start; `mhd.ConfigError` if it could not."""
    return prepare(
        graph,
        clients,
        mhd.algorithms.distributed_distillation(rho=rho, label_smoothing=0.0),
        steps=_STEPS.value,
        public_batch_size=_PUBLIC.value,
        optimizer=mhd.optim.SGD(_RATE.value, momentum=0.0, weight_decay=0.0, schedule=schedule),
        seed=_SEED.value,
        num_devices=1,
    )


def follow(clients: Clients, graph: str, rho: float, schedule: str) -> list[Record]:
    """Trains one run and returns its distances after 1, 2, 4, … steps and at its end."""
    run = prepared(clients, graph, rho, schedule)
    carry, records, batch = run.start(), [], everything(clients)
    stops = [2**n for n in range(_STEPS.value.bit_length())]
    for step in sorted({*stops, _STEPS.value}):
        carry = run.advance(carry, step - int(carry.state.step))
        found = jax.device_get(_distances(carry.state, batch, jnp.float32(rho)))
        records.append({"step": step, **{name: float(value) for name, value in found.items()}})
        if not all(np.isfinite(list(records[-1].values()))):
            raise mhd.DivergedError(
                f"{graph}, ρ = {rho}: step {step} is not finite; lower the rate."
            )
    return records


def message_bytes() -> list[dict[str, Any]]:
    """Returns the bytes of one edge in one step, by model: soft decisions and parameters."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    rows = []
    for name in ("mlp", "lenet5", "resnet20", "resnet18"):
        model = ClientModel(build_backbone(name, None, images.shape[1:]), 1, _CLASSES)
        params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
        decisions = jax.ShapeDtypeStruct((_PUBLIC.value, _CLASSES), jnp.float32)
        rows.append(
            {"model": name, "decisions": num_bytes(decisions), "parameters": num_bytes(params)}
        )
    return rows


def main() -> None:
    """Runs the study and writes its tables and its plot."""
    console = launch.console()
    if not _GRAPHS.value:
        raise mhd.ConfigError("--graphs must name one graph at least, like ring.")
    workdir = study.workdir("runs/distributed_distillation")
    clients = mhd.make_clients("digits", _CLIENTS.value, seed=_SEED.value)
    first = _GRAPHS.value[0]
    cases = [(graph, _RHO, "decreasing") for graph in _GRAPHS.value]
    cases += [(first, rho, "decreasing") for rho in _RHOS.value if rho != _RHO]
    cases += [(first, _RHO, "constant")]
    for case in cases:  # all of them, before the first trains for long
        prepared(clients, *case)
    make_folder(workdir, "workdir")
    runs = []
    for number, (graph, rho, schedule) in enumerate(cases, 1):
        console.print(
            f"[{number}/{len(cases)}] {graph}, ρ = {rho:g}, {schedule} steps", markup=False
        )
        records = follow(clients, graph, rho, schedule)
        runs.append({"graph": graph, "rho": rho, "schedule": schedule, "records": records})
    sent = message_bytes()
    settings = {flag.name: flag.value for flag in (_STEPS, _CLIENTS, _RATE, _PUBLIC, _SEED)}
    content = {"settings": settings, "runs": runs, "bytes": sent}
    drawn = {"convergence": lambda: figure(runs)}
    study.publish(workdir, content, [_convergence(runs), _traffic(sent)], drawn, name="convergence")


def figure(runs: Sequence[dict[str, Any]]) -> Figure:
    """Plots the quantities that must vanish over steps, and the spread against ρ."""
    drawn = Figure(figsize=(13, 4), layout="constrained")
    estimate, gradient, spread = drawn.subplots(1, 3)
    distance, norm = "distance of probabilities", "norm of the gradient"
    compared = [run for run in runs if run["rho"] == _RHO]
    labels = [f"{run['graph']}, {run['schedule']} steps" for run in compared]
    styles = row_styles(labels)
    for run, label in zip(compared, labels, strict=True):
        steps = [record["step"] for record in run["records"]]
        for axis, name in ((estimate, "estimate"), (gradient, "gradient")):
            values = [record[name] for record in run["records"]]
            axis.loglog(steps, values, **styles[label], label=label)
    first = runs[0]["graph"]
    for axis, title, height, across in (
        (estimate, "Estimates of the average: max_i ‖z_i − s̄‖", distance, "step"),
        (gradient, "Gradients of CE_i + ρ/2 · mean ‖s_i − s̄‖²: max_i norm", norm, "step"),
        (spread, "Spread of the decisions: ‖s_i − s̄‖ at the end", distance, f"ρ ({first})"),
    ):
        axis.set_title(title, fontsize="medium")
        axis.set_ylabel(height)
        axis.set_xlabel(across)
        axis.grid(alpha=0.3)
    estimate.legend(fontsize="small")
    by_rho = sorted(
        (run["rho"], run["records"][-1]["spread"])
        for run in runs
        if run["graph"] == first and run["schedule"] == "decreasing"
    )
    spread.semilogx(*zip(*by_rho, strict=True), "o-", color="black")
    spread.set_ylim(0)
    return drawn


def _convergence(runs: Sequence[dict[str, Any]]) -> study.Table:
    """Returns the table of the distances at the start and at the end of each run."""
    lines = []
    for run in runs:
        first, last = run["records"][0], run["records"][-1]
        name = f"{run['graph']}, ρ = {run['rho']:g}, {run['schedule']}"
        of = ("estimate", "gradient", "spread")
        lines.append([name, *(f"{first[each]:.2g} → {last[each]:.2g}" for each in of)])
    return study.Table(["run", "max ‖z_i − s̄‖", "max ‖gradient‖", "spread of s_i"], lines)


def _traffic(sent: Sequence[dict[str, Any]]) -> study.Table:
    """Returns the table of bytes."""
    decisions = "bytes a step and edge (32×32×3 inputs): soft decisions"
    lines = []
    for row in sent:
        ratio = f"1 : {row['parameters'] / row['decisions']:,.0f}"
        lines.append([row["model"], f"{row['decisions']:,}", f"{row['parameters']:,}", ratio])
    return study.Table(["model", decisions, "parameters", "ratio"], lines)


if __name__ == "__main__":
    launch.run(main)
