"""Arrays from which clients start, in place of those that they would draw.

They go by flat names: "backbone/Dense_0/kernel", "heads/kernel", and "stats/batch_stats/…" for other
variables. Of heads, those that both have are taken, rank by rank; of all else, what has the same
name and shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from mhd_jax.core.types import PyTree

Arrays = Mapping[str, Array]  # by flat names
_HEADS = "heads/"
_STATS = "stats"


def named(params: PyTree, stats: PyTree) -> dict[str, Array]:
    """Returns the arrays of parameters and other variables by flat names."""
    paths = flatten_dict({**params, **({_STATS: stats} if stats else {})})
    return {"/".join(map(str, path)): array for path, array in paths.items()}


def fits(name: str, given: tuple[int, ...], drawn: tuple[int, ...]) -> bool:
    """Returns whether an array of one shape takes the place of one of another shape.

    Shapes are of one client; those of heads begin with the number of heads.
    """
    if name.startswith(_HEADS):
        return len(given) == len(drawn) and given[1:] == drawn[1:]
    return given == drawn


def in_place(params: PyTree, stats: PyTree, start: Arrays) -> tuple[PyTree, PyTree]:
    """Returns drawn parameters and statistics [k, ...] with those of `start` in their places."""
    found = flatten_dict({**params, _STATS: stats}, keep_empty_nodes=True)
    for path, drawn in found.items():
        name = "/".join(map(str, path))  # lists of modules have numbers in their paths
        given = start.get(name)
        if given is None or not fits(name, given.shape[1:], drawn.shape[1:]):
            continue
        given = jnp.asarray(given, drawn.dtype)
        if given.shape != drawn.shape:  # fewer or more heads
            both = min(given.shape[1], drawn.shape[1])
            given = drawn.at[:, :both].set(given[:, :both])
        found[path] = given
    nested = unflatten_dict(found)
    return nested, nested.pop(_STATS)
