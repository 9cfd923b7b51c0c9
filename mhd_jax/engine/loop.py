"""The host's loop: it dispatches the steps of lanes, evaluates and saves between dispatches."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from mhd_jax.core import multihost
from mhd_jax.core.errors import DivergedError, InterruptedRun
from mhd_jax.core.types import PyTree
from mhd_jax.engine.failures import listed
from mhd_jax.engine.lane import Lane
from mhd_jax.engine.result import Result
from mhd_jax.engine.run import Run
from mhd_jax.engine.schedule import Pace
from mhd_jax.engine.signals import stop_requests
from mhd_jax.engine.steps import Carry
from mhd_jax.runs.callbacks import Callback

_COLLAPSE_ENTROPY = 0.1


class Program(Protocol):
    """What the loop trains: a run (`engine.run.Run`), or several joined (`joint_runs.Together`)."""

    @property
    def runs(self) -> Sequence[Run]:
        """The runs."""

    def join(self, carries: Sequence[Carry]) -> Carry:
        """Returns the program's carry from its runs' carries, which must be at the same step."""

    def split(self, tree: PyTree) -> list[PyTree]:
        """Splits the program's carry, or a tree of its arrays, into one for each run."""

    def fitted(self, carry: Carry) -> Program:
        """Returns a program whose step fits in memory; raises `ConfigError` if there is none."""

    def advance(self, carry: Carry, num_steps: int) -> Carry:
        """Takes `num_steps` steps of all runs and returns the new carry; `carry` is donated."""


def carry_out(
    lanes: Sequence[Lane], program: Program, started_at: int, watch: Callback
) -> list[Result | DivergedError]:
    """Takes the runs of one program, each with its lane, from step `started_at` to their end."""
    carry = program.join([lane.begin(started_at) for lane in lanes])
    status = "failed"
    try:
        watch.on_start([lane.watched for lane in lanes], started_at)
        with stop_requests(active=lanes[0].folder is not None) as stop_requested:
            parts, compile_seconds = _train(lanes, program, carry, watch, stop_requested)
        if not all(lane.failure for lane in lanes):
            status = "finished"
    except (InterruptedRun, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        watch.on_end(status)
    return [
        lane.failure or lane.finish(part, started_at, compile_seconds / len(lanes), len(lanes))
        for lane, part in zip(lanes, parts, strict=True)
    ]


def _train(
    lanes: Sequence[Lane],
    program: Program,
    carry: Carry,
    watch: Callback,
    stop_requested: Callable[[], bool],
) -> tuple[list[Carry], float]:
    """Trains to the end of the lanes' common plan, or until all have diverged.

    Returns:
      The carry of each run, and the seconds of compilation.
    """
    plan = lanes[0].plan
    started = time.perf_counter()
    program = program.fitted(carry)
    for lane, run in zip(lanes, program.runs, strict=True):
        lane.run = run
    carry = jax.block_until_ready(program.advance(carry, 0))  # loads the program, takes no step
    compile_seconds = time.perf_counter() - started
    watch.on_compiled(compile_seconds)

    step = int(carry.state.step)
    pace = Pace(plan.per_dispatch)
    while step < plan.steps:
        num_steps = min(int(multihost.from_each(pace.steps())[0]), plan.next_stop(step) - step)
        started = time.perf_counter()
        carry = jax.block_until_ready(program.advance(carry, num_steps))
        elapsed = time.perf_counter() - started
        pace.observe(num_steps, elapsed)
        step += num_steps
        parts = program.split((carry.sums, carry.tally))
        for place, (lane, (sums, tally)) in enumerate(zip(lanes, parts, strict=True)):
            lane.seconds += elapsed / len(lanes)
            if lane.failure is None:
                lane.look_after(sums, tally, step)
                if lane.failure is not None:
                    watch.on_failure(place)
        if all(lane.failure for lane in lanes):
            break
        records = []
        if plan.evaluates_at(step):
            records = [lane.record(part) for lane, part in _going(lanes, program, carry)]
            carry = carry.reset()
        stopping = bool(multihost.from_each(stop_requested()).any()) and step < plan.steps
        folders = [lane.folder for lane in lanes if lane.folder is not None]  # of all or none
        due = plan.saves_at(step) or stopping
        if folders and (due or (records and lanes[0].host.keep_best)):
            for lane, part in _going(lanes, program, carry):
                lane.save(step, part, due=due)
        # Watchers come last: an error that they raise loses no evaluation and no checkpoint.
        watch.on_steps(step, pace.rate)
        for record in records:
            _warn_of_collapse(record)
            watch.on_evaluation(record)
        if stopping and folders:
            for folder in folders:
                folder.wait()
            raise InterruptedRun(
                f"stopped at step {step} of {plan.steps}; everything is saved in "
                f"{listed(folders)}, and the same command resumes it"
            )
    return program.split(carry), compile_seconds


def _going(lanes: Sequence[Lane], program: Program, carry: Carry) -> list[tuple[Lane, Carry]]:
    """Returns the lanes that have not diverged, each with its run's carry."""
    parts = zip(lanes, program.split(carry), strict=True)
    return [(lane, part) for lane, part in parts if lane.failure is None]


def _warn_of_collapse(record: Mapping[str, Any]) -> None:
    entropy = record["train"].get("public_entropy")
    if entropy is not None and entropy < _COLLAPSE_ENTROPY:
        warnings.warn(
            f"at step {record['step']} the clients answer nearly the same on all public samples "
            f"(entropy of the mean prediction {entropy:.2f} of its maximum): distillation has "
            "collapsed. Lower nu_aux, num_targets or the learning rate.",
            stacklevel=2,
        )
