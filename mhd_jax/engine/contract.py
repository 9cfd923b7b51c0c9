"""Checks of what users' own algorithms return, before anything is trained.

An algorithm that breaks the contract gets a one-sentence error, instead of a failure inside the
loop that JAX compiles around it, or accuracies at chance. Only shapes and types are checked, on
abstract arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr

from mhd_jax.core.client_axis import Execution, current_execution, under
from mhd_jax.core.digests import traced
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import Algorithm, Batch, Metrics, PyTree, State
from mhd_jax.core.warned import line_of


def shapes_of_step(
    algorithm: Algorithm, state: Any, batch: Batch, graph: Any
) -> tuple[State, Metrics]:
    """Returns the shapes of the state and of the metrics after a step.

    Raises:
      ConfigError: `init` or `train_step` does not return what `mhd_jax.Algorithm` documents.
    """
    name = algorithm.name
    if not isinstance(state, State):
        raise ConfigError(f"init of {name} must return a mhd_jax State, not {_kind(state)}.")
    try:
        found: Any = traced_step(algorithm.train_step, state, batch, graph)[1]
    except jax.errors.JAXTypeError as error:
        raise ConfigError(
            f"train_step of {name} asks for the value of an array that has none yet, since the step is traced "
            f"({line_of(error)}); choose by jnp.where instead of if, and compute by jax.numpy."
        ) from error
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Mapping):
        raise ConfigError(
            f"train_step of {name} must return a state and a dictionary of metrics, not "
            f"{_kind(found)}."
        )
    after, given = found
    _require_alike(name, state, after)
    if not {"loss", "messages"} <= given.keys():
        raise ConfigError(
            f"the metrics of {name} must hold 'loss' and 'messages', but are {', '.join(given)}."
        )
    metrics = Metrics.of(given)
    declared = algorithm.message(state, batch, state.groups[0])
    messages: Any = metrics.messages
    if not isinstance(messages, Mapping) or messages.keys() != declared.keys():
        raise ConfigError(
            f"the metrics of {name} must count messages by kind, in a dictionary "
            f"of the kinds that its message() declares ({', '.join(declared) or 'none'})."
        )
    by_client = {(state.num_clients,)}
    for kind, count in messages.items():
        whole = jnp.issubdtype(count.dtype, jnp.integer)
        if not whole or count.shape not in by_client | {(state.num_clients,) * 2}:
            raise ConfigError(
                f"the metrics of {name} must count messages of {kind} in integers [K, K], or [K] "
                f"with a server, here K = {state.num_clients}, not {_shown(count)}."
            )
    for metric, value in metrics.numbers().items():
        if getattr(value, "shape", None) not in by_client | {()}:
            raise ConfigError(
                f"the metric {metric} of {name} must be one number, or one for each of the "
                f"{state.num_clients} clients, not {_shown(value)}."
            )
    return after, metrics


def traced_step(
    train_step: Callable[..., Any], state: State, batch: Batch, graph: Any
) -> tuple[ClosedJaxpr, Any]:
    """Returns the program of a step as one device computes it, and its results' shapes.

    It is cached, as a run's start needs it twice: for the contract, and for its digest.
    """
    now = current_execution()
    execution = Execution(most_neighbours=now.most_neighbours, platform=now.platform)
    leaves, structure = jax.tree.flatten((state, batch, graph))
    types = tuple((a.shape, a.dtype, a.weak_type) for a in map(jax.typeof, leaves))
    return _traced_step(train_step, execution, jnp.result_type(float), structure, types)


@functools.lru_cache(maxsize=16)
def _traced_step(
    train_step: Callable[..., Any],
    execution: Execution,
    floats: Any,  # of 32 bits or 64: the mode in which it is traced
    structure: Any,
    types: tuple[tuple[tuple[int, ...], Any, bool], ...],
) -> tuple[ClosedJaxpr, Any]:
    del floats
    leaves = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in types]
    with under(execution):
        return traced(train_step, *jax.tree.unflatten(structure, leaves))


def require_predictions(algorithm: Algorithm, state: State, samples: PyTree, outputs: int) -> None:
    """Raises `ConfigError` unless `predict` returns logits [K, N, H, C] for samples like these."""
    logits: Any = jax.eval_shape(algorithm.predict, state, samples)
    count = jax.tree.leaves(samples)[0].shape[0]
    expected = (state.num_clients, count, algorithm.num_heads, outputs)
    if getattr(logits, "shape", None) != expected:
        raise ConfigError(
            f"predict of {algorithm.name} must return logits [K, N, H, C], here {list(expected)}, "
            f"not {_shown(logits)}."
        )


def _require_alike(name: str, before: State, after: Any) -> None:
    """Raises `ConfigError` unless a step keeps the state's structure, shapes and types."""
    structures: list[Any] = [jax.tree.structure(state) for state in (before, after)]
    if structures[0] != structures[1]:
        raise ConfigError(
            f"train_step of {name} must return a state of the same structure as it takes; keep the "
            "fields of groups and extra as init made them, and change them by dataclasses.replace."
        )
    pairs = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ConfigError(
                f"train_step of {name} must keep the shape and type of state"
                f"{jax.tree_util.keystr(path)}, which is {_shown(old)} before a step and "
                f"{_shown(new)} after it."
            )


def _shown(value: Any) -> str:
    if not isinstance(value, Array | jax.ShapeDtypeStruct):
        return _kind(value)
    return f"{value.dtype} {list(value.shape)}"


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"
