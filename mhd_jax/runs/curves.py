"""The numbers of a run over its steps, as a page draws them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.runs import vega
from mhd_jax.runs.accuracies import METRICS
from mhd_jax.runs.palette import LOSS_STYLE, head_styles

MOST_MOMENTS = 100  # evaluations of which a page holds numbers
_LOSS = "loss"

Record = Mapping[str, Any]


def moments(history: Sequence[Any], most: int = MOST_MOMENTS) -> list[Any]:
    """Returns the evaluations, or `most` of them, from the first to the last."""
    places = np.linspace(0, len(history) - 1, min(len(history), most))
    return [history[i] for i in places.round().astype(int)]


def of(
    history: Sequence[Record],
    adversaries: Collection[int | str] = (),
    models: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns each head's accuracies and the loss over steps, as JSON-like values.

    Args:
      history: the evaluations, at least one.
      adversaries: the clients that are adversaries.
      models: the name of each client's model, where they are known.

    Returns:
      "steps" [T]; the legend of heads, and "specs", a chart for each panel, see `looks`; and "groups" of
      clients: all, and where there are others the honest ones, and those of each model. A group has
      a "name" and "panels": of each accuracy and of the loss its "label", "lines" (means over the
      group, [T] each) and "ranges" (the lowest and the highest client of each line, [2, T]). The
      loss, of all clients alone, is one line, and "isLoss" is set.
    """
    records = moments(history)
    heads = list(history[-1]["beta_sh"])
    found: list[dict[str, Any]] = [
        {"name": name, "panels": [_accuracy(records, metric, heads, who) for metric in METRICS]}
        for name, who in _groups(records[0], adversaries, models).items()
    ]
    losses = [rounded(record["train"].get(_LOSS)) for record in records]
    if any(loss is not None for loss in losses):
        found[0]["panels"].append({"label": "training loss", "lines": [losses], "isLoss": True})
    steps = [record["step"] for record in records]
    return {
        "steps": steps,
        **looks(heads, found[0]["panels"], steps, _chance(history[-1])),
        "groups": found,
    }


def looks(
    heads: Sequence[str],
    panels: Sequence[Mapping[str, Any]],
    steps: Sequence[int],
    chance: float | None,
) -> dict[str, Any]:
    """Returns the legend of heads, and as "specs" the charts of panels as `of` describes them."""
    styles, specs = head_styles(heads), []
    for panel in panels:
        values = np.array(
            [*panel["lines"], *(x for pair in panel.get("ranges", ()) for x in pair)], float
        )
        known = values[np.isfinite(values)].tolist()
        ends = (steps[0], steps[-1])
        if panel.get("isLoss"):
            loss = {panel["label"]: LOSS_STYLE}
            specs.append(vega.chart(panel["label"], loss, vega.loss_domain(known), ends))
        else:
            domain = vega.accuracy_domain(known)
            specs.append(vega.chart(panel["label"], styles, domain, ends, chance=chance))
    return {**vega.legend(styles), "specs": specs}


def _groups(
    record: Record, adversaries: Collection[int | str], models: Sequence[str]
) -> dict[str, list[int]]:
    """Returns the clients of each group by its name, first all of them."""
    every = range(len(next(iter(record["per_client"]["beta_sh"].values()))))
    found = {"all clients": [*every]}
    lying = {int(client) for client in adversaries}
    if 0 < len(lying) < len(every):
        found["honest clients"] = [i for i in every if i not in lying]
    kinds = list(dict.fromkeys(models))
    for kind in kinds if len(kinds) > 1 else ():
        found[f"clients with {kind}"] = [i for i in every if models[i] == kind]
    return found


def _accuracy(
    records: Sequence[Record], metric: str, heads: Sequence[str], who: Sequence[int]
) -> dict[str, Any]:
    """Returns the panel of one accuracy of some clients."""
    lines, ranges = [], []
    for head in heads:
        each = np.array([record["per_client"][metric][head] for record in records], float)[:, who]
        lines.append([rounded(_mean(values)) for values in each])
        known = each[:, np.isfinite(each).all(axis=0)]  # clients that have this accuracy
        if known.size:
            ranges.append([_all_rounded(known.min(axis=1)), _all_rounded(known.max(axis=1))])
    return {
        "label": METRICS[metric],
        "lines": lines,
        "ranges": ranges if len(ranges) == len(heads) else [],
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _chance(record: Record) -> float | None:
    """Returns the accuracy of a guess; None if the evaluation holds no accuracies by class."""
    if "chance" in record:
        return record["chance"]
    by_class = record["per_client"].get("per_class_accuracy")
    return 1 / len(next(iter(by_class.values()))[0]) if by_class else None


def rounded(value: float | None) -> float | None:
    """Returns a number as a page holds it; None and numbers that are not finite stay unknown."""
    return round(value, 4) if isinstance(value, int | float) and np.isfinite(value) else None


def _all_rounded(values: np.ndarray) -> list[float]:
    return values.round(4).tolist()
