"""The arithmetic of a run's step, as XLA counts it in a program without loops over clients."""

from __future__ import annotations

import dataclasses
from typing import Any

from mhd_jax.core.client_axis import Execution
from mhd_jax.engine import start
from mhd_jax.engine.run import Run


def alone_of(run: Run) -> Run:
    """Returns the run on one device, with all clients at once: no loop hides some of a step.

    XLA's analysis counts a loop once, and on CPUs convolutions are loops over clients.
    """
    execution = Execution(most_neighbours=run.execution.most_neighbours, platform="tpu")
    clients = run.clients.first(run.num_active)
    samples = dataclasses.replace(run.samples, clients=clients, execution=execution, on_host=False)
    algorithm = dataclasses.replace(run.algorithm, local=None)
    carry = start.initial_carry(
        *(algorithm, clients, samples.data_shapes, run.spec, run.seed, execution),
        may_fail=run.plan is not None,
        quarantine=run.quarantine,
        abstract=True,
    )
    return dataclasses.replace(
        run,
        algorithm=algorithm,
        clients=clients,
        execution=execution,
        samples=samples,
        carry=carry,
    )


def step_flops(alone: Run) -> float | None:
    """Returns the operations of a step of all clients, in which all happens that may; None: unknown.

    Args:
      alone: from `alone_of`.
    """
    found: Any = alone.lower(alone.carry).cost_analysis() or {}
    return float(found["flops"]) if "flops" in found else None
