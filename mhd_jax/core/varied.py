"""Numbers that differ between runs of one program: traced, and still able to say what they may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax import Array


class NotAlikeError(Exception):
    """A comparison has another answer for one run than for another, so that they are two programs."""


class Varied:
    """A hyperparameter of which each of several runs has a value of its own.

    Arithmetic takes the value of the run that is computed. A comparison decides what is
    computed, and so must have one answer for all runs.
    """

    __hash__ = None  # type: ignore[assignment]  # two programs never share one

    def __init__(self, value: Array, values: Sequence[float]):
        """`value` is this run's, a traced scalar; `values` are those of all."""
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
