"""Regression: samples whose targets are numbers instead of classes.

Wherever classes serve to deal, to count or to break down samples, ranges of the targets take their
place: samples are sorted by (the first of) their numbers into ranges of about equally many. A
partition by primary labels then gives clients primary ranges, and β_sh is the mean of the ranges'
scores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.tasks import Numbers
from mhd_jax.data.kinds import require_unmasked
from mhd_jax.data.stratified import TEST_FRACTION, sizes

RANGES = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """The numbers that samples have in the place of classes.

    Attributes:
      train, test: the numbers of the training and of the test samples, in their own units, float64
        [N, D].
      names: the D names.
    """

    train: np.ndarray
    test: np.ndarray
    names: tuple[str, ...]

    @functools.cached_property
    def task(self) -> Numbers:
        """The task of learning them, standardised; numbers that are all the same keep their scale."""
        deviation = self.train.std(axis=0)
        deviation[np.ptp(self.train, axis=0) == 0] = 1
        return Numbers(tuple(self.train.mean(axis=0).tolist()), tuple(deviation.tolist()))

    def held_out(self, train: np.ndarray, test: np.ndarray) -> Targets:
        """Returns the targets once the rows `test` of all training samples are set aside."""
        return dataclasses.replace(self, train=self.train[train], test=self.train[test])

    def __repr__(self) -> str:
        named = zip(self.names, self.task.mean, self.task.deviation, strict=True)
        return ", ".join(f"{name} ({mean:.4g} ± {std:.4g})" for name, mean, std in named)


def checked(given: Any, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """Returns numbers as float64 [N, D].

    Args:
      given: numbers [N] or [N, D].
      name: what they are called in errors.
      like: numbers of which others have as many each, [M, D].

    Raises:
      ConfigError: something else, numbers that are not finite, or as many as `like` has not.
    """
    require_unmasked(given, name)
    try:
        found = np.asarray(given)
    except ValueError as error:  # lists of unequal lengths
        raise ConfigError(
            f"{name} of a regression must be numbers [N] or [N, D]: {error}."
        ) from error
    if found.dtype.kind not in "iuf" or found.ndim not in (1, 2) or found.size == 0:
        raise ConfigError(
            f"{name} of a regression must be numbers [N] or [N, D], not {found.dtype} "
            f"{list(found.shape)}."
        )
    found = found.reshape(len(found), -1).astype(np.float64)
    if not np.isfinite(found).all():
        row = int(np.argmin(np.isfinite(found).all(axis=1)))
        raise ConfigError(
            f"{name} must be finite, but that of sample {row} is not; leave such samples out."
        )
    if np.abs(found).max() > np.finfo(np.float32).max:
        raise ConfigError(
            f"{name} go beyond {np.finfo(np.float32).max:.1e}, the largest number of float32, in which "
            "clients predict; give them in other units."
        )
    if like is not None and found.shape[1] != like.shape[1]:
        raise ConfigError(
            f"{name} have {found.shape[1]} numbers a sample, but those to train on {like.shape[1]}; "
            "give both the same."
        )
    return found


def edges_of(numbers: np.ndarray, count: int | None) -> np.ndarray:
    """Returns the edges between ranges of numbers [N, D], by the first of each, ascending.

    Args:
      numbers: the targets of samples.
      count: the number of ranges, each with about as many of these samples; there are fewer where
        numbers repeat. None is `RANGES`.

    Raises:
      ConfigError: fewer than two ranges.
    """
    shares = np.linspace(0, 1, (RANGES if count is None else count) + 1)[1:-1]
    first = numbers[:, 0]
    edges = np.unique(np.quantile(first, shares, method="nearest")) if shares.size else first[:0]
    above = first[first > first.min()]
    edges = edges[edges > first.min()]
    if not edges.size and shares.size and above.size:  # nearly all are the least, like 0 purchases
        edges = above.min(keepdims=True)
    if not edges.size:
        raise ConfigError(
            "the targets cannot be sorted into two ranges or more: all are the same, or num_classes, "
            "the number of ranges, is below 2."
        )
    return edges


def _splittable(numbers: np.ndarray, count: int | None, test_fraction: float) -> np.ndarray:
    """Returns edges between ranges of which a stratified split can set aside a share.

    There are no more ranges than samples in either split, and a range of a single sample is joined
    to the smaller of its neighbours; two are left in any case.
    """
    most = max(min(sizes(len(numbers), test_fraction)), 2)
    edges = edges_of(numbers, count)
    if len(edges) >= most:
        edges = edges_of(numbers, most)
    counts = np.bincount(ranges_of(numbers, edges))
    while len(edges) > 1 and counts.min() < 2:
        single = int(counts.argmin())
        below, _, above = np.array([np.inf, *counts, np.inf])[single : single + 3]
        edges = np.delete(edges, single if above < below else single - 1)
        counts = np.bincount(ranges_of(numbers, edges))
    return edges


def in_ranges(
    given: Any,
    test: Any = None,
    count: int | None = None,
    names: Any = None,
    test_fraction: float | None = None,
) -> tuple[Targets, np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Checks the targets of a regression, and sorts samples into ranges of them.

    Args:
      given: numbers [N] or [N, D].
      test: those of a test split; None without one.
      count: the number of ranges, by default `RANGES`.
      names: the D names of the numbers; None for "target", or "target_0", "target_1", ….
      test_fraction: the share of the samples that will be set aside where there is no test split;
        None is the default.

    Returns:
      The targets, of which those of the test samples are the same as `given` without a split; the
      range of each sample of `given` and of `test`, int32; and the names of the ranges.

    Raises:
      ConfigError: see `checked` and `edges_of`, or another number of names.
    """
    train = checked(given, "labels")
    held = None if test is None else checked(test, "test_labels", train)
    size = train.shape[1]
    if names is None:
        names = ["target"] if size == 1 else [f"target_{place}" for place in range(size)]
    if len(names) != size:
        raise ConfigError(f"there are {len(names)} class_names, but {size} numbers a sample.")
    if held is None:
        edges = _splittable(train, count, test_fraction or TEST_FRACTION)
    else:
        edges = edges_of(train, count)
    return (
        Targets(train, train if held is None else held, tuple(map(str, names))),
        ranges_of(train, edges),
        None if held is None else ranges_of(held, edges),
        tuple(range_names(edges)),
    )


def ranges_of(numbers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the range of each sample by the first of its numbers [N, D], int32 [N]."""
    return np.searchsorted(edges, numbers[:, 0], side="right").astype(np.int32)


def range_names(edges: np.ndarray) -> Sequence[str]:
    """Returns a name for each range, as in "below 1.5", "1.5 to 2", "from 2"."""
    shown = [f"{edge:.4g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(shown)]
    return [f"below {shown[0]}", *between, f"from {shown[-1]}"]
