"""Faults over time: a lane for each client, from what evaluations keep of who took part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from mhd_jax.runs import svg

STATES = {  # how a client spent its time, by what stands above what in a lane
    "online": ("#0072B2", "trains and can be reached"),
    "alone": ("#8FC3E8", "trains, and cannot be reached"),
    "slow": ("#E0B000", "can be reached, and does not train"),
    "absent": ("#C4C4C4", "absent: offline, not chosen, late, left or quarantined"),
}
_LEFT, _WIDTH, _LANE, _TOP, _BOTTOM = 150, 960, 18, 6, 36  # pixels
_EVENT = "#9c1c1c"

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Lanes:
    """How clients spent the time between evaluations.

    Attributes:
      steps: int [T + 1], the steps between which there are T intervals, from 0.
      shares: by state, [T, K]: the share of each interval's steps; all states sum to 1.
      events: by client, steps at which it joins, leaves or is in quarantine, with the word for it.
      roles: words about each client, such as "adversary".
    """

    steps: Sequence[int]
    shares: Mapping[str, np.ndarray]
    events: Mapping[int, Sequence[tuple[int, str]]]
    roles: Sequence[str]


def of_run(summary: Record, history: Sequence[Record]) -> Lanes | None:
    """Returns the lanes of a run whose evaluations keep who took part; else None."""
    records = [record for record in history if "steps_missed" in record.get("faults", {})]
    if len(records) < len(history) or not history:
        return None
    steps = np.array([0, *(record["step"] for record in records)])
    missed, unreachable = (
        _per_interval([record["faults"][name] for record in records], steps)
        for name in ("steps_missed", "steps_unreachable")
    )
    absent = np.minimum(missed, unreachable)
    slow, alone = missed - absent, unreachable - absent
    shares = {"online": 1 - absent - slow - alone, "alone": alone, "slow": slow, "absent": absent}
    settings = summary["settings"]
    events: dict[int, list[tuple[int, str]]] = {}
    for word, pairs in (
        ("joins", settings["faults"].get("joins", ())),
        ("leaves", settings["faults"].get("leaves", ())),
        ("in quarantine", summary["faults"].get("quarantined", {}).items()),
    ):
        for client, step in pairs:
            if step <= steps[-1]:
                events.setdefault(int(client), []).append((step, word))
    liars = settings["clients"].get("adversaries", {})
    roles = ["adversary" if str(i) in liars else "" for i in range(missed.shape[1])]
    return Lanes(steps.tolist(), shares, events, roles)


def _per_interval(since_start: Sequence[Sequence[int]], steps: np.ndarray) -> np.ndarray:
    """Returns shares of the steps between evaluations [T, K] from counts since the start."""
    counts = np.array([[0] * len(since_start[0]), *since_start])
    return np.diff(counts, axis=0) / np.diff(steps)[:, None]


def drawing(lanes: Lanes) -> Markup:
    """Returns the lanes; in each interval, a state is as high as its share of the steps."""
    count, end = len(lanes.roles), lanes.steps[-1]
    height = _TOP + _LANE * count + _BOTTOM

    def x(step: float) -> float:
        return _LEFT + step / end * (_WIDTH - _LEFT - 12)

    parts = []
    for client in range(count):
        top = _TOP + _LANE * client
        name = f"{client} {lanes.roles[client]}".strip()
        text = {"x": _LEFT - 8, "y": top + 13, "text_anchor": "end"}
        parts.append(svg.element("text", f"client {name}", **text))
        parts += _lane(lanes, client, top, x)
    for step in np.linspace(0, end, 5).astype(int).tolist():
        text = {"x": x(step), "y": height - 20, "text_anchor": "middle"}
        parts.append(svg.element("text", f"{step:,}", **text))
    parts.append(svg.element("text", "step", x=x(end / 2), y=height - 4, text_anchor="middle"))
    ends = {"y1": _TOP, "y2": _TOP + _LANE * count}
    parts.append(svg.element("line", **ends, class_="cursor", visibility="hidden"))
    axis = {"data_from": x(0), "data_to": x(end), "data_end": end}
    return svg.drawing(_WIDTH, height, _title(lanes), *parts, class_="lanes", **axis)


def _lane(lanes: Lanes, client: int, top: float, x: Any) -> list[Markup]:
    """Returns a client's lane: its states from the top down, and its events."""
    parts = []
    high = _LANE - 4
    for place, (start, stop) in enumerate(zip(lanes.steps, lanes.steps[1:], strict=False)):
        y = top + 2.0
        for state, (colour, _) in STATES.items():
            share = float(lanes.shares[state][place, client])
            if share > 0:
                box = {"x": x(start), "y": y, "width": x(stop) - x(start), "height": share * high}
                parts.append(svg.element("rect", **box, fill=colour))
                y += share * high
    for step, word in lanes.events.get(client, ()):
        ends = {"x1": x(step), "x2": x(step), "y1": top, "y2": top + _LANE}
        said = svg.element("title", f"client {client} {word} at step {step:,}")
        parts.append(svg.element("line", said, **ends, stroke=_EVENT, stroke_width=2))
        right = step < 0.8 * lanes.steps[-1]
        text = {"x": x(step) + (4 if right else -4), "y": top + 13, "class_": "event"}
        parts.append(svg.element("text", word, **text, text_anchor="start" if right else "end"))
    return parts


def _title(lanes: Lanes) -> str:
    """Returns what the lanes show, for those who cannot see them."""
    lengths = np.diff(lanes.steps)
    online = lengths @ lanes.shares["online"] / lengths.sum()
    least = int(online.argmin())
    return (
        f"How clients spent the steps: on average {online.mean():.0%} training and reachable; least "
        f"client {least}, {online[least]:.0%}"
    )
