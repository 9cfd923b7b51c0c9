"""Short digests that tell data, graphs and programs apart, for a run's recorded settings."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from mhd_jax.core.errors import ConfigError

_LENGTH = 16
_OF_NO_RESULT = ("name", "debug_info", "src")  # parameters of primitives: what a program is called


def array_digest(*arrays: Any) -> str:
    """Tells arrays apart by their shapes, types and values, or files that are not read yet."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype}{array.shape}".encode())
        if hasattr(array, "digest"):  # its files say what it holds
            sha.update(array.digest().encode())
        else:
            # As bytes: types like bfloat16 have no buffer of their own.
            sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:_LENGTH]


def program_digest(function: Callable[..., Any], *arguments: Any) -> str:
    """Tells pure functions apart by what they compute: their jaxpr and its constants.

    Names of functions and variables, and where the code stands, make no difference.

    Args:
      function: traceable.
      *arguments: trees of arrays, or of their shapes.
    """
    return jaxpr_digest(_traced(function, arguments)[0])


def is_pure(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function computes the same each time that it is traced; draws of NumPy do not."""
    return pure_program(function, *arguments)[0] is not None


def pure_program(
    function: Callable[..., Any], *arguments: Any, times: int = 2
) -> tuple[str | None, Any]:
    """A function's `program_digest`, None where it is not pure, and the shapes of what it returns.

    It is traced so many `times`: draws among few things may agree.
    """
    traced = [_traced(function, arguments) for _ in range(times)]
    digests = {jaxpr_digest(program) for program, _ in traced}
    return (digests.pop() if len(digests) == 1 else None), traced[0][1]


def _traced(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[ClosedJaxpr, Any]:
    """What a function computes, and the shapes of what it returns."""
    if isinstance(function, jax.stages.Wrapped):  # which would not be called a second time
        function = inspect.unwrap(function)
    # JAX keeps what it traced by the function, whatever it was traced under: a new one has nothing.
    return jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(*arguments)


def require_pure(what: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Raises `ConfigError` where a user's function is another one each time it is traced."""
    if not is_pure(function, *arguments):
        raise ConfigError(
            f"{what} is another one each time it is called, and what it drew would be frozen for the "
            "whole run: draw with jax.random from the keys that it is given, not with NumPy or "
            "Python."
        )


def jaxpr_digest(closed: ClosedJaxpr) -> str:
    """The digest of a function that is traced already."""
    return _Digests().of_closed(closed)


class _Digests:
    """Digests of jaxprs; one that stands in several places is looked at once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Jaxpr, str]] = {}  # which keeps ids from being used again

    def of_closed(self, closed: ClosedJaxpr) -> str:
        constants = ",".join(map(self._value, closed.consts))
        return _short(f"{self._of_jaxpr(closed.jaxpr)}({constants})")

    def _of_jaxpr(self, jaxpr: Jaxpr) -> str:
        if id(jaxpr) not in self._known:
            self._known[id(jaxpr)] = (jaxpr, _short("\n".join(self._lines(jaxpr))))
        return self._known[id(jaxpr)][1]

    def _lines(self, jaxpr: Jaxpr) -> list[str]:
        numbers: dict[Any, int] = {}

        def made(variables: Any) -> str:
            for variable in variables:
                numbers[variable] = len(numbers)
            return " ".join(variable.aval.str_short() for variable in variables)

        def used(variables: Any) -> str:
            return " ".join(
                f"{v.aval.str_short()}={self._value(v.val)}"
                if isinstance(v, Literal)
                else str(numbers[v])
                for v in variables
            )

        lines = [made(jaxpr.constvars), made(jaxpr.invars)]
        for equation in _live(jaxpr):
            parameters = " ".join(
                f"{name}={self._value(value)}"
                for name, value in sorted(equation.params.items())
                if name not in _OF_NO_RESULT
            )
            inputs = used(equation.invars)
            lines.append(f"{equation.primitive} {parameters} {inputs}: {made(equation.outvars)}")
        return [*lines, used(jaxpr.outvars)]

    def _value(self, value: Any) -> str:
        """A constant or a primitive's parameter as text."""
        if isinstance(value, ClosedJaxpr):
            return self.of_closed(value)
        if isinstance(value, Jaxpr):
            return self._of_jaxpr(value)
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return f"key {array_digest(jax.random.key_data(value))}"
        if isinstance(value, jax.Array | np.ndarray):
            return array_digest(np.asarray(value))
        if isinstance(value, Mapping):
            return self._value(sorted((str(key), self._value(v)) for key, v in value.items()))
        if isinstance(value, tuple | list):
            return f"({','.join(map(self._value, value))})"
        if isinstance(value, set | frozenset):
            return self._value(sorted(map(self._value, value)))
        if type(value).__name__ == "WrappedFun" or (
            callable(value) and not isinstance(value, type)
        ):
            return "function"  # a rule of differentiation, say: what is made of it is in the jaxpr
        return re.sub(r"0x[0-9a-f]+", "", repr(value))  # addresses differ between processes


def _live(jaxpr: Jaxpr) -> list[Any]:
    """The equations on which results depend: a model that is drawn passes a batch for its shapes."""
    needed, kept = set(_variables(jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or needed.intersection(equation.outvars):
            needed.update(_variables(equation.invars))
            kept.append(equation)
    return kept[::-1]


def _variables(atoms: Iterable[Any]) -> Iterator[Any]:
    return (atom for atom in atoms if not isinstance(atom, Literal))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]
