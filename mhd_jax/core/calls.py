"""Calls with arguments that do not exist, answered in one sentence that names the right ones."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
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
            for name in () if takes_all else kwargs.keys() - parameters.keys():
                near = difflib.get_close_matches(name, parameters, 1)
                hint = f"did you mean {near[0]}?" if near else "see its help()."
                where = elsewhere(name) or hint
                raise ConfigError(f"{function.__name__} takes no argument {name}; {where}")
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorated
