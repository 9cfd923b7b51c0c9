"""Momentum in the states of optax's optimizers: found, changed and emptied, parameter by parameter.

A state keeps momentum in a buffer "trace", as SGD does, or in moments "mu" and "nu", as Adam and its
kind do. `optax.masked` and `optax.partition` have a state for a part of the parameters; in its arrays
the places of the other parameters are empty (`optax.MaskedNode`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.trees import scaled
from mhd_jax.core.types import PyTree

_BUFFER, _MOMENTS = ("trace",), ("mu", "nu")
_ACCUMULATING = (optax.MultiStepsState, optax.ApplyEvery)


def require_own_momentum(opt_state: PyTree, params: PyTree) -> None:
    """Raises `ConfigError` unless it is clear which momentum is which parameter's.

    A parameter may have none, as one that is frozen. All others have buffers, at the learning rate
    that the state tells, or all have moments.

    Args:
      opt_state: the state of the optimizer of `params`.
      params: arrays, or their shapes.
    """
    if _nodes(opt_state, lambda node: isinstance(node, _ACCUMULATING)):
        raise ConfigError(
            "quasi-global momentum follows every step, but this optimizer accumulates gradients over "
            "several (optax.MultiSteps, optax.apply_every); choose a larger batch_size instead."
        )
    found = [(_kept_by(state), state, rates) for state, rates in _states(opt_state)]
    if not found or any(
        names not in (_BUFFER, _MOMENTS) or (names == _BUFFER and len(rates) != 1)
        for names, _, rates in found
    ):
        raise ConfigError(
            "quasi-global momentum needs an optimizer whose state tells its momentum and its "
            "learning rate: mhd_jax.optim.SGD with momentum above 0 (--momentum=0.9), optax.adam and "
            "its kind, or optax.inject_hyperparams(optax.sgd)(learning_rate=..., momentum=...)."
        )
    count = jax.tree.map(lambda _: 0, params)
    are_like = all(_is_like(getattr(s, name), params) for names, s, _ in found for name in names)
    for names, state, _ in found if are_like else ():
        more = jax.tree.map(lambda n: n + 1, count)
        count = _in_places(getattr(state, names[0]), more, count)
    is_one_kind = len({names for names, *_ in found}) == 1
    if not (are_like and is_one_kind and max(jax.tree.leaves(count)) == 1):
        raise ConfigError(
            "quasi-global momentum needs one momentum of each parameter, of the parameter's shape: "
            "several optimizers (optax.partition, optax.masked) must be of different parameters, and "
            "all of SGD's kind or all of Adam's."
        )


def has_moments(opt_state: PyTree) -> bool:
    """Returns whether an optimizer's state keeps the two moments of Adam and its kind."""
    return any(_kept_by(state) == _MOMENTS for state, _ in _states(opt_state))


def owned(opt_state: PyTree, moves: PyTree) -> PyTree:
    """Returns moves of parameters, with 0 in place of those that have no momentum."""
    own = jax.tree.map(jnp.zeros_like, moves)
    for state, _ in _states(opt_state):
        own = _in_places(getattr(state, _kept_by(state)[0]), moves, own)
    return own


def over_rates(opt_state: PyTree, moves: PyTree) -> PyTree:
    """Returns moves of parameters divided by η of the last step; before the first step, of the first.

    Each buffer has its own η. In place of moves of parameters without momentum is 0.
    """
    divided = jax.tree.map(jnp.zeros_like, moves)
    for state, (rate,) in _states(opt_state):
        divided = _in_places(state.trace, scaled(moves, 1 / rate), divided)
    return divided


def change(opt_state: PyTree, name: str, new: Callable[[Any, Any], Any], tree: PyTree) -> PyTree:
    """Returns an optimizer's state with its momentum changed, array by array.

    Args:
      opt_state: the state.
      name: "trace", "mu" or "nu".
      new: maps an array of the momentum and that of `tree` to the new one.
      tree: a tree like the parameters.
    """

    def changed(state: Any) -> Any:
        momentum = getattr(state, name)
        entries = _in_places(momentum, tree, momentum)
        arrays = jax.tree.map(lambda m, entry: new(m, entry).astype(m.dtype), momentum, entries)
        return state._replace(**{name: arrays})

    return _map_states(changed, opt_state)


def emptied(opt_state: PyTree, empty: Callable[[Any], Any]) -> PyTree:
    """Returns an optimizer's state with `empty` applied to its momentum and its moments, if any.

    It is also applied to the count of steps by which moments are corrected for their start at 0.
    """

    def changed(state: Any) -> Any:
        kept = _kept_by(state)
        counted = ("count",) if kept == _MOMENTS and hasattr(state, "count") else ()
        arrays = {name: getattr(state, name) for name in (*kept, *counted)}
        return state._replace(**{n: jax.tree.map(empty, a) for n, a in arrays.items()})

    return _map_states(changed, opt_state)


def _kept_by(node: Any) -> tuple[str, ...]:
    """Returns the names of a state's arrays of momentum."""
    fields = getattr(node, "_fields", ())
    return tuple(name for name in (*_BUFFER, *_MOMENTS) if name in fields)


def _keeps(node: Any) -> bool:
    return bool(_kept_by(node))


def _map_states(f: Callable[[Any], Any], opt_state: PyTree) -> PyTree:
    """Returns an optimizer's state with `f` applied to each state that keeps momentum."""
    return jax.tree.map(lambda node: f(node) if _keeps(node) else node, opt_state, is_leaf=_keeps)


def _states(opt_state: PyTree, rates: tuple = ()) -> list[tuple[Any, tuple]]:
    """Returns the states that keep momentum, each with the learning rates of its parameters.

    A rate in the state of a part of the parameters (`optax.MaskedState`) is of this part alone.
    """

    def is_whole(node: Any) -> bool:
        return _keeps(node) or isinstance(node, optax.MaskedState)

    nodes = jax.tree.leaves_with_path(opt_state, is_leaf=is_whole)
    rates += tuple(node for path, node in nodes if path and _name(path[-1]) == "learning_rate")
    found = []
    for _, node in nodes:
        if isinstance(node, optax.MaskedState):
            found += _states(node.inner_state, rates)
        elif _keeps(node):
            found.append((node, rates))
    return found


def _name(entry: Any) -> Any:
    return getattr(entry, "name", getattr(entry, "key", None))


def _nodes(tree: PyTree, is_wanted: Callable[[Any], bool]) -> list[Any]:
    return [node for node in jax.tree.leaves(tree, is_leaf=is_wanted) if is_wanted(node)]


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _is_like(momentum: PyTree, params: PyTree) -> bool:
    """Returns whether momentum is of the parameters' shapes in all places that it has."""

    def is_like(m: Any, p: Any) -> bool:
        return _is_masked(m) or m.shape == getattr(p, "shape", None)

    try:
        shapes = jax.tree.map(is_like, momentum, params, is_leaf=_is_masked)
    except ValueError:  # trees of unlike structure
        return False
    return all(jax.tree.leaves(shapes))


def _in_places(momentum: PyTree, here: PyTree, elsewhere: PyTree) -> PyTree:
    """Returns a tree of `here` where a momentum has places, and of `elsewhere` where it has none."""
    return jax.tree.map(
        lambda m, a, b: b if _is_masked(m) else a, momentum, here, elsewhere, is_leaf=_is_masked
    )
