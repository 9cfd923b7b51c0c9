"""In which settings a stored run differs from one of now, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.runs.records import jsonable

# Digests that may differ where no other setting does: what a user changed without any argument.
_CONTENTS = {
    "clients.dataset_digest": "the data",
    "clients.split_digest": "the split of the samples",
    "clients.public_digest": "the public samples",
    "clients.test_split_digest": "the split of the test samples",
    "topology.digest": "the edges of the graph",
    "optimizer.optax": "the optimizer",
}
_OWN_CODE = "clients.own_code."


def differing_settings(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each setting that differs between a stored run and one of now.

    What follows from other settings, like the split from the seed, is told where it alone differs.
    """
    values, contents = [], []
    for name, old, new in _differences(_completed(stored), now):
        if name in _CONTENTS and old is not None and new is not None:
            contents.append(f"{_CONTENTS[name]} changed since ({name})")
        elif name.startswith(_OWN_CODE):
            contents.append(f"the code of {name.removeprefix(_OWN_CODE)} changed since")
        else:
            values.append(f"{name} is {old!r} there and {new!r} now")
    return values or contents


def _completed(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns stored settings with hyperparameters that their version did not have, at the defaults."""
    build = ALGORITHMS.get(stored.get("algorithm", ""))
    known = stored.get("hyperparameters")
    if build is None or not isinstance(known, Mapping):
        return stored
    return {**stored, "hyperparameters": {**jsonable(hyperparameters(build)), **known}}


def _differences(
    there: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yields the dotted name of each setting that differs, and its values there and now."""
    for key in sorted(there.keys() | now.keys()):
        old, new = there.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
