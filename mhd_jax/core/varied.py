"""Hyperparameters whose values differ between runs that one program computes jointly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array


class NotAlikeError(Exception):
    """A comparison has different results in different runs, which therefore need two programs."""


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

    def __add__(self, other: Any) -> Array:
        return self._value + _plain(other)

    def __sub__(self, other: Any) -> Array:
        return self._value - _plain(other)

    def __rsub__(self, other: Any) -> Array:
        return _plain(other) - self._value

    def __mul__(self, other: Any) -> Array:
        return self._value * _plain(other)

    def __truediv__(self, other: Any) -> Array:
        return self._value / _plain(other)

    def __rtruediv__(self, other: Any) -> Array:
        return _plain(other) / self._value

    def __pow__(self, other: Any) -> Array:
        return self._value ** _plain(other)

    __radd__, __rmul__ = __add__, __mul__

    def __bool__(self) -> bool:
        return self._agreed(lambda value: value != 0)

    def __eq__(self, other: Any) -> bool:
        return self._agreed(lambda value: value == other)

    def __lt__(self, other: Any) -> bool:
        return self._agreed(lambda value: value < other)

    def __le__(self, other: Any) -> bool:
        return self._agreed(lambda value: value <= other)

    def __gt__(self, other: Any) -> bool:
        return self._agreed(lambda value: value > other)

    def __ge__(self, other: Any) -> bool:
        return self._agreed(lambda value: value >= other)

    def _agreed(self, question: Callable[[float], bool]) -> bool:
        answers = {bool(question(value)) for value in self._values}
        if len(answers) > 1:
            raise NotAlikeError(f"{self._values} are compared, and differ")
        return answers.pop()


def _plain(other: Any) -> Any:
    return other._value if isinstance(other, Varied) else other
