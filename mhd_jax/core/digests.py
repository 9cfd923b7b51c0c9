"""Short digests of data, graphs and programs, for the recorded settings of a run."""

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
_OF_NO_RESULT = ("name", "debug_info", "src")  # parameters of primitives that only name programs


def array_digest(*arrays: Any) -> str:
    """Returns a digest of arrays' shapes, types and values.

    An array that reads its samples from files has a `digest` method, which identifies the files.
    """
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype}{array.shape}".encode())
        if hasattr(array, "digest"):  # of its files, which need not be read
            sha.update(array.digest().encode())
        else:
            # As bytes, since types like bfloat16 do not support the buffer protocol.
            sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:_LENGTH]


def program_digest(function: Callable[..., Any], *arguments: Any) -> str:
    """Returns a digest of what a pure function computes: of its jaxpr and the jaxpr's constants.

    Names of functions and variables, and the location of the code, do not change the digest.

    Args:
      function: a function that JAX can trace.
      *arguments: its arguments, trees of arrays or of their shapes.
    """
    return jaxpr_digest(traced(function, *arguments)[0])


def is_pure(function: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether a function gives the same program at every trace (no draws by NumPy)."""
    return pure_program(function, *arguments)[0] is not None


def pure_program(
    function: Callable[..., Any], *arguments: Any, times: int = 2
) -> tuple[str | None, Any]:
    """Returns a function's `program_digest`, None if it is not pure, and its results' shapes.

    The function is traced `times` times: two draws from a small set may happen to agree.
    """
    found = [traced(function, *arguments) for _ in range(times)]
    digests = {jaxpr_digest(program) for program, _ in found}
    return (digests.pop() if len(digests) == 1 else None), found[0][1]


def traced(function: Callable[..., Any], *arguments: Any) -> tuple[ClosedJaxpr, Any]:
    """Returns the jaxpr of a function, traced anew, and the shapes of its results."""
    if isinstance(function, jax.stages.Wrapped):  # jit would not trace it a second time
        function = inspect.unwrap(function)
    # JAX caches traces by function, whatever execution they were made under; a new lambda has none.
    return jax.make_jaxpr(lambda *given: function(*given), return_shape=True)(*arguments)


def require_pure(what: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Raises `ConfigError` unless a user's function gives the same program at every trace."""
    if not is_pure(function, *arguments):
        raise ConfigError(
            f"{what} is another one each time it is called, and what it drew would be frozen for the "
            "whole run: draw with jax.random from the keys that it is given, not with NumPy or "
            "Python."
        )


def jaxpr_digest(closed: ClosedJaxpr) -> str:
    """Returns the digest of a function that has already been traced."""
    return _Digests().of_closed(closed)


def form_digest(closed: ClosedJaxpr) -> str:
    """Returns the digest, in this process, of a traced function without its constants' values.

    Constants of functions inside of it count, as do the functions of the host that it calls.
    """
    digests = _Digests()
    form = digests.of_jaxpr(closed.jaxpr)
    return _short(f"{form}{list(map(id, digests.on_host))}")


class _Digests:
    """Computes digests of jaxprs; a jaxpr that occurs in several places is digested once."""

    def __init__(self) -> None:
        # By id; the jaxpr is kept so that its id is not reused.
        self._known: dict[int, tuple[Jaxpr, str]] = {}
        self.on_host: list[Any] = []  # functions of the host that the programs call

    def of_closed(self, closed: ClosedJaxpr) -> str:
        constants = ",".join(map(self._value, closed.consts))
        return _short(f"{self.of_jaxpr(closed.jaxpr)}({constants})")

    def of_jaxpr(self, jaxpr: Jaxpr) -> str:
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
            if "callback" in equation.primitive.name:
                self.on_host.append(equation.params["callback"])
            parameters = " ".join(
                f"{name}={self._value(value)}"
                for name, value in sorted(equation.params.items())
                if name not in _OF_NO_RESULT
            )
            inputs = used(equation.invars)
            lines.append(f"{equation.primitive} {parameters} {inputs}: {made(equation.outvars)}")
        return [*lines, used(jaxpr.outvars)]

    def _value(self, value: Any) -> str:
        """Returns a constant, or a parameter of a primitive, as text."""
        if isinstance(value, ClosedJaxpr):
            return self.of_closed(value)
        if isinstance(value, Jaxpr):
            return self.of_jaxpr(value)
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
            return "function"  # such as a differentiation rule, whose results are in the jaxpr
        return re.sub(r"0x[0-9a-f]+", "", repr(value))  # addresses differ between processes


def _live(jaxpr: Jaxpr) -> list[Any]:
    """Returns the equations on which the results depend.

    Others occur: the initialization of a model evaluates a batch just for the shapes.
    """
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
