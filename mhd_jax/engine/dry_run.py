"""What a prepared run would take: parameters, memory, operations and messages, without training.

The run's step is traced and never compiled; no parameter is drawn, and no sample is placed.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mhd_jax.core import modes
from mhd_jax.core.trees import num_bytes
from mhd_jax.core.types import PyTree
from mhd_jax.engine import memory, message_counts
from mhd_jax.engine.arithmetic import alone_of, step_flops
from mhd_jax.engine.run import Run, batch_shapes
from mhd_jax.exchange import messages as communication
from mhd_jax.runs.records import jsonable

_BY_COUNTS = ("total_bytes", "by_type", "by_dtype", "messages")


@modes.standard()
def dry_run(run: Run, eval_every: int, *, saves: bool) -> dict[str, Any]:
    """Returns what a run would take, by the names that docs/command_line.md describes.

    Args:
      run: from `mhd_jax.prepare`.
      eval_every: steps between evaluations.
      saves: whether it has a folder.
    """
    alone = alone_of(run)
    batch = batch_shapes(alone.carry, alone.samples.data_shapes, alone.spec)
    test = run.clients.data.samples(len(run.clients.data.test_labels))
    logits = jax.eval_shape(run.algorithm.predict, alone.carry.state, test)
    flops = step_flops(alone)
    found = {
        "algorithm": run.algorithm.name,
        "dataset": run.everyone.data.name,
        "num_clients": run.everyone.num_clients,
        "seed": run.seed,
        "steps": run.steps,
        "evaluations": -(-run.steps // eval_every),
        "samples": run.everyone.role_counts(),
        "shapes": {
            "private_batch": _shapes(batch.inputs),
            "public_batch": _shapes(batch.public_inputs) if run.spec.public else None,
            "test_logits": list(logits.shape),
        },
        "models": _models(alone),
        "memory": _memory(run, saves=saves),
        "flops": {"step": flops, "run": None if flops is None else flops * run.steps},
        "communication": _communication(alone),
        "settings": run.settings,
    }
    return jsonable(found)


def _shapes(inputs: PyTree) -> list[Any]:
    """Returns the shape of samples, or a list of shapes where samples have several parts."""
    found = [list(leaf.shape) for leaf in jax.tree.leaves(inputs)]
    return found[0] if len(found) == 1 else found


def _models(run: Run) -> list[dict[str, Any]]:
    """Returns the number of parameters, and the bytes of the state, of a client of each group."""
    found = []
    for one, group in zip(run.clients.groups, run.carry.state.groups, strict=True):
        count = len(group.members)
        whole = (group.params, group.stats, group.opt_state)
        found.append(
            {
                "model": one.described,
                "clients": list(group.members),
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(group.params)) // count,
                "state_bytes": num_bytes(whole) // count,
            }
        )
    return found


def _memory(run: Run, *, saves: bool) -> dict[str, Any]:
    """Returns the estimated bytes on each device, by purpose, and whether they fit."""
    execution = run.execution
    chunk = execution.at_once(run.clients.num_clients)
    on_device = run.clients.num_clients // execution.num_shards
    needs = memory.estimate(run.clients, run.algorithm, run.spec)
    parts = memory.state_parts(run, saves=saves)
    parts[memory.STEP] = needs.temporary(on_device, chunk, execution.recompute)
    total, whole = sum(parts.values()), memory.whole_bytes(execution.num_devices)
    return {
        "devices": execution.num_devices,
        "clients_at_once": chunk,
        "by_purpose": {what.partition(" (")[0]: size for what, size in parts.items() if size},
        "total_bytes": total,
        "device_bytes": whole,
        "fits": total <= whole,
    }


def _communication(run: Run) -> dict[str, Any]:
    """Returns the messages of all steps and their bytes; None for what training decides."""
    counts = message_counts.counts(run)
    if counts is None:
        nothing = {kind: np.zeros(n.shape, int) for kind, n in run.carry.messages.items()}
        found = communication.total(nothing, run.senders) | dict.fromkeys(_BY_COUNTS)
        return {**found, "bytes_per_step": None}
    found = communication.total(counts, run.senders)
    return {**found, "bytes_per_step": found["total_bytes"] / run.steps}
