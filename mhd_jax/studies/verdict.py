"""The verdict of a comparison: who is ahead, who ties, in words and as paired differences.

Each metric judges a row by the head that is declared for it before any run
(`mhd_jax.training.metrics.declared_head`). A difference whose 95 % interval contains 0 is a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mhd_jax.studies import over_seeds
from mhd_jax.studies.differences import FEWEST_SEEDS, Difference, in_pairs
from mhd_jax.training.metrics import SYMBOLS, declared_head

_MOST_NAMED = 4  # rows that a sentence names one by one
_MOST_BASELINES = 8  # rows up to which each may be the baseline of the differences
_VISIBLE = 0.0005  # differences of means that three digits may show

Summaries = Mapping[str, Mapping[Any, Mapping[str, Any]]]  # by row and seed


def by_seed(runs: Mapping[str, Sequence[Any]]) -> Summaries:
    """Returns the summaries of finished runs by row and by the seeds of training and split.

    With adversaries, accuracies are those of the honest clients, by whom rows are judged.
    """
    return {
        name: {
            (run.summary["seed"], run.summary["settings"]["clients"].get("split_seed")): {
                **run.summary,
                **run.summary.get("honest", {}),
            }
            for run in each
        }
        for name, each in runs.items()
    }


def differences(summaries: Summaries) -> dict[str, dict[str, list[Difference]]]:
    """Returns the differences of all rows to a baseline, by metric and baseline.

    Each row is a baseline in its turn; of more than eight, only the first one. Rows with fewer
    than three seeds in common have no difference.
    """
    baselines = list(summaries) if len(summaries) <= _MOST_BASELINES else [*summaries][:1]
    return {
        metric: {
            baseline: [
                found
                for name in summaries
                if name != baseline
                if isinstance(found := _difference(summaries, metric, name, baseline), Difference)
            ]
            for baseline in baselines
        }
        for metric in SYMBOLS
    }


def in_words(summaries: Summaries) -> list[str]:
    """Returns sentences that say for each metric who is ahead and who ties, and at what cost."""
    sentences = []
    for metric in SYMBOLS:
        means = {name: _mean(of, metric, _head(of, metric)) for name, of in summaries.items()}
        known = {name: mean for name, mean in means.items() if mean is not None}
        if len(known) > 1:
            sentences.append(_of_metric(summaries, metric, known))
            sentences += _better_heads(summaries, metric, known)
    return sentences


def _of_metric(summaries: Summaries, metric: str, means: Mapping[str, float]) -> str:
    """Says who has the highest mean in a metric, of whom it is ahead, and with whom it ties."""
    best = max(means, key=lambda name: means[name])
    head = _head(summaries[best], metric)
    which = "main head" if metric == "beta_priv" else "last head"
    which += ", of honest clients," if _has_adversaries(summaries[best]) else ""
    start = f"{SYMBOLS[metric]} of the {which} is highest for {best} ({head}), {means[best]:.3f}"
    found = {name: _difference(summaries, metric, best, name) for name in means if name != best}
    tested = {name: each for name, each in found.items() if isinstance(each, Difference)}
    untested = [name for name in found if name not in tested]
    parts = []
    phrases = {
        "ahead": "it is ahead of",
        "tie": "it ties with",
        "behind": "on the seeds in common it is behind",  # where its mean is of others, too
    }
    for verdict, phrase in phrases.items():
        own = {name: each for name, each in tested.items() if each.verdict == verdict}
        if own:
            parts.append(f"{phrase} {_listed(own, summaries, best)}")
    if untested:
        parts.append(
            f"with fewer than {FEWEST_SEEDS} seeds in common nothing can be said about "
            f"{_some(untested)}"
        )
    return f"{start}: {'; '.join(parts)}."


def _listed(found: Mapping[str, Difference], summaries: Summaries, best: str) -> str:
    if len(found) > _MOST_NAMED:
        return _some(list(found))
    return ", ".join(
        f"{name} ({each.estimate}{_times(summaries[best], summaries[name])})"
        for name, each in found.items()
    )


def _some(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more"


def _times(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> str:
    """Says how many times the bytes of another row one row sends; "" if one sends nothing."""
    mine, others = _bytes(one), _bytes(other)
    return f", at {mine / others:.2g} times the bytes" if mine and others else ""


def _better_heads(summaries: Summaries, metric: str, rows: Mapping[str, float]) -> list[str]:
    """Says which rows have another head with a higher mean than the one that judges them."""
    better = []
    for name, own in rows.items():
        of = summaries[name]
        means = {head: _mean(of, metric, head) for head in _heads(of, metric)}
        best = max(means, key=lambda head: means[head] or 0.0)
        if (means[best] or 0.0) > own + _VISIBLE:
            better.append(f"{name}'s {best}, {means[best]:.3f}")
    if not better:
        return []
    return [f"Another head than the declared one has more {SYMBOLS[metric]}: {_some(better)}."]


def _difference(summaries: Summaries, metric: str, first: str, second: str) -> Difference | int:
    names = first, second
    heads = _head(summaries[first], metric), _head(summaries[second], metric)
    one, other = (
        _values(summaries[name], metric, head) for name, head in zip(names, heads, strict=True)
    )
    return in_pairs(names, metric, heads, (one, other))


def _heads(of: Mapping[Any, Mapping[str, Any]], metric: str) -> list[str]:
    return list(next(iter(of.values()))[metric])


def _head(of: Mapping[Any, Mapping[str, Any]], metric: str) -> str:
    return declared_head(metric, _heads(of, metric))


def _values(of: Mapping[Any, Mapping[str, Any]], metric: str, head: str) -> dict[Any, float | None]:
    return {seed: summary[metric][head] for seed, summary in of.items()}


def _mean(of: Mapping[Any, Mapping[str, Any]], metric: str, head: str) -> float | None:
    return over_seeds.spread(_values(of, metric, head).values())["mean"]


def _has_adversaries(of: Mapping[Any, Mapping[str, Any]]) -> bool:
    return any("honest" in summary for summary in of.values())


def _bytes(of: Mapping[Any, Mapping[str, Any]]) -> float:
    return sum(summary["communication"]["total_bytes"] for summary in of.values()) / len(of)
