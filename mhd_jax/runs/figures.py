"""Figures of runs and comparisons, in colours that colour-blind readers can distinguish."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.shown import counted
from mhd_jax.runs.accuracies import METRICS, band
from mhd_jax.runs.drawing import (
    WIDTHS,
    Axes,
    AxesImage,
    EngFormatter,
    Figure,
    Line2D,
    LogLocator,
    MaxNLocator,
    Normalize,
    NullFormatter,
    Patch,
    PowerNorm,
    paper_width,
    plain,
    small_text,
)
from mhd_jax.runs.drawing import save as save
from mhd_jax.runs.drawing import style as style
from mhd_jax.runs.palette import head_colours as head_colours
from mhd_jax.runs.palette import head_styles
from mhd_jax.runs.palette import row_styles as row_styles
from mhd_jax.training.metrics import SYMBOLS, declared_head, first_and_last

_FEW = 30  # with fewer evaluations, each has a marker
_MOST_ANNOTATED = 160  # cells up to which a heat map has room for numbers
_LEAST_ANNOTATED = 0.45  # inches of a paper's width for each column, below which there is none
_MOST_NAMED = 20  # classes or clients up to which there is room for their names
_MOST_MOMENTS = 5  # steps at which heat maps over time are drawn
_CHANCE: dict[str, Any] = {"color": "0.4", "linestyle": (0, (6, 3)), "linewidth": 0.8}
_FORMULAS = {"β_sh": r"$\beta_\mathrm{sh}$", "β_priv": r"$\beta_\mathrm{priv}$"}
_NARROW = 4.5  # inches of width below which a legend has two columns
_LEAST_SHRUNK = 0.6  # of the height that a figure has on a screen
_LONG = 12  # letters of an entry beyond which it does, too
_HIGH = 0.5  # an axis of accuracies that are all higher than this does not begin at 0

Record = Mapping[str, Any]
Histories = Mapping[str, Sequence[Sequence[Record]]]


def accuracy(
    history: Sequence[Record], chance: float | None = None, ax: Sequence[Axes] | None = None
) -> Figure:
    """Plots β_sh and β_priv over steps: each head's mean over clients, and the clients' range.

    Args:
      history: the evaluations.
      chance: the accuracy of a guess, which is drawn where the axis reaches it.
      ax: the two panels to draw in, without a legend; None makes a figure.

    Raises:
      ConfigError: no evaluations.
    """
    _require_some(history, "evaluations")
    figure, axes = _panels(2, (9.5, 3.9), ax)
    heads = list(history[-1]["beta_sh"])
    steps = [record["step"] for record in history]
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for head, look in head_styles(heads).items():
            each = _numbers([record["per_client"][metric][head] for record in history])
            known = each[:, np.isfinite(each).all(axis=0)]  # clients that have this accuracy
            if known.size:
                low, high = known.min(axis=1), known.max(axis=1)
                shade = {"color": look["color"], "alpha": 0.1, "linewidth": 0}
                axis.fill_between(steps, low, high, **shade)
            means = _numbers([record[metric][head] for record in history])
            own = {} if len(steps) < _FEW else {"marker": ""}
            axis.plot(steps, means, **{**look, **own}, label=head)
        axis.set_xlabel("step")
        accuracy_axis(axis, label)
        _fit(axis, chance)
    if ax is None:
        legend_above(figure, chance, Patch(color="0.9", label="range over clients"))
    return figure


def data_split(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Plots private samples by client and class [K, C], and the total of each client."""
    width, height = _heat_map_size(counts, class_names)
    figure = _sized(width + 2, height)
    axis, beside = figure.subplots(1, 2, sharey=True, width_ratios=(width, 1.8))
    # On a square-root scale few samples differ visibly from none.
    image = _heat_map(axis, counts, class_names, "{:.0f}", "Blues", PowerNorm(0.5, 0, counts.max()))
    edges = np.arange(len(counts) + 1) - 0.5
    beside.stairs(counts.sum(axis=1), edges, orientation="horizontal", fill=True)
    beside.set_xlabel("samples in all")
    beside.xaxis.set_major_locator(MaxNLocator(1 if figure.get_figwidth() < _NARROW else 3))
    beside.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.colorbar(image, ax=[axis, beside], label="samples", fraction=0.05, aspect=30)
    if paper_width() is None:
        figure.suptitle("Private samples of each client")
    return figure


def per_class(summary: Record, class_names: Sequence[str]) -> Figure:
    """Plots the final test accuracy by client and class: the main head above the last one."""
    shown = first_and_last(list(summary["beta_sh"]))
    panels = [
        _numbers([client["per_class_accuracy"][head] for client in summary["per_client"]])
        for head in shown
    ]
    width, height = _heat_map_size(panels[0], class_names)
    figure = _sized(width, height * len(shown))
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, head, panel in zip(axes, shown, panels, strict=True):
        image = _heat_map(axis, panel, class_names, None, "viridis", Normalize(0, 1))
        axis.set_title(f"{plain(head)} head")
    figure.colorbar(image, ax=axes, label="test accuracy", fraction=0.05, aspect=30)
    return figure


def density(summary: Record, class_names: Sequence[str]) -> Figure:
    """Plots d, who is fit to teach which class: the true ratio, the main head, and the last head."""
    found = summary["density"]
    panels = {"true ratio": found["log_ratio"]} if "log_ratio" in found else {}
    for head in first_and_last(list(found["by_class"])):
        panels[f"{head} head"] = found["by_class"][head]
    values = {title: _numbers(panel) for title, panel in panels.items()}
    most = max(max(np.nanmax(np.abs(panel)) for panel in values.values()), 1e-6)
    width, height = _heat_map_size(next(iter(values.values())), class_names)
    figure = _sized(width, height * len(values))
    axes = figure.subplots(len(values), 1, squeeze=False)[:, 0]
    for axis, (title, panel) in zip(axes, values.items(), strict=True):
        image = _heat_map(axis, panel, class_names, "{:z.1f}", "RdBu_r", Normalize(-most, most))
        axis.set_title(title)
    label = "log density ratio, mean over test samples"
    figure.colorbar(image, ax=axes, label=label, fraction=0.05, aspect=30)
    return figure


def per_class_over_time(history: Sequence[Record]) -> Figure:
    """Plots test accuracy by client and class at a few evaluations, with a row for each head.

    The maps stand along the axis of steps at their steps: gaps are as long as the time between.
    """
    records = _moments(history)
    heads = list(records[0]["per_client"]["per_class_accuracy"])
    num_clients, num_classes = np.shape(records[0]["per_client"]["per_class_accuracy"][heads[0]])
    height = 0.5 + min(max(0.16 * num_clients, 1.2), 4)
    figure = _sized(9.5, 0.5 + height * len(heads))
    axes = figure.subplots(len(heads), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    steps = np.array([record["step"] for record in records], float)
    narrowest = np.diff(steps).min() if len(steps) > 1 else 1.0
    room = num_classes + max(1, num_classes // 20)  # of a map and a gap
    starts = np.round((steps - steps[0]) / narrowest * room).astype(int)
    for axis, head in zip(axes, heads, strict=True):
        values = np.full((num_clients, starts[-1] + num_classes), np.nan)
        for start, record in zip(starts, records, strict=True):
            known = _numbers(record["per_client"]["per_class_accuracy"][head])
            values[:, start : start + num_classes] = known
        image = _image(axis, values, "viridis", Normalize(0, 1))
        for start, following in itertools.pairwise(starts):
            axis.axvspan(start + num_classes - 0.5, following - 0.5, color="white", linewidth=0)
        axis.set_yticks(range(0, num_clients, -(-num_clients // 8)))
        axis.set_ylabel(f"{head} head\nclient")
    middles = starts + (num_classes - 1) / 2
    axes[-1].set_xticks(middles, [f"{record['step']:,}" for record in records])
    axes[-1].set_xlabel("step; at each one, the classes in their order")
    figure.colorbar(image, ax=axes, label="test accuracy", fraction=0.05, aspect=30)
    return figure


def _moments(history: Sequence[Record]) -> list[Record]:
    """Returns a few evaluations, as equally far from each other as their steps allow."""
    steps = np.array([record["step"] for record in history])
    wanted = np.linspace(steps[0], steps[-1], _MOST_MOMENTS)
    nearest = np.unique([np.abs(steps - step).argmin() for step in wanted])
    apart = (wanted[1] - wanted[0]) / 2
    chosen = [nearest[-1]]
    for i in nearest[-2::-1]:  # from the end, which is always shown
        if steps[chosen[0]] - steps[i] >= apart:
            chosen.insert(0, i)
    return [history[i] for i in chosen]


def hops(summary: Record, chance: float | None = None, ax: Axes | None = None) -> Figure:
    """Plots each head's test accuracy by distance from the clients that hold a class.

    Args:
      summary: a run's summary.
      chance: the accuracy of a guess.
      ax: the panel to draw in, without a legend; None makes a figure.
    """
    rows = summary["by_hops"]
    width = min(2.6 + 0.9 * max(len(rows), 3), 9.5)
    figure, (axis,) = _panels(1, (width, 3.9), None if ax is None else [ax])
    for head, look in head_styles(list(summary["beta_sh"])).items():
        values = [row["accuracy"][head] for row in rows]
        axis.plot(range(len(rows)), values, **look, label=head)
    labels = [
        f"{'none' if row['hops'] is None else row['hops']}\n{counted(row['pairs'], 'pair')}"
        for row in rows
    ]
    axis.set_xticks(range(len(rows)), labels)
    axis.set_xlim(-0.4, len(rows) - 0.6)
    axis.set_xlabel("hops to who holds the class\nand how many pairs each mean is of")
    accuracy_axis(axis, "test accuracy")
    _fit(axis, chance)
    if ax is None:
        legend_above(figure, chance)
    return figure


def edges(by_edge: Mapping[str, np.ndarray]) -> Figure:
    """Plots how many messages each client received from each other one [K, K], by kind."""
    most = max(counts.max() for counts in by_edge.values())
    panels = {f"messages: {kind}": counts for kind, counts in by_edge.items()}
    return _pairs(panels, Normalize(0, max(most, 1)), "messages")


def followed(summary: Record) -> Figure:
    """Plots, for pairs of clients, shares of public samples: one taught the other; both agreed."""
    found, heads = summary["diagnostics"], list(summary["beta_sh"])
    learn = heads[-len(found["followed"]) :]
    panels = {
        f"who {head} learned from": _numbers(shares)
        for head, shares in zip(learn, found["followed"], strict=True)
    }
    panels["agreement"] = _numbers(found["agreement"])
    return _pairs(panels, Normalize(0, 1), "share of public samples")


def _pairs(panels: Mapping[str, np.ndarray], scale: Normalize, label: str) -> Figure:
    """Draws heat maps of values for pairs of clients [K, K], from client j to i at [i, j]."""
    names = [str(i) for i in range(len(next(iter(panels.values()))))]
    side = 0.36 * len(names) if len(names) ** 2 <= _MOST_ANNOTATED else 3.2
    width, height = max(side + 1.2, 3), max(side + 1, 2.4)
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure = _sized(across * width + 0.8, down * height)
    axes = figure.subplots(down, across, squeeze=False).reshape(-1)
    for axis, (title, values) in zip(axes, panels.items(), strict=False):
        image = _heat_map(axis, values, names, None, "Blues", scale)
        axis.set_xlabel("from client")
        axis.set_ylabel("to client")
        axis.set_title(textwrap.fill(title, _LONG) if figure.get_figwidth() < _NARROW else title)
    figure.colorbar(image, ax=axes, label=label, fraction=0.05, aspect=30)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def comparison(
    table: Sequence[Record], chance: float | None = None, ax: Sequence[Axes] | None = None
) -> Figure:
    """Plots the accuracies of every row's main and last head, mean ± std over seeds.

    Args:
      table: the rows.
      chance: the accuracy of a guess.
      ax: the two panels to draw in, without a legend; None makes a figure.

    Raises:
      ConfigError: no rows.
    """
    _require_some(table, "rows")
    row_height = 0.5 if paper_width() is None else 0.3
    figure, axes = _panels(2, (8.5, 1.4 + row_height * len(table)), ax, sharey=True)
    styles = row_styles([row["algorithm"] for row in table])
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for place, row in enumerate(table):
            heads = first_and_last(list(row[metric]))
            for head in heads:
                offset = 0.0 if len(heads) == 1 else -0.14 if head == heads[0] else 0.14
                hollow = {"markerfacecolor": "white"} if head == heads[0] else {}
                look = {**styles[row["algorithm"]], "linestyle": "none", "markersize": 5, **hollow}
                _point(axis, place + offset, row[metric][head], look)
        axis.set_yticks(range(len(table)), [plain(row["algorithm"]) for row in table])
        axis.set_ylim(len(table) - 0.5, -0.5)
        axis.set_xlim(0, 1.02)
        axis.set_xlabel(f"{_in_style(label)}\n± std over seeds")
        axis.grid(axis="x", alpha=0.3)
        _fit(axis, chance, vertical=False)
    if ax is None:
        _legend_of_heads(figure, chance)
    return figure


def _legend_of_heads(figure: Figure, chance: float | None) -> None:
    """Adds the legend of a comparison: markers of main heads are hollow."""
    key: dict[str, Any] = {"color": "black", "linestyle": "none", "marker": "o", "markersize": 5}
    entries = [
        Line2D([], [], **key, markerfacecolor="white", label="main head"),
        Line2D([], [], **key, label="last head"),
        *_chance_key(figure, chance),
    ]
    figure.legend(handles=entries, loc="outside upper left", ncols=3)


def _point(axis: Axes, y: float, value: Mapping[str, Any], style: Mapping[str, Any]) -> None:
    """Draws a mean accuracy ± its deviation, as far as it can be; nothing where there is no mean."""
    mean = value["mean"]
    if mean is None:
        return
    low, high = band(mean, value["std"] or 0.0)
    axis.errorbar(mean, y, xerr=[[mean - low], [high - mean]], capsize=3, **style)


def comparison_curves(
    histories: Histories, chance: float | None = None, ax: Sequence[Axes] | None = None
) -> Figure:
    """Plots the accuracy of every row's declared head over steps, mean ± std over seeds.

    Args:
      histories: the runs' histories by row.
      chance: the accuracy of a guess.
      ax: the two panels to draw in, without a legend; None makes a figure.

    Raises:
      ConfigError: no rows, or a row without runs or evaluations.
    """

    def draw(axis: Axes, runs: Sequence[Sequence[Record]], values: np.ndarray, style: Any) -> None:
        steps = [record["step"] for record in runs[0]]
        mean, std = values.mean(axis=0), _deviation(values)
        axis.plot(steps, mean, **style, markevery=max(1, len(steps) // 10))
        axis.fill_between(steps, *band(mean, std), color=style["color"], alpha=0.15, linewidth=0)

    several = any(len(runs) > 1 for runs in histories.values())
    shade = [Patch(color="0.85", label="± std over seeds")] if several else []
    return _curves(histories, draw, "step", chance, ax, *shade)


def communication_curves(
    histories: Histories, chance: float | None = None, ax: Sequence[Axes] | None = None
) -> Figure:
    """Plots the accuracy of every row's declared head against bytes sent so far, mean over seeds.

    A row that sends nothing is a dotted line at its final accuracy. The arguments are those of
    `comparison_curves`.
    """

    def draw(axis: Axes, runs: Sequence[Sequence[Record]], values: np.ndarray, style: Any) -> None:
        sent = _numbers([[record["bytes"] for record in run] for run in runs]).mean(axis=0)
        mean, speaks = values.mean(axis=0), sent > 0
        if speaks.any():
            axis.plot(
                sent[speaks], mean[speaks], **style, markevery=max(1, int(speaks.sum()) // 10)
            )
        else:
            label = f"{style['label']}: sends nothing"
            axis.axhline(mean[-1], color=style["color"], linestyle=":", label=label)

    figure = _curves(histories, draw, "bytes sent by all clients", chance, ax)
    for axis in figure.axes if ax is None else ax:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
        axis.xaxis.set_major_formatter(EngFormatter("B", sep=" "))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=small_text())
    return figure


def sends(histories: Histories) -> bool:
    """Returns whether any of these runs sends messages."""
    return any(run[-1]["bytes"] > 0 for runs in histories.values() for run in runs)


def _curves(
    histories: Histories,
    draw: Callable[[Axes, Sequence[Sequence[Record]], np.ndarray, dict[str, Any]], None],
    over: str,
    chance: float | None,
    ax: Sequence[Axes] | None,
    *further: Any,
) -> Figure:
    """Draws two panels, β_sh and β_priv of the head by which each row is judged.

    Args:
      histories: the runs' histories by row.
      draw: draws a row's accuracies [runs, evaluations] in a panel.
      over: the label of the horizontal axis.
      chance: the accuracy of a guess.
      ax: the two panels to draw in; None makes a figure.
      further: entries of the legend beside the rows.
    """
    _require_some(histories, "rows")
    for name, runs in histories.items():
        _require_some(runs, f"runs of {name}")
        for run in runs:
            _require_some(run, f"evaluations of {name}")
    figure, axes = _panels(2, (9, 3.6 + 0.19 * -(-len(histories) // 2)), ax)
    styles = row_styles(list(histories))
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for name, runs in histories.items():
            head = declared_head(metric, list(runs[0][-1][metric]))
            values = _numbers([[record[metric][head] for record in run] for run in runs])
            draw(axis, runs, values, {**styles[name], "label": plain(name)})
        axis.set_xlabel(over)
        short = label if paper_width() is None else SYMBOLS[metric]
        accuracy_axis(axis, f"{short}, {'main' if metric == 'beta_priv' else 'last'} head")
        _fit(axis, chance)
    if ax is None:
        legend_above(figure, chance, *further)
    return figure


def _require_some(given: Sized, what: str) -> None:
    if not len(given):
        raise ConfigError(f"there are no {what} to draw; give some.")


def _panels(
    count: int, size: tuple[float, float], ax: Sequence[Axes] | None, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Returns panels side by side; in a column of a paper, one above the other.

    Args:
      count: how many panels.
      size: width and height of the figure in inches, on a screen.
      ax: panels that are there already; None makes a figure.
      sharey: whether all have one vertical axis.
    """
    if ax is not None:
        if len(ax) != count:
            raise ConfigError(f"ax must hold {count} panel(s), not {len(ax)}.")
        return ax[0].get_figure(root=True), list(ax)  # type: ignore[return-value]
    width, height = size
    stacked = False
    if (paper := paper_width()) is not None:
        stacked = paper == WIDTHS["column"] and count > 1
        height = min(height, 2.6) * (count if stacked else 1)
        width = paper
    figure = Figure(figsize=(width, height), layout="constrained")
    down, across = (count, 1) if stacked else (1, count)
    axes = figure.subplots(down, across, sharey=sharey, squeeze=False)
    return figure, list(axes.reshape(-1))


def _sized(width: float, height: float) -> Figure:
    """Returns a figure of a size in inches on a screen; in a paper it is as wide as there is room."""
    if (paper := paper_width()) is not None:
        width, height = paper, height * float(np.clip(paper / width, _LEAST_SHRUNK, 1.0))
    return Figure(figsize=(width, height), layout="constrained")


def _in_style(label: str) -> str:
    """Returns a label as it is, or in a paper with its symbols as formulas."""
    if paper_width() is None:
        return label
    for symbol, formula in _FORMULAS.items():
        label = label.replace(symbol, formula)
    return label


def _deviation(values: np.ndarray) -> np.ndarray:
    """Returns the standard deviation (n − 1) over runs [runs, evaluations]; 0 for one run."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def legend_above(figure: Figure, chance: float | None = None, *further: Any) -> None:
    """Adds one legend for all panels above them, on the left, where a phone shows it too."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    every = [*handles, *further, *_chance_key(figure, chance)]
    labels += [entry.get_label() for entry in every[len(handles) :]]
    narrow = figure.get_figwidth() < _NARROW or max(map(len, labels)) > _LONG
    columns = 2 if narrow else min(len(labels), 4)
    figure.legend(every, labels, loc="outside upper left", ncols=columns)


def _fit(axis: Axes, chance: float | None, vertical: bool = True) -> None:
    """Lets an axis of accuracies begin where they do if all are high, and draws chance if it can.

    Curves that are all near 1 would lie on each other on an axis from 0. Scores of numbers may be
    below 0; the axis shows them down to −1.
    """
    bounds = axis.dataLim.intervaly if vertical else axis.dataLim.intervalx
    low = float(bounds[0]) if np.isfinite(bounds[0]) else 0.0
    if low > _HIGH or low < 0:
        begin = max(np.floor((low - 0.01) * 20) / 20, 0 if low > _HIGH else -1)
        (axis.set_ylim if vertical else axis.set_xlim)(begin, 1 + (1 - begin) * 0.02)
    if low <= _HIGH and chance is not None:
        line = axis.axhline if vertical else axis.axvline
        line(chance, **_CHANCE, gid="chance")


def _chance_key(figure: Figure, chance: float | None) -> list[Line2D]:
    """Returns an entry of a legend if chance is drawn in any panel."""
    drawn = any(line.get_gid() == "chance" for axis in figure.axes for line in axis.lines)
    return [Line2D([], [], **_CHANCE, label=f"chance, {chance:.2g}")] if drawn else []


def accuracy_axis(axis: Axes, label: str) -> None:
    """Sets the range, [0, 1] or from scores below 0, the grid and the label of a vertical axis."""
    axis.set_ylabel(_in_style(label))
    axis.set_ylim(0, 1.02)
    if axis.dataLim.intervaly[0] < 0:
        _fit(axis, None)
    axis.grid(alpha=0.3)


def _heat_map_size(values: np.ndarray, class_names: Sequence[str]) -> tuple[float, float]:
    """Returns width and height in inches of a heat map with its axes and its colour bar."""
    rows, columns = values.shape
    names = 0.06 * max(map(len, class_names)) if len(class_names) <= _MOST_NAMED else 0.0
    row = 0.32 if values.size <= _MOST_ANNOTATED else 0.18
    return min(2.2 + 0.5 * columns, 11), min(1.4 + row * rows, 10) + names


def _heat_map(
    axis: Axes,
    values: np.ndarray,
    class_names: Sequence[str],
    number: str | None,
    colours: str,
    scale: Normalize,
) -> AxesImage:
    """Draws values [K, C] as a heat map, with names and numbers if there is room."""
    image = _image(axis, values, colours, scale)
    axis.set_xlabel("class")
    axis.set_ylabel("client")
    if len(class_names) <= _MOST_NAMED:
        long = max(map(len, class_names)) > 3
        axis.set_xticks(
            range(len(class_names)),
            [plain(name) for name in class_names],
            rotation=45 if long else 0,
            rotation_mode="anchor",
            ha="right" if long else "center",
        )
    axis.set_yticks(range(0, len(values), -(-len(values) // _MOST_NAMED)))
    paper = paper_width()
    has_room = paper is None or paper > _LEAST_ANNOTATED * values.shape[1]
    if number is not None and values.size <= _MOST_ANNOTATED and has_room:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                r, g, b, _ = image.cmap(image.norm(value))
                dark = 0.3 * r + 0.59 * g + 0.11 * b < 0.5
                axis.text(
                    column,
                    row,
                    number.format(value),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "black",
                    in_layout=False,  # the text is inside the panel, and measuring it is slow
                )
    return image


def _image(axis: Axes, values: np.ndarray, colours: str, scale: Normalize) -> AxesImage:
    """Draws values [K, C] as colours; NaN is grey."""
    axis.set_facecolor("0.8")
    return axis.imshow(values, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")


def _numbers(values: Any) -> np.ndarray:
    """Returns an array of floats in which None becomes NaN."""
    return np.array(values, dtype=float)
