"""Differences between two algorithms, in pairs of runs with equal seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mhd_jax.studies import over_seeds
from mhd_jax.training.metrics import OF_OWN_LABELS

FEWEST_SEEDS = 3  # from two, Student's interval is up to 13 standard deviations wide
_ACCURACIES = ("beta_sh", *OF_OWN_LABELS)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between two algorithms in one metric, in pairs of runs with equal seeds.

    Attributes:
      first, second: the algorithms; differences are first − second.
      metric: the metric.
      heads: the head of each.
      seeds: the seeds in which both have a value.
      differences: the difference in each of them.
      mean, std: their mean and standard deviation (n − 1).
      interval: Student's 95 % confidence interval of the mean, within what differences can be.
      p_value: of Student's two-sided paired test.
      verdict: "ahead" if the first has higher values, "behind" if it has lower ones, "tie" if the
        interval contains 0.
    """

    first: str
    second: str
    metric: str
    heads: tuple[str, str]
    seeds: tuple[Any, ...]
    differences: tuple[float, ...]
    mean: float
    std: float
    interval: tuple[float, float]
    p_value: float
    verdict: str

    @property
    def estimate(self) -> str:
        """The mean and its interval as sentences have them: "+0.095 [+0.053, +0.137]"."""
        low, high = self.interval
        return f"{self.mean:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")

    def __repr__(self) -> str:
        return (
            f"{self.first} ({self.heads[0]}) − {self.second} ({self.heads[1]}) in {self.metric}: "
            f"{self.estimate}, p = {self.p_value:.2g}, {len(self.seeds)} seeds: {self.verdict}"
        )


def in_pairs(
    names: tuple[str, str],
    metric: str,
    heads: tuple[str, str],
    values: tuple[Mapping[Any, float | None], Mapping[Any, float | None]],
) -> Difference | int:
    """Takes the difference of two algorithms seed by seed.

    Args:
      names: the two algorithms.
      metric: the metric.
      heads: the head of each.
      values: the values of each by seed; None where there is none.

    Returns:
      The difference; where seeds with both values are fewer than three, how many there are.
    """
    first, second = values
    pairs = {
        seed: a - b
        for seed, a in first.items()
        if a is not None and (b := second.get(seed)) is not None
    }
    if len(pairs) < FEWEST_SEEDS:
        return len(pairs)
    found = over_seeds.interval(list(pairs.values()))
    limits = over_seeds.OF_DIFFERENCES if metric in _ACCURACIES else over_seeds.OF_ALL
    mean, std, ends = found["mean"], found["std"], over_seeds.ends(found, limits)
    assert mean is not None and std is not None and ends is not None
    tie = ends[0] <= 0 <= ends[1]
    return Difference(
        *names,
        metric,
        heads,
        tuple(pairs),
        tuple(pairs.values()),
        mean,
        std,
        ends,
        over_seeds.p_value(found, len(pairs)),
        "tie" if tie else "ahead" if mean > 0 else "behind",
    )
