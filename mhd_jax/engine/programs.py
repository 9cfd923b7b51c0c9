"""Digests of a run's compiled programs, which detect that code changed since the run started.

A program is traced as for one device, without padding clients, on the run's shapes: its digest
does not depend on the devices, and covers a user's own model, algorithm or rule like the
library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.clients import Clients
from mhd_jax.core.client_axis import Execution, under
from mhd_jax.core.digests import jaxpr_digest, program_digest
from mhd_jax.core.types import Algorithm, Batch, Presence, PyTree, State
from mhd_jax.data.batching import BatchSpec, prepared
from mhd_jax.engine import contract
from mhd_jax.models import ClientModel
from mhd_jax.runs.environment import EFFECTS
from mhd_jax.training.metrics import correct_by_class


def digests(
    algorithm: Algorithm,
    clients: Clients,
    spec: BatchSpec,
    *,
    has_presence: bool,
    execution: Execution,
) -> dict[str, str]:
    """Returns digests of a run's programs by the programs' names.

    Args:
      algorithm: the run's algorithm.
      clients: the clients that train, with their optimizers and without padding.
      spec: the specification of a step's batch.
      has_presence: whether batches carry a `Presence`, as in runs with faults.
      execution: the run's; only its platform and its bound on neighbours matter.
    """
    ids = jax.ShapeDtypeStruct((clients.num_clients,), jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    graph = jax.ShapeDtypeStruct((clients.num_clients,) * 2, jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    stored = _stored(clients, spec)
    execution = Execution(most_neighbours=execution.most_neighbours, platform=execution.platform)

    def initial(key: Array, batch: Batch) -> State:
        return algorithm.init(key, clients, batch)

    with under(execution):
        batch = jax.eval_shape(functools.partial(_to_batch, spec), stored, key, ids, step)
        if has_presence:
            everyone: Any = jax.ShapeDtypeStruct((clients.num_clients,), bool)
            batch = batch.replace(presence=Presence(everyone, everyone))
        init, state = jax.make_jaxpr(initial, return_shape=True)(key, batch)
        step_program, _ = contract.traced_step(algorithm.train_step, state, batch, graph)
    found = {"preparation of samples": _digest(execution, _to_batch, spec)(stored, key, ids, step)}
    for one, group in zip(clients.groups, state.groups, strict=True):
        what = f"model {one.described}"
        own = _of_one((group.params, group.stats, batch.inputs))
        found[what] = found.get(what, "") + _digest(execution, _pass, group.model)(*own, key)
    samples = _rows(clients.data.inputs, spec.private)
    labels, mask = (jax.ShapeDtypeStruct((spec.private,), kind) for kind in (jnp.int32, bool))
    targets = _rows(clients.data.targets, spec.private)
    evaluation = _digest(execution, _correct, algorithm.predict, spec, clients.num_classes)
    effects = (
        jaxpr_digest(init),
        jaxpr_digest(step_program),
        evaluation(state, samples, labels, mask, targets),
    )
    return found | dict(zip(EFFECTS, effects, strict=True))


def _stored(clients: Clients, spec: BatchSpec) -> Batch:
    """Returns the shapes of a batch of stored samples."""
    num_clients = clients.num_clients
    public = (num_clients, spec.public) if spec.independent_public else (spec.public,)
    shape = (num_clients, spec.private)
    return Batch(
        inputs=_rows(clients.data.inputs, *shape),
        labels=_rows(clients.data.targets, *shape),
        mask=jax.ShapeDtypeStruct(shape, jnp.float32),  # type: ignore[arg-type]
        public_inputs=_rows(clients.public_inputs, *public),
        public_indices=jax.ShapeDtypeStruct(public, jnp.int32),  # type: ignore[arg-type]
    )


def _rows(inputs: PyTree, *counts: int) -> PyTree:
    """Returns the shapes of `inputs` with the sample axis replaced by axes of sizes `counts`."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*counts, *a.shape[1:]), a.dtype), inputs)


def _of_one(tree: PyTree) -> PyTree:
    """Returns the shapes of `tree` without its client axis."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


# The programs: static arguments, which are compiled in, come first; arrays follow.


def _to_batch(spec: BatchSpec, stored: Batch, key: Array, ids: Array, step: Array) -> Batch:
    return prepared(stored, key, ids, step, spec)


def _pass(model: ClientModel, params: PyTree, stats: PyTree, inputs: PyTree, key: Array) -> Any:
    return model.apply(params, stats, inputs, key)


def _correct(
    predict: Callable[[State, PyTree], Array],
    spec: BatchSpec,
    num_classes: int,
    state: State,
    inputs: PyTree,
    labels: Array,
    mask: Array,
    targets: Array,
) -> Array:
    logits = predict(state, spec.preparation(inputs))
    return correct_by_class(logits, labels, mask, num_classes, state.task, targets)


def _digest(execution: Execution, function: Callable[..., Any], *static: Any) -> Any:
    """Returns a function from argument shapes to the program's digest, cached by its arguments."""

    def of(*arguments: Any) -> str:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        return _digest_of_shapes(execution, function, static, structure, shapes)

    return of


@functools.lru_cache(maxsize=256)
def _digest_of_shapes(
    execution: Execution,
    function: Callable[..., Any],
    static: tuple[Any, ...],
    structure: Any,
    shapes: tuple[tuple[tuple[int, ...], Any], ...],
) -> str:
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    with under(execution):
        program = functools.partial(function, *static)
        return program_digest(program, *jax.tree.unflatten(structure, leaves))
