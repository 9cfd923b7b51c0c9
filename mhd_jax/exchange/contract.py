"""Checks of users' own target selections on synthetic candidates, before training begins."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from mhd_jax.core.digests import require_pure
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.tasks import Task
from mhd_jax.core.validation import require_hashable
from mhd_jax.core.warned import warn
from mhd_jax.exchange.selection import TARGET_SELECTIONS, Candidates, TargetSelection


def selection(given: str | TargetSelection) -> TargetSelection:
    """A target selection of the library by its name, or a user's own, which is `checked`.

    Raises:
      ConfigError: an unknown name, or a selection that cannot be hashed.
    """
    if callable(given):
        require_hashable(_name_of(given), given)
        return checked(given)
    if not isinstance(given, str) or given not in TARGET_SELECTIONS:
        raise ConfigError(
            f"unknown target_selection {given!r}; choose one of {', '.join(TARGET_SELECTIONS)}, or "
            "give a function."
        )
    return TARGET_SELECTIONS[given]


@functools.lru_cache(maxsize=64)  # one object per rule: runs that have it share a program
def checked(rule: TargetSelection) -> TargetSelection:
    """Returns a user's target selection with a check, made once for every shape of candidates.

    Raises:
      ConfigError: (when traced) the selection fails, draws with NumPy, or does not return
        probabilities [P, R, C], which must be finite even if there is no candidate.
    """

    def select(key: Array, candidates: Candidates) -> Array:
        embeddings = candidates.embeddings
        width = None if embeddings is None else embeddings.shape[-1]
        has_density = candidates.density is not None
        calibrated = candidates.temperatures is not None
        with jax.ensure_compile_time_eval():  # evaluates the check while the step is traced
            kinds: Any = (width, has_density, calibrated, candidates.task)
            _try(rule, candidates.logits.shape, *kinds)
        return rule(key, candidates)

    return select


@functools.lru_cache(maxsize=64)
def _try(
    rule: TargetSelection,
    shape: tuple[int, ...],
    width: int | None,
    has_density: bool,
    calibrated: bool,
    task: Task,
) -> None:
    """Raises `ConfigError` unless a selection makes valid targets from synthetic candidates.

    Args:
      rule: the selection.
      shape: the shape of the candidates' logits, [N, P, R, C].
      width: the width of the candidates' embeddings; None if they have none.
      has_density: whether they have density ratios.
      calibrated: whether they have temperatures.
      task: what they predict.
    """
    name = _name_of(rule)
    last = jnp.arange(shape[0]) == shape[0] - 1
    for number, valid in enumerate((last | True, last | True, last, last & False)):
        key = jax.random.fold_in(jax.random.key(0), number)
        kinds = (width, has_density, calibrated, task)
        candidates = _made_candidates(key, shape, *kinds, valid, spread=3.0**number)
        try:
            jax.eval_shape(rule, key, candidates)  # as the step will call it
            # Without jit, because a compiler may simplify operations so that a NaN disappears.
            targets = jnp.asarray(rule(key, candidates))
        except ConfigError:
            raise
        except Exception as error:  # users' functions may raise any exception
            raise ConfigError(
                f"{name} fails for candidates with logits {list(shape)} ({in_a_line(error)}"
                f"); it must be a function (key, candidates) of jax.numpy."
            ) from error
        _require_targets(name, targets, candidates)
    require_pure(name, rule, key, candidates)
    alone = jnp.arange(shape[0]) == 0  # which is a client's own head, where that is a candidate
    _warn_of_invalid_ones(name, rule, _made_candidates(key, shape, *kinds, alone, spread=3.0))


def _name_of(rule: TargetSelection) -> str:
    return f"the target selection {getattr(rule, '__name__', type(rule).__name__)}"


def _warn_of_invalid_ones(name: str, rule: TargetSelection, candidates: Candidates) -> None:
    """Warns if targets depend on candidates that are not valid, which a complete graph never has."""
    key, valid = jax.random.key(1), candidates.valid[:, None, None, None]
    junk = candidates.task.predictions(jax.random.normal(key, candidates.logits.shape))
    probabilities = jnp.where(valid, candidates.probabilities, junk)
    other = dataclasses.replace(candidates, probabilities=probabilities)
    if not jnp.allclose(rule(key, candidates), rule(key, other), rtol=1e-3, atol=1e-4):
        warn(
            f"{name} counts what candidates say that are not valid, as where a client has fewer neighbours "
            "than others; give them no weight, by candidates.valid [N]."
        )


def _made_candidates(
    key: Array,
    shape: tuple[int, ...],
    width: int | None,
    has_density: bool,
    calibrated: bool,
    task: Task,
    valid: Array,
    spread: float,
) -> Candidates:
    num_candidates, num_samples, num_ranks, _ = shape
    exist = valid[:, None, None, None]
    logits = jnp.where(exist, spread * jax.random.normal(key, shape), 0)
    embeddings = density = counts = None
    if width is not None:
        embeddings = jax.random.normal(key, (num_candidates, num_samples, width))
    if has_density:
        density = jnp.where(exist[..., 0], logits[..., 0], 0)
        counts = jnp.where(exist[:, 0, 0], jnp.ones((1, num_ranks)), 0)
    return Candidates(
        *(logits, task.predictions(logits), embeddings, valid, density, counts),
        clients=jnp.arange(num_candidates, dtype=jnp.int32),
        client=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        temperatures=jnp.ones((num_candidates, num_ranks)) if calibrated else None,
        task=task,
    )


def _require_targets(name: str, targets: Array, candidates: Candidates) -> None:
    """Raises `ConfigError` unless targets are probabilities, or in a regression numbers."""
    expected, count = candidates.logits.shape[1:], int(candidates.valid.sum())
    has_classes = candidates.task.has_classes
    if targets.shape != expected:
        what = "probabilities" if has_classes else "numbers"
        raise ConfigError(
            f"{name} must return {what} [P, R, C], here {list(expected)}, but returns shape "
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
    if has_classes and count and not (least >= -1e-3 and jnp.allclose(total, 1, atol=1e-2)):
        raise ConfigError(
            f"{name} must return probabilities, at least 0 and summing to 1 over the classes, but "
            f"its sums span {float(total.min()):.3g} … {float(total.max()):.3g} and its least number "
            f"is {least:.3g}; return candidates.probabilities, means of them, or a softmax."
        )
