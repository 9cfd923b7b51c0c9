"""Inputs of every kind, made at random, and what must be true of each."""

from tests.fuzzing.kinds import KINDS, Kind, explore


def every_kind() -> dict[str, Kind]:
    """All kinds by name."""
    from tests.fuzzing import environments, graphs, run_folders, samples, settings, splits  # noqa: F401  # which register theirs

    return KINDS


__all__ = ["every_kind", "explore"]
