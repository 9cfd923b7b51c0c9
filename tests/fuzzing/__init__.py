"""Inputs of every kind, made at random, and what must be true of each."""

import importlib

from tests.fuzzing.kinds import KINDS, Kind, explore

_MODULES = ("environments", "functions", "graphs", "run_folders", "samples", "settings", "splits")


def every_kind() -> dict[str, Kind]:
    """All kinds by name."""
    for module in _MODULES:
        importlib.import_module(f"tests.fuzzing.{module}")  # which registers its own
    return KINDS


__all__ = ["every_kind", "explore"]
