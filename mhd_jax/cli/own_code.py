"""Users' own code on the command line: `my.py:entropy_mean`, or `package.module:entropy_mean`.

What is loaded is known by the digest of its file, which the settings of runs record.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from typing import Any

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.files import expanded

_OWN = re.compile(r"(?:.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")
_LENGTH = 16  # of a digest
_digests: dict[str, str] = {}  # of the files of modules that were loaded, by the modules' names


def is_own(text: str) -> bool:
    """Tells whether a flag's value names users' own code."""
    return _OWN.fullmatch(text) is not None


def load(text: str) -> Any:
    """Returns what a text like "my.py:entropy_mean" names; the file is read once for its content.

    Raises:
      ConfigError: there is no such file or name, or the file raises an exception.
    """
    place, _, name = text.rpartition(":")
    module = _of_file(place) if place.endswith(".py") else _of_package(place, text)
    if not hasattr(module, name):
        own = [
            each
            for each, value in vars(module).items()
            if not each.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        close = difflib.get_close_matches(name, own, n=1)
        meant = f"did you mean {close[0]}?" if close else f"it has {', '.join(own) or 'nothing'}."
        raise ConfigError(f"there is no {name} in {place}; {meant}")
    return getattr(module, name)


def digests(*used: Any) -> dict[str, str]:
    """Returns the digests of the files of what is used, by their modules' names.

    Args:
      *used: things that may be of users' own code, or texts that may name it, by comma.
    """
    found = {}
    for each in used:
        own = (
            [load(part) for part in each.split(",") if is_own(part)]
            if isinstance(each, str)
            else []
        )
        for thing in own or [each]:
            name = getattr(thing, "__module__", None)
            if name in _digests:
                found[name] = _digests[name]
    return found


def _of_file(text: str) -> types.ModuleType:
    path = expanded(text)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{text} cannot be read: {error.strerror}.") from error
    return _executed(path.resolve(), content)


@functools.lru_cache(maxsize=64)  # one object for one content, so that programs compile once
def _executed(path: pathlib.Path, content: bytes) -> types.ModuleType:
    digest = hashlib.sha256(content).hexdigest()[:_LENGTH]
    # The file's own name, by which pickles of its classes find it where it can be imported.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of files that end in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except Exception as error:  # users' code may raise any exception
        del sys.modules[name]
        raise ConfigError(f"{path.name} {_where(error, path)}({in_a_line(error)}).") from error
    _digests[name] = digest
    return module


def _where(error: Exception, path: pathlib.Path) -> str:
    """Says at which line of a file an exception came up."""
    if isinstance(error, SyntaxError):
        return f"cannot be read at line {error.lineno} "
    lines = [
        at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(path)
    ]
    return f"fails at line {lines[-1]} " if lines else "fails "


def _of_package(place: str, text: str) -> types.ModuleType:
    try:
        module = importlib.import_module(place)
    except Exception as error:  # users' code may raise any exception
        raise ConfigError(
            f"{text}: {place} cannot be imported ({in_a_line(error)}); install it, or write the path "
            "of a file that ends in .py."
        ) from error
    file = getattr(module, "__file__", None)
    content = pathlib.Path(file).read_bytes() if file else b""
    _digests[place] = hashlib.sha256(content).hexdigest()[:_LENGTH]
    return module
