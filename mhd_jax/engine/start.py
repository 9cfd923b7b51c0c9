"""The start of a run: the clients at step 0, computed by one program for all runs of one shape.

What differs between runs, such as the seed, the split of the data and the arrays from which clients
start, are arguments of the program, not constants: a second seed compiles nothing, and another
process finds the program in the persistent cache.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from mhd_jax.clients import Clients
from mhd_jax.core.client_axis import AT_ONCE, Execution, under
from mhd_jax.core.digests import form_digest
from mhd_jax.core.types import Algorithm, Metrics, Presence, PyTree
from mhd_jax.data.batching import BatchSpec, Data, draw_batch
from mhd_jax.engine import contract
from mhd_jax.engine.faults import Tally
from mhd_jax.engine.steps import Carry, carry_shardings

How = tuple[Algorithm, BatchSpec, Execution, bool, bool]  # see `initial_carry`


def initial_carry(
    algorithm: Algorithm,
    clients: Clients,
    data: Data,
    spec: BatchSpec,
    seed: int,
    execution: Execution = AT_ONCE,
    *,
    may_fail: bool = False,
    quarantine: bool = False,
    abstract: bool = False,
) -> Carry:
    """Returns the carry of a new run or, if `abstract`, only its shapes, types and shardings.

    For these, `data` may be shapes only. `may_fail` is whether clients or links may fail,
    `quarantine` whether clients that diverge are removed instead of stopping the run.
    """
    arguments = (jax.random.key(seed), data, [group.start for group in clients.groups])
    how = (algorithm, spec, execution, may_fail, quarantine)
    traced, shapes = traced_start(clients, how, arguments)
    places = carry_shardings(shapes, execution)
    if abstract:
        return jax.tree.map(
            lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, places
        )
    program = _compiled(
        _Program(
            form_digest(traced), execution.platform, tuple(jax.tree.leaves(places)), traced.jaxpr
        )
    )
    arrays = program(traced.consts, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), arrays)


# By clients, and for as long as they live: a run is traced when it is checked and when it starts.
_traces: weakref.WeakKeyDictionary[Clients, dict[Any, Any]] = weakref.WeakKeyDictionary()


def traced_start(clients: Clients, how: How, arguments: PyTree) -> tuple[ClosedJaxpr, Carry]:
    """Returns the traced program of `arguments`, arrays or their shapes, and its results' shapes."""
    leaves, structure = jax.tree.flatten(arguments)
    known = _traces.setdefault(clients, {})
    key = (*how, structure, tuple(jax.typeof(leaf) for leaf in leaves))
    if key not in known:
        known[key] = jax.make_jaxpr(_start(clients, *how), return_shape=True)(*arguments)
    return known[key]


def _start(
    clients: Clients,
    algorithm: Algorithm,
    spec: BatchSpec,
    execution: Execution,
    may_fail: bool,
    quarantine: bool,
) -> Callable[[Array, Data, list[PyTree]], Carry]:
    """Returns the function of a key, data and arrays to start from that is the start of a run."""
    tally = None
    if may_fail or quarantine:
        tally = Tally.start(clients.num_clients, quarantine=quarantine)

    def init(key: Array, data: Data, starts: list[PyTree]) -> Carry:
        who = clients.with_starts(starts)
        with under(execution):
            ids = jnp.arange(clients.num_clients, dtype=jnp.int32)
            batch = draw_batch(data, key, ids, jnp.zeros((), jnp.int32), spec)
            if tally is not None:
                everyone = jnp.ones(clients.num_clients, bool)
                batch = dataclasses.replace(batch, presence=Presence(everyone, everyone))
            state = algorithm.init(key, who, batch)
            graph = jax.ShapeDtypeStruct((clients.num_clients,) * 2, jnp.float32)
            _, metrics = contract.shapes_of_step(algorithm, state, batch, graph)
        nothing: Metrics = jax.tree.map(jnp.zeros_like, metrics)
        count = jnp.zeros((), jnp.int32)
        sums = nothing.numbers()
        return Carry(state, sums, count, nothing.messages, tally, nothing.diagnostics)

    return init


@dataclasses.dataclass(frozen=True)
class _Program:
    """A traced program; two are equal if they differ in nothing but their constants' values.

    Attributes:
      form: the digest of the program without the values of its constants.
      platform: the platform for which it is compiled.
      places: the shardings of its results.
      jaxpr: the program without its constants, which may be as large as a data set.
    """

    form: str
    platform: str | None
    places: tuple[Any, ...]
    jaxpr: Jaxpr = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _compiled(program: _Program) -> Callable[[list[Any], list[Any]], list[Array]]:
    """Returns a program, to be compiled when first called, as a function of its constants too."""
    # The many random draws that initialise a model run only once, but XLA's CPU backend optimises
    # them for long (ResNet-20: 12 s against 2 s). A level that XLA_FLAGS sets is respected.
    level, options = "xla_backend_optimization_level", {}
    if program.platform == "cpu" and level not in os.environ.get("XLA_FLAGS", ""):
        options = {level: 1}

    def start(constants: list[Any], arguments: list[Any]) -> list[Array]:
        return jaxpr_as_fun(ClosedJaxpr(program.jaxpr, constants))(*arguments)

    return jax.jit(start, out_shardings=list(program.places), compiler_options=options)
