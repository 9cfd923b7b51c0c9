"""Checks of the types of settings, made before anything computes with them.

Records and factories declare the types of their settings by annotations, and check the ranges of
their values themselves.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeGuard

import numpy as np

from mhd_jax.core.errors import ConfigError, in_a_line

MAX_SEED = 2**32
_MOST = 2**31  # integers on the device are int32


def is_integer(value: Any) -> TypeGuard[int]:
    """Returns whether a value is an integer that fits into int32; True and False do not count."""
    return isinstance(value, numbers.Integral) and not _is_bool(value) and abs(int(value)) < _MOST


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number or infinity; True, False and NaN do not count."""
    try:
        real = isinstance(value, numbers.Real) and not _is_bool(value)
        return real and not math.isnan(float(value))
    except OverflowError:  # an integer beyond all floats
        return False


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (_is_bool, "True or False"),
    "int": (is_integer, "an integer below 2^31"),
    "str": (_is_hashable, "a text"),  # the code that uses it checks which texts are allowed
    "int | str": (
        lambda value: is_integer(value) or isinstance(value, str),
        "an integer or a text",
    ),
    "float": (lambda value: is_number(value) and math.isfinite(value), "a finite number"),
}


def require_kind(name: str, annotation: Any, value: Any) -> None:
    """Raises `ConfigError` unless a value has the type of an annotation ("int", "float | None").

    Only annotations of numbers and texts are checked; they may be texts or types.
    """
    written = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    kind = written.removesuffix(" | None")
    if kind not in _KINDS or (value is None and kind != written):
        return
    fits, what = _KINDS[kind]
    if not fits(value):
        raise ConfigError(f"{name} must be {what}, not {value!r}.")


def require_kinds(record: Any, but: Collection[str] = ()) -> None:
    """Raises `ConfigError` unless a dataclass's fields, except `but`, match their annotations."""
    for field in dataclasses.fields(record):
        if field.name not in but:
            require_kind(field.name, field.type, getattr(record, field.name))


def require_hashable(what: str, value: Any) -> None:
    """Raises `ConfigError` unless a user's object can be hashed, by which programs are shared."""
    try:
        hash(value)
    except TypeError as error:
        raise ConfigError(
            f"{what} cannot be hashed ({in_a_line(error)}); make its dataclass frozen, with numbers, texts "
            "or tuples in its fields, or its class hashable."
        ) from error


def require_counts(**values: Any) -> None:
    """Raises `ConfigError` unless each value is an integer of at least 1."""
    for name, value in values.items():
        if not is_integer(value) or value < 1:
            raise ConfigError(
                f"{name} must be an integer and at least 1 (and below 2^31), not {value!r}."
            )


def require_clients(
    demand: str, named: Iterable[Any], num_clients: int, *, everyone: bool = False
) -> None:
    """Raises `ConfigError` if some of the named clients do not exist, or not `everyone` is named.

    Args:
      demand: the beginning of the message, like "objectives must name clients".
      named: the clients that were named.
      num_clients: K.
      everyone: whether all must be named.
    """
    clients, given = set(range(num_clients)), set(named)
    wrong = sorted(given ^ clients if everyone else given - clients, key=str)
    if wrong:
        raise ConfigError(f"{demand} 0 … {num_clients - 1}; check {wrong[:10]}.")


def require_validation(what: str, there_is: bool) -> None:
    """Raises `ConfigError` without a validation set, by which `what` chooses."""
    if not there_is:
        raise ConfigError(
            f"{what} chooses on a validation set, and there is none; set validation_fraction. "
            "Nothing is chosen on the test set."
        )


def require_seed(seed: Any) -> None:
    """Raises `ConfigError` unless `seed` is in 0 … 2³² − 1, in which all of JAX's keys differ."""
    integer = isinstance(seed, numbers.Integral) and not _is_bool(seed)
    if not integer or not 0 <= int(seed) < MAX_SEED:
        raise ConfigError(f"seed must be an integer in 0 … 2^32 − 1, not {seed!r}.")
