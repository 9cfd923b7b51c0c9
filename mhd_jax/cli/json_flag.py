"""The flag of commands that print what they found for programs, too."""

from __future__ import annotations

from absl import flags

_JSON = flags.DEFINE_bool(
    "json", False, "Whether to print JSON, one object a line, instead of tables."
)


def asked() -> bool:
    """Tells whether JSON is to be printed."""
    return _JSON.value
