"""What users' own algorithms and target selections must return, found out before anything is trained.

What breaks its contract is told so in a sentence, not by the loop that JAX compiles around it, nor by
accuracies at chance. Shapes are looked at when a function is traced, numbers on made arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.digests import is_pure
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.types import Algorithm, Batch, Metrics, PyTree, State
from mhd_jax.exchange.selection import Candidates, TargetSelection


def shapes_of_step(
    algorithm: Algorithm, state: Any, batch: Batch, graph: Any
) -> tuple[State, Metrics]:
    """Shapes of the state and the metrics after a step.

    Raises:
      ConfigError: `train_step` does not return what `mhd_jax.Algorithm` says.
    """
    name = algorithm.name
    if not isinstance(state, State):
        raise ConfigError(f"init of {name} must return a mhd_jax State, not {_kind(state)}.")
    found: Any = jax.eval_shape(algorithm.train_step, state, batch, graph)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        raise ConfigError(
            f"train_step of {name} must return a state and a dictionary of metrics, not "
            f"{_kind(found)}."
        )
    after, metrics = found
    _require_alike(name, state, after)
    if not {"loss", "messages"} <= metrics.keys():
        raise ConfigError(
            f"the metrics of {name} must hold 'loss' and 'messages', but are {', '.join(metrics)}."
        )
    declared = algorithm.message(state, batch, state.groups[0])
    messages = metrics["messages"]
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
    for metric, value in metrics.items():
        if metric in ("messages", "diagnostics"):
            continue
        if getattr(value, "shape", None) not in by_client | {()}:
            raise ConfigError(
                f"the metric {metric} of {name} must be one number, or one for each of the "
                f"{state.num_clients} clients, not {_shown(value)}."
            )
    return after, metrics


def require_predictions(algorithm: Algorithm, state: State, samples: PyTree, classes: int) -> None:
    """Raises `ConfigError` unless `predict` returns logits [K, N, H, C] on these shapes of samples."""
    logits: Any = jax.eval_shape(algorithm.predict, state, samples)
    count = jax.tree.leaves(samples)[0].shape[0]
    expected = (state.num_clients, count, algorithm.num_heads, classes)
    if getattr(logits, "shape", None) != expected:
        raise ConfigError(
            f"predict of {algorithm.name} must return logits [K, N, H, C], here {list(expected)}, "
            f"not {_shown(logits)}."
        )


def require_pure(what: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Raises `ConfigError` where a user's function is another one each time it is traced."""
    if not is_pure(function, *arguments):
        raise ConfigError(
            f"{what} is another one each time it is called, and what it drew would be frozen for the "
            "whole run: draw with jax.random from the keys that it is given, not with NumPy or "
            "Python."
        )


def checked(rule: TargetSelection) -> TargetSelection:
    """A user's target selection, which is tried on made candidates of every shape that it meets.

    Raises:
      ConfigError: (when traced) it fails, draws with NumPy, or does not return probabilities
        [P, R, C], finite ones even where there is no candidate.
    """

    def select(key: Array, candidates: Candidates) -> Array:
        embeddings = candidates.embeddings
        width = None if embeddings is None else embeddings.shape[-1]
        with jax.ensure_compile_time_eval():  # now, on numbers, though this is traced
            _try(rule, candidates.logits.shape, width)
        return rule(key, candidates)

    return select


@functools.lru_cache(maxsize=64)
def _try(rule: TargetSelection, shape: tuple[int, ...], width: int | None) -> None:
    """Raises `ConfigError` unless a rule makes targets of candidates with such logits [N, P, R, C]."""
    name = f"the target selection {getattr(rule, '__name__', type(rule).__name__)}"
    last = jnp.arange(shape[0]) == shape[0] - 1
    for number, valid in enumerate((last | True, last | True, last, last & False)):
        key = jax.random.fold_in(jax.random.key(0), number)
        candidates = _made_candidates(key, shape, width, valid, spread=3.0**number)
        try:
            jax.eval_shape(rule, key, candidates)  # as the step will call it
            # One operation after the other: a compiler may simplify what is not a number away.
            targets = jnp.asarray(rule(key, candidates))
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's function raises
            raise ConfigError(
                f"{name} fails for candidates with logits {list(shape)} ({in_a_line(error)}"
                f"); it must be a function (key, candidates) of jax.numpy."
            ) from error
        _require_probabilities(name, targets, candidates)
    require_pure(name, rule, key, candidates)


def _made_candidates(
    key: Array, shape: tuple[int, ...], width: int | None, valid: Array, spread: float
) -> Candidates:
    logits = jnp.where(valid[:, None, None, None], spread * jax.random.normal(key, shape), 0)
    embeddings = None if width is None else jax.random.normal(key, (*shape[:2], width))
    return Candidates(logits, jax.nn.softmax(logits), embeddings, valid)


def _require_probabilities(name: str, targets: Array, candidates: Candidates) -> None:
    expected, count = candidates.logits.shape[1:], int(candidates.valid.sum())
    if targets.shape != expected:
        raise ConfigError(
            f"{name} must return probabilities [P, R, C], here {list(expected)}, but returns shape "
            f"{list(targets.shape)}; the first axis of the candidates' [N, P, R, C] is to go, by a "
            "choice or a mean."
        )
    if not jnp.issubdtype(targets.dtype, jnp.floating) or not jnp.isfinite(targets).all():
        raise ConfigError(
            f"{name} must return finite floating-point numbers, also where only {count} of "
            f"{len(candidates.valid)} candidates are valid; divide by jnp.maximum(count, 1), and "
            "leave out those that candidates.valid does."
        )
    total, least = targets.sum(axis=-1), float(targets.min())
    if count and not (least >= -1e-3 and jnp.allclose(total, 1, atol=1e-2)):
        raise ConfigError(
            f"{name} must return probabilities, at least 0 and summing to 1 over the classes, but "
            f"its sums span {float(total.min()):.3g} … {float(total.max()):.3g} and its least number "
            f"is {least:.3g}; return candidates.probabilities, means of them, or a softmax."
        )


def _require_alike(name: str, before: State, after: Any) -> None:
    """Raises `ConfigError` unless the state after a step looks like the one before it."""
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
