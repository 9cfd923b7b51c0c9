"""Calls with arguments that do not exist, answered in one sentence that names the right ones."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from mhd_jax.core.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])


def with_known_arguments(
    elsewhere: Callable[[str], str | None] = lambda name: None,
) -> Callable[[Function], Function]:
    """Makes a function raise `ConfigError` for arguments that it does not take.

    Args:
      elsewhere: says for a name where it belongs instead, in a sentence; None if nowhere.
    """

    def decorated(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if not takes_all:
                require_known(function.__name__, kwargs, parameters, elsewhere)
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorated


def require_known(
    function: str,
    given: Iterable[str],
    known: Collection[str],
    elsewhere: Callable[[str], str | None] = lambda name: None,
) -> None:
    """Raises `ConfigError` for the first given argument of a function that is not a known one."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see its help()."
            raise ConfigError(f"{function} takes no argument {name}; {elsewhere(name) or hint}")


def takes(function: Callable[..., Any], *arguments: str) -> bool:
    """Returns whether a function can be called with these arguments, named here, by position."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without a signature
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True
