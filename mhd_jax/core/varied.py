"""Hyperparameters whose values differ between runs that one program computes jointly."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array


class NotAlikeError(Exception):
    """A comparison has different results in different runs, which therefore need two programs."""


def _arithmetic(operation: Callable[[Any, Any], Array], *, reflected: bool = False) -> Any:
    """Returns the method of an operation on the value of the current run."""

    def method(self: Varied, other: Any) -> Array:
        mine, plain = self._value, other._value if isinstance(other, Varied) else other
        return operation(plain, mine) if reflected else operation(mine, plain)

    return method


def _comparison(operation: Callable[[Any, Any], bool]) -> Any:
    """Returns the method of a comparison, on which all runs must agree."""

    def method(self: Varied, other: Any) -> bool:
        answers = {bool(operation(value, other)) for value in self._values}
        if len(answers) > 1:
            raise NotAlikeError(f"{self._values} are compared, and differ")
        return answers.pop()

    return method


class Varied:
    """A hyperparameter with one value for each of several runs of the same program.

    Arithmetic uses the traced value of the current run. A comparison determines the program, and
    so must have the same result for all runs.
    """

    __hash__ = None  # type: ignore[assignment]  # caches of programs must not use it as a key

    def __init__(self, value: Array, values: Sequence[float]):
        """Takes the value of the current run, a traced scalar, and the values of all runs."""
        self._value = value
        self._values = tuple(values)

    def __jax_array__(self) -> Array:
        return self._value

    def __neg__(self) -> Array:
        return -self._value

    __add__ = __radd__ = _arithmetic(operator.add)
    __mul__ = __rmul__ = _arithmetic(operator.mul)
    __sub__ = _arithmetic(operator.sub)
    __rsub__ = _arithmetic(operator.sub, reflected=True)
    __truediv__ = _arithmetic(operator.truediv)
    __rtruediv__ = _arithmetic(operator.truediv, reflected=True)
    __pow__ = _arithmetic(operator.pow)

    def __bool__(self) -> bool:
        return self != 0

    __eq__ = _comparison(operator.eq)
    __lt__ = _comparison(operator.lt)
    __le__ = _comparison(operator.le)
    __gt__ = _comparison(operator.gt)
    __ge__ = _comparison(operator.ge)
