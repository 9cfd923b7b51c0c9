"""What algorithm factories share: their decorator, the last step, checks of hyperparameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.types import Algorithm
from mhd_jax.core.validation import require_kind
from mhd_jax.training.groups import predict


def factory(build: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    """Makes a function of hyperparameters the factory of an algorithm, named like the function.

    The factory records name and hyperparameters in the `Algorithm`, and returns the same object for
    equal arguments, so that runs that differ only in data, graph or seed share a compiled program.
    """
    signature = inspect.signature(build)

    def build_named(kinds: Any, **arguments: Any) -> Algorithm:
        del kinds  # which the cache keeps apart
        algorithm = build(**arguments)
        return dataclasses.replace(
            algorithm, name=build.__name__, hyperparameters=arguments, factory=wrapped
        )

    cached = functools.cache(build_named)

    @functools.wraps(build)
    def wrapped(*args: Any, **kwargs: Any) -> Algorithm:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{build.__name__}: {error}; it takes {', '.join(signature.parameters) or 'nothing'}."
            ) from error
        bound.apply_defaults()
        arguments = {name: _frozen(value) for name, value in bound.arguments.items()}
        for name, value in arguments.items():
            require_kind(name, signature.parameters[name].annotation, value)
        kinds = tuple(map(_kinds, arguments.values()))
        try:
            return cached(kinds, **arguments)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return build_named(kinds, **arguments)

    return wrapped


def _frozen(value: Any) -> Any:
    """Converts arrays and lists to nested tuples, which are hashable and compare by value."""
    if isinstance(value, np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _kinds(value: Any) -> Any:
    """Returns the types inside of nested tuples, since ((0, 1), (1, 0)) equals the same in floats."""
    if not isinstance(value, tuple):
        return None
    return tuple(_kinds(each) if isinstance(each, tuple) else type(each) for each in value)


def algorithm_of(parts: Any, **declared: Any) -> Algorithm:
    """Returns the algorithm whose functions are methods of `parts`, see `Algorithm.parts`.

    Args:
      parts: a frozen dataclass with methods `init`, `train_step` and `message`.
      **declared: other attributes of the `Algorithm`.
    """
    return Algorithm(
        init=parts.init,
        train_step=parts.train_step,
        predict=predict,
        message=parts.message,
        parts=parts,
        **declared,
    )


def hyperparameters(build: Callable[..., Algorithm]) -> dict[str, object]:
    """Returns the names and default values of a factory's hyperparameters."""
    return {
        name: parameter.default for name, parameter in inspect.signature(build).parameters.items()
    }


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_at_least(least: float, **values: Any) -> None:
    """Raises `ConfigError` for hyperparameters below `least`."""
    for name, value in values.items():
        require(value >= least, f"{name} must be at least {least}, not {value}.")


def require_label_smoothing(label_smoothing: float) -> None:
    """Raises `ConfigError` for a label smoothing outside [0, 1)."""
    require(0 <= label_smoothing < 1, f"label_smoothing must be in [0, 1), not {label_smoothing}.")
