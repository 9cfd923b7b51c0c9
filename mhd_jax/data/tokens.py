"""Samples that are tokens: integers in 0 … V − 1, the numbers of a vocabulary, which models embed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import is_integer
from mhd_jax.data.kinds import named_leaves, shown

PyTree = Any


def vocabulary_size(splits: Sequence[PyTree], given: int | None) -> int:
    """Returns V, by default the largest token plus one.

    Args:
      splits: stored samples, arrays of integers, or dicts of which some are.
      given: V, where it is known.

    Raises:
      ConfigError: no integers, or tokens outside of 0 … V − 1.
    """
    if given is not None and (not is_integer(given) or given < 1):
        raise ConfigError(f"vocabulary_size must be an integer and at least 1, not {given!r}.")
    found = [
        leaf for split in splits for _, leaf in named_leaves(split, "") if leaf.dtype == np.int32
    ]
    if not found:
        raise ConfigError(
            f"tokens=True is for integers, but samples hold {shown(splits[0])}; leave it out, or number "
            "the tokens."
        )
    least, most = min(int(leaf.min()) for leaf in found), max(int(leaf.max()) for leaf in found)
    size = most + 1 if given is None else int(given)
    if least < 0 or most >= size:
        bound = "" if given is None else f" … {size - 1} (vocabulary_size is {size})"
        raise ConfigError(
            f"tokens must be numbers from 0{bound}, but they span {least} … {most}; number them anew."
        )
    return size
