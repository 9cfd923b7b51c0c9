"""Whether a run fits in memory: what cannot is refused before its first step, with what to lower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from rich.filesize import decimal

from mhd_jax import memory
from mhd_jax.errors import ConfigError
from mhd_jax.run import Run
from mhd_jax.types import PyTree

_WORTH_NAMING = 0.05  # of the whole


def require_state_fits(run: Run, *, saves: bool) -> None:
    """Raises `ConfigError` where what stays in memory from step to step is more than a device has.

    On a CPU a run that saves keeps a copy of its state for the threads that write it.
    """
    state = run.carry.state
    copied = saves and jax.default_backend() == "cpu"
    snapshots = [group.snapshots for group in state.groups]
    own = [(group.params, group.stats, group.opt_state) for group in state.groups]
    parts = {
        "parameters, statistics and optimizer state (num_clients, or a smaller model)": own,
        "snapshots of clients (pool_size or teacher_delay)": snapshots,
        "what the algorithm remembers (num_clients or the public set)": state.extra,
        "data (data_placement='host')": (run.data, run.test, run.validation),
        "counts of edges (num_clients)": (run.carry.messages, run.carry.diagnostics),
        "the copy that is being saved (as before)": run.carry if copied else (),
    }
    _require({what: on_each_device(tree) for what, tree in parts.items()}, run)


def require_step_fits(compiled: jax.stages.Compiled, run: Run) -> None:
    """Raises `ConfigError` where the compiled step of a run needs more than a device has."""
    found: Any = compiled.memory_analysis()
    if found is None:  # a backend that does not tell
        return
    fewer = "" if run.execution.chunk == 1 else " or client_chunk"
    parts = {
        "state and data (num_clients, or a smaller model)": found.argument_size_in_bytes,
        f"a step (batch_size, public_batch_size{fewer})": found.temp_size_in_bytes,
    }
    _require(parts, run)


def on_each_device(tree: PyTree) -> int:
    """Bytes of arrays, or of shapes with places, on one of their devices."""
    return sum(
        memory.num_bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype))
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    )


def _require(parts: Mapping[str, int], run: Run) -> None:
    mesh = run.execution.mesh
    total, whole = sum(parts.values()), memory.whole_bytes(1 if mesh is None else mesh.size)
    if total <= whole:
        return
    largest = sorted(parts.items(), key=lambda part: -part[1])
    named = [
        f"{decimal(size)} for {what}" for what, size in largest if size > _WORTH_NAMING * total
    ]
    raise ConfigError(
        f"the run does not fit: it needs {decimal(total)} on each device, which has {decimal(whole)}. "
        f"Of these are {'; '.join(named)}. Lower what is named in parentheses, or take more devices."
    )
