"""Nested mappings as one level of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(nested: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, where `separator` is "."."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            inner = flat(value, separator)
            found.update({f"{key}{separator}{name}": entry for name, entry in inner.items()})
        else:
            found[key] = value
    return found
