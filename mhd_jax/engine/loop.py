"""The host's loop: it dispatches the steps of lanes, evaluates and saves between dispatches."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Protocol

import jax
from jax import Array

from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError, DivergedError, InterruptedRun
from mhd_jax.core.types import GroupState, PyTree, State
from mhd_jax.core.warned import warn
from mhd_jax.engine.failures import listed
from mhd_jax.engine.lane import Lane
from mhd_jax.engine.result import Result
from mhd_jax.engine.run import Run
from mhd_jax.engine.schedule import Pace
from mhd_jax.engine.signals import StopRequests, stop_requests
from mhd_jax.engine.steps import Carry
from mhd_jax.runs.callbacks import Callback
from mhd_jax.training.groups import finite_params

CTRL_C = "Ctrl-C"
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
        watch.on_start([lane.view for lane in lanes], started_at)
        with stop_requests(terminates=lanes[0].folder is None) as requests:
            parts = _train(lanes, program, carry, watch, requests)
            _answer_the_late(requests, lanes)
        if not all(lane.failure for lane in lanes):
            status = "finished"
    except (InterruptedRun, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        watch.on_end(status)
    return [lane.failure or lane.finish(part) for lane, part in zip(lanes, parts, strict=True)]


def _train(
    lanes: Sequence[Lane],
    program: Program,
    carry: Carry,
    watch: Callback,
    requests: StopRequests,
) -> list[Carry]:
    """Trains to the end of the lanes' common plan, or until all have diverged or were stopped.

    Returns the carry of each run.
    """
    plan = lanes[0].plan
    started = time.perf_counter()
    program = program.fitted(carry)
    carry = jax.block_until_ready(program.advance(carry, 0))  # loads the program, takes no step
    compile_seconds = time.perf_counter() - started
    watch.on_compiled(compile_seconds)
    for lane, run in zip(lanes, program.runs, strict=True):
        lane.run, lane.runs_at_once = run, len(lanes)
        lane.compile_seconds = compile_seconds / len(lanes)

    step = int(carry.state.step)
    pace = Pace(plan.per_dispatch)
    if step == 0:
        _require_unstopped(lanes)
    elif step < plan.steps:  # a run that was killed when a callback had stopped it
        _stop_where_asked(lanes, program, carry)
    while step < plan.steps and not all(lane.has_ended for lane in lanes):
        num_steps = min(int(multihost.from_each(pace.steps())[0]), plan.next_stop(step) - step)
        started = time.perf_counter()
        carry = jax.block_until_ready(program.advance(carry, num_steps))
        elapsed = time.perf_counter() - started
        pace.observe(num_steps, elapsed)
        step += num_steps
        finite = _finite(carry.state, joined=len(lanes) > 1)
        parts = program.split((carry.sums, carry.tally, finite))
        for place, (lane, (sums, tally, finite)) in enumerate(zip(lanes, parts, strict=True)):
            if not lane.has_ended:
                lane.seconds += elapsed / len(lanes)
                lane.look_after(sums, tally, finite, step)
                if lane.failure is not None:
                    watch.on_failure(place)
        if all(lane.has_ended for lane in lanes):
            break
        evaluates = plan.evaluates_at(step)
        if evaluates:
            for lane, part in _going(lanes, program, carry):
                lane.record(part)
            carry = carry.reset()
        interrupted = bool(multihost.from_each(requests.received).any()) and step < plan.steps
        due = plan.saves_at(step) or interrupted
        # Parts of joint runs are copies, which only some dispatches need.
        going = _going(lanes, program, carry) if evaluates or due else []
        if due or (evaluates and lanes[0].host.keep_best):
            for lane, part in going:
                lane.save(step, part, due=due)
        # Watchers come last: an error that they raise loses no evaluation and no checkpoint.
        watch.on_steps(step, pace.rate)
        for lane, part in going if evaluates else ():
            _warn_of_collapse(lane)
            with lane.seen_at(part) as view:
                watch.on_evaluation(lane.history[-1], view)
        if step < plan.steps:
            _stop_where_asked(lanes, program, carry)
        if interrupted:
            _interrupt(lanes, going, requests, f"stopped at step {step} of {plan.steps}")
    return program.split(carry)


def _require_unstopped(lanes: Sequence[Lane]) -> None:
    """Raises `ConfigError` if a callback of the first process has stopped a run that is new."""

    def check() -> None:
        if any(lane.view.stopping is not None for lane in lanes):
            raise ConfigError(
                "a callback stops a run before its first step, when there is nothing to evaluate; "
                "stop it in on_steps or on_evaluation, or raise a ConfigError in check to refuse it."
            )

    multihost.first_does(check, otherwise="a callback of the first process stops a run too early.")


@functools.partial(jax.jit, static_argnames="joined")
def _finite(state: State, joined: bool) -> Array:
    """Returns which clients' models are finite, bool [K] or, of S joined runs, [S, K]."""

    def of(groups: tuple[GroupState, ...]) -> Array:
        return finite_params(dataclasses.replace(state, groups=groups))

    return jax.vmap(of)(state.groups) if joined else of(state.groups)


def _stop_where_asked(lanes: Sequence[Lane], program: Program, carry: Carry) -> None:
    """Stops the runs that a callback has stopped; the first process, which has them, decides."""
    asked = [
        not lane.has_ended and bool(multihost.from_each(lane.view.stopping is not None)[0])
        for lane in lanes
    ]
    if any(asked):
        for lane, part, is_asked in zip(lanes, program.split(carry), asked, strict=True):
            if is_asked:
                lane.stop(part, "a callback of the first process")


def _interrupt(
    lanes: Sequence[Lane],
    going: Sequence[tuple[Lane, Carry]],
    requests: StopRequests,
    where: str,
) -> None:
    """Ends runs at a step because of Ctrl-C: those with folders resume, others end for good."""
    folders = [lane.folder for lane in lanes if lane.folder is not None]  # of all or none
    if folders:
        for folder in folders:
            folder.wait()
        raise InterruptedRun(
            f"{where}; everything is saved in {listed(folders)}, and the same command resumes it"
        )
    _answer(requests, lanes)
    warn(
        f"{where} by {CTRL_C}: the result is of what there is; with a workdir the run could be "
        "resumed."
    )
    for lane, part in going:
        if not lane.has_ended:
            lane.stop(part, CTRL_C)


def _answer(requests: StopRequests, lanes: Sequence[Lane]) -> None:
    """Notes that Ctrl-C is answered by the results of what there is, for runs yet to begin."""
    requests.answered = True
    for lane in lanes:
        lane.interrupted = True


def _answer_the_late(requests: StopRequests, lanes: Sequence[Lane]) -> None:
    """Answers Ctrl-C that came too late to stop runs without folders, whose results are complete."""
    came = bool(multihost.from_each(requests.received).any())
    if came and not requests.answered and lanes[0].folder is None:
        _answer(requests, lanes)
        warn(f"{CTRL_C} came after the last step: the result is complete.")


def _going(lanes: Sequence[Lane], program: Program, carry: Carry) -> list[tuple[Lane, Carry]]:
    """Returns the lanes that take more steps, each with its run's carry."""
    parts = zip(lanes, program.split(carry), strict=True)
    return [(lane, part) for lane, part in parts if not lane.has_ended]


def _warn_of_collapse(lane: Lane) -> None:
    run, record = lane.run, lane.history[-1]
    entropy = record["train"].get("public_entropy")
    # Of fewer samples than classes the mean prediction says little about the others.
    enough = run.spec.public >= run.clients.num_classes
    if enough and entropy is not None and entropy < _COLLAPSE_ENTROPY:
        known = run.algorithm.hyperparameters
        lower = [name for name in ("nu_aux", "nu_naive", "num_targets") if name in known]
        warn(
            f"at step {record['step']} the clients answer nearly the same on all public samples "
            f"(entropy of the mean prediction {entropy:.2f} of its maximum): distillation has "
            f"collapsed. Lower {', '.join([*lower, 'or the learning rate'])}."
        )
