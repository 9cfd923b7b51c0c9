"""Whether a run fits in memory: what cannot is refused before its first step, with what to lower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from rich.filesize import decimal

from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import PyTree
from mhd_jax.engine import memory
from mhd_jax.engine.run import Run

_WORTH_NAMING = 0.05  # of the whole
_OF_THE_STATE = "num_clients, pool_size, teacher_delay or a smaller model"
_STEP = "a step (batch_size, public_batch_size or client_chunk)"


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
        f"a copy of the state while it is saved ({_OF_THE_STATE})": run.carry if copied else (),
    }
    _require({what: on_each_device(tree) for what, tree in parts.items()}, run)


def fitted(run: Run) -> Run:
    """The run, computed in chunks of clients where its compiled step would not fit otherwise.

    Raises:
      ConfigError: it does not fit in chunks as given by the user, or of one client.
    """
    while True:
        needed = _step_bytes(run.lower(run.carry))
        smaller = _smaller_chunk(run, needed)
        if smaller is None:
            _require(needed, run)
            return run
        execution = dataclasses.replace(run.execution, chunk=smaller, recompute=True)
        run = dataclasses.replace(run, execution=execution)


def require_step_fits(lowered: jax.stages.Lowered, run: Run) -> None:
    """Raises `ConfigError` where the step of several runs in one program needs more than a device has."""
    _require(_step_bytes(lowered), run)


def _step_bytes(lowered: jax.stages.Lowered) -> dict[str, int]:
    """What the program needs on each device, as its compiler says, by what it is for."""
    found: Any = lowered.compile().memory_analysis()
    if found is None:  # a backend that does not tell
        return {}
    return {
        "state and data (num_clients, or a smaller model)": found.argument_size_in_bytes,
        _STEP: found.temp_size_in_bytes,
    }


def _smaller_chunk(run: Run, needed: Mapping[str, int]) -> int | None:
    """A chunk with which the step may fit where it does not; None where there is none."""
    execution, whole = run.execution, _whole_bytes(run)
    chunk = execution.at_once(run.clients.num_clients)
    if sum(needed.values()) <= whole or run.client_chunk is not None or chunk == 1:
        return None
    left = max(whole - sum(needed.values()) + needed[_STEP], 0)
    return max(1, min(int(chunk * left / needed[_STEP]), chunk // 2))


def on_each_device(tree: PyTree) -> int:
    """Bytes of arrays, or of shapes with places, on one of their devices."""
    return sum(
        memory.num_bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype))
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    )


def _whole_bytes(run: Run) -> int:
    """The memory of a device, of the process that has least: all must decide alike."""
    own = memory.whole_bytes(run.execution.num_devices)
    if jax.process_count() == 1:
        return own
    return int(multihost.from_each(own >> 20).min()) << 20  # they tell each other 32 bits


def _require(parts: Mapping[str, int], run: Run) -> None:
    total, whole = sum(parts.values()), _whole_bytes(run)
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
