"""Measures speed as ratios within one run, each beside its target.

  python -m experiments.benchmark --rows=dispatch --output=bench.json

Times are medians over several repetitions after warm-up, compilation apart. The output is a
JSON list of {"row", "value", "unit", "target", "met", "detail"}.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from rich.console import Console
from rich.table import Table

import mhd_jax as mhd
from experiments.launch import run
from mhd_jax import engine
from mhd_jax.data.batching import BatchSpec, draw_batch


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement; `met` is None where this machine cannot tell, and `detail` says why."""

    row: str
    value: float | None
    unit: str
    target: str
    met: bool | None
    detail: dict[str, Any]


def alternating_medians(*calls: Callable[[], Any], repetitions: int = 9) -> list[float]:
    """Median seconds of each call, taken in turn so that the machine's drift hits all alike."""
    for call in calls:
        jax.block_until_ready(call())
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repetitions):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def dispatch() -> Row:
    """One dispatch of 100 steps against 100 calls of the jitted step on a fixed batch: the demo's MHD."""
    steps = 100
    algorithm, topology, spec = mhd.algorithms.mhd(), mhd.topology.complete(8), BatchSpec(32, 64)
    clients = mhd.make_clients(mhd.data.load("digits"), 8).with_optimizer(
        mhd.optim.SGD().build(2000)
    )
    data = engine.device_data(clients)
    carry = engine.initial_carry(algorithm, clients, data, spec, seed=0)
    state = carry.state
    batch = draw_batch(data, state.key, state.client_ids, state.step, spec)
    graph = topology.at(0)
    step = jax.jit(algorithm.train_step)

    def one_by_one() -> Any:
        current = state
        for _ in range(steps):
            current, metrics = step(current, batch, graph)
        return current, metrics

    holder = [jax.tree.map(jnp.copy, carry)]  # a dispatch uses its carry up

    def dispatched() -> Any:
        holder[0] = engine.dispatch(
            holder[0],
            data,
            topology.adjacency,
            jnp.int32(steps),
            train_step=algorithm.train_step,
            schedule=topology.schedule,
            spec=spec,
        )
        return holder[0]

    together, apart = alternating_medians(dispatched, one_by_one)
    ratio = together / apart
    detail = {"dispatch_ms_per_step": 10 * together, "calls_ms_per_step": 10 * apart}
    return Row("dispatch", ratio, "times the time of the calls", "≤ 1.3", ratio <= 1.3, detail)


ROWS: dict[str, Callable[[], Row]] = {"dispatch": dispatch}

_ROWS = flags.DEFINE_multi_enum("rows", None, list(ROWS), "Rows to measure; by default all.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the rows as JSON.")


def main() -> None:
    """Measures by the flags."""
    device = jax.devices()[0]
    table = Table("row", "value", "unit", "target", "met", title=f"{device.device_kind}")
    rows = []
    for name in _ROWS.value or ROWS:
        row = ROWS[name]()
        rows.append(row)
        table.add_row(
            row.row,
            "–" if row.value is None else f"{row.value:.2f}",
            row.unit,
            row.target,
            {True: "yes", False: "no", None: "–"}[row.met],
        )
    Console().print(table)
    if _OUTPUT.value:
        text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
        pathlib.Path(_OUTPUT.value).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
