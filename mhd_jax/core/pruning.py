"""Traced programs, cut down to what some of their results need."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr


def pruned(traced: ClosedJaxpr, wanted: Sequence[bool]) -> tuple[ClosedJaxpr, list[bool]]:
    """Returns a program of the wanted results alone, and which arguments it still takes."""
    jaxpr, needed = dce_jaxpr(traced.jaxpr, list(wanted))
    return ClosedJaxpr(jaxpr, traced.consts), needed
