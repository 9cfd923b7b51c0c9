"""What people look at: figures, and self-contained HTML pages of a run or a comparison."""

from __future__ import annotations

import base64
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from mhd_jax.clients import Clients
from mhd_jax.data import statistics
from mhd_jax.nested import flat

METRICS = {"beta_sh": "β_sh (uniform labels)", "beta_priv": "β_priv (own labels)"}
_MOST_ANNOTATED = 160  # cells of a heat map that still have room for a number
_MOST_NAMED = 20  # classes or clients that still have room for their names

Record = Mapping[str, Any]


def write(
    folder: pathlib.Path, summary: Record, history: Sequence[Record], clients: Clients
) -> None:
    """Writes a finished run's figures and its `report.html`."""
    figures = {
        "accuracy": accuracy_figure(history, summary["algorithm"]),
        "data_split": data_split_figure(clients.label_counts(), clients.data.class_names),
        "per_class_accuracy": per_class_figure(summary, clients.data.class_names),
        "hops": hops_figure(summary),
    }
    by_edge = {
        kind: np.array(counts)
        for kind, counts in summary["communication"]["by_edge"].items()
        if np.ndim(counts) == 2
    }
    if by_edge:
        figures["edges"] = edges_figure(by_edge)
    if "diagnostics" in summary:
        figures["followed"] = followed_figure(summary)
    page = _template("run.html").render(
        summary=summary,
        settings=flat(summary["settings"], "."),
        figures=_save(folder, figures),
        statistics=statistics.describe(clients.label_counts()),
        samples=clients.role_counts(),
        class_names=clients.data.class_names,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def write_comparison(
    folder: pathlib.Path,
    table: Sequence[Record],
    histories: Mapping[str, Sequence[Sequence[Record]]],
    notes: Sequence[str],
    settings: Record,
) -> None:
    """Writes a comparison's figures and its `report.html`.

    Args:
      folder: where to.
      table: one row for each algorithm, from `experiments.compare`.
      histories: by algorithm, one history for each seed.
      notes: what a reader must know beside the figures.
      settings: the common settings.
    """
    figures = {
        "comparison": comparison_figure(table),
        "accuracy": comparison_curves(histories),
        "communication": communication_curves(histories),
    }
    page = _template("comparison.html").render(
        table=table,
        figures=_save(folder, figures),
        notes=notes,
        settings=flat(settings, "."),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def accuracy_lines(record: Record) -> list[tuple[Any, ...]]:
    """A table's lines (head, β_sh, β_priv) of a summary or a comparison's row.

    Then those of honest clients alone, where others misbehave, and of the consensus model.
    """
    lines = [(head, *(record[metric][head] for metric in METRICS)) for head in record["beta_sh"]]
    for head in record.get("honest", {}).get("beta_sh", ()):
        lines.append((f"{head}, honest", *(record["honest"][metric][head] for metric in METRICS)))
    if "consensus" in record:
        lines.append(("consensus", *(record["consensus"][metric]["main"] for metric in METRICS)))
    return lines


def head_colours(num_heads: int) -> list[Any]:
    """One colour for each head: black for the main one, then viridis by rank."""
    viridis = matplotlib.colormaps["viridis"]
    return ["black", *(viridis(x) for x in np.linspace(0.15, 0.85, max(num_heads - 1, 1)))]


def accuracy_figure(history: Sequence[Record], title: str) -> Figure:
    """β_sh and β_priv over steps: the mean over clients of each head, with the clients' range."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    heads = list(history[-1]["beta_sh"])
    steps = [record["step"] for record in history]
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for head, colour in zip(heads, head_colours(len(heads)), strict=False):
            each = _numbers([record["per_client"][metric][head] for record in history])
            axis.fill_between(
                steps, each.min(axis=1), each.max(axis=1), color=colour, alpha=0.1, linewidth=0
            )
            axis.plot(
                steps,
                _numbers([record[metric][head] for record in history]),
                color=colour,
                marker="." if len(steps) < 30 else None,
                label=head,
            )
        axis.set_xlabel("step")
        _accuracy_axis(axis, label)
    axes[0].legend(title="head", fontsize="small", loc="lower right")
    figure.suptitle(f"{title}: mean over clients (shaded: all clients)")
    return figure


def data_split_figure(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Private samples by client and class [K, C], and each client's in all."""
    width, height = _heat_map_size(counts, class_names)
    figure = Figure(figsize=(width + 2, height), layout="constrained")
    axis, beside = figure.subplots(1, 2, sharey=True, width_ratios=(width, 1.8))
    # Square roots tell few samples from none.
    image = _heat_map(axis, counts, class_names, "{:.0f}", "Blues", PowerNorm(0.5, 0, counts.max()))
    edges = np.arange(len(counts) + 1) - 0.5
    beside.stairs(counts.sum(axis=1), edges, orientation="horizontal", fill=True)
    beside.set_xlabel("samples in all")
    beside.xaxis.set_major_locator(MaxNLocator(3))
    beside.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.colorbar(image, ax=[axis, beside], label="samples", fraction=0.05, aspect=30)
    figure.suptitle("Private samples of each client")
    return figure


def per_class_figure(summary: Record, class_names: Sequence[str]) -> Figure:
    """Test accuracy by client and class at the end: the main head and the last one."""
    heads = list(summary["beta_sh"])
    shown = heads[:1] if len(heads) == 1 else [heads[0], heads[-1]]
    panels = [
        _numbers([client["per_class_accuracy"][head] for client in summary["per_client"]])
        for head in shown
    ]
    width, height = _heat_map_size(panels[0], class_names)
    figure = Figure(figsize=(width * len(shown), height), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, head, panel in zip(axes, shown, panels, strict=True):
        image = _heat_map(axis, panel, class_names, "{:.2f}", "viridis", Normalize(0, 1))
        figure.colorbar(image, ax=axis, label="accuracy")
        axis.set_title(f"{summary['algorithm']}: test accuracy, {head}")
    return figure


def hops_figure(summary: Record) -> Figure:
    """Test accuracy of every head by distance from the clients that hold a class."""
    rows = summary["by_hops"]
    figure = Figure(figsize=(1.8 + 0.9 * max(len(rows), 3), 3.6), layout="constrained")
    axis = figure.subplots()
    heads = list(summary["beta_sh"])
    for head, colour in zip(heads, head_colours(len(heads)), strict=False):
        values = [row["accuracy"][head] for row in rows]
        axis.plot(range(len(rows)), values, "o-", color=colour, label=head)
    labels = ["none" if row["hops"] is None else str(row["hops"]) for row in rows]
    axis.set_xticks(range(len(rows)), labels)
    axis.set_xlim(-0.4, len(rows) - 0.6)
    axis.set_xlabel("hops to who holds the class")
    _accuracy_axis(axis, "test accuracy")
    axis.legend(title="head", fontsize="small")
    return figure


def edges_figure(by_edge: Mapping[str, np.ndarray]) -> Figure:
    """How many messages each client got from each other one [K, K], kind by kind."""
    most = max(counts.max() for counts in by_edge.values())
    panels = {
        f"messages: {kind}": (counts, "{:.0f}", Normalize(0, max(most, 1)))
        for kind, counts in by_edge.items()
    }
    return _pairs_figure(panels)


def followed_figure(summary: Record) -> Figure:
    """Shares of public samples on which each client learned from each one, and on which they agreed."""
    found, heads = summary["diagnostics"], list(summary["beta_sh"])
    learn = heads[-len(found["followed"]) :]
    panels = {
        f"who {head} learned from": (_numbers(shares), "{:.2f}", Normalize(0, 1))
        for head, shares in zip(learn, found["followed"], strict=True)
    }
    panels["agreement"] = (_numbers(found["agreement"]), "{:.2f}", Normalize(0, 1))
    return _pairs_figure(panels)


def _pairs_figure(panels: Mapping[str, tuple[np.ndarray, str, Normalize]]) -> Figure:
    """Heat maps of pairs of clients [K, K], from j to i at [i, j]."""
    names = [str(i) for i in range(len(next(iter(panels.values()))[0]))]
    width, height = _heat_map_size(np.zeros((len(names),) * 2), names)
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(across * width, down * height), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).reshape(-1)
    for axis, (title, (values, number, scale)) in zip(axes, panels.items(), strict=False):
        image = _heat_map(axis, values, names, number, "Blues", scale)
        axis.set_xlabel("from client")
        axis.set_ylabel("to client")
        axis.set_title(title)
        figure.colorbar(image, ax=axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def comparison_figure(table: Sequence[Record]) -> Figure:
    """Main and last head of every algorithm, mean ± std over seeds."""
    figure = Figure(figsize=(10, 0.9 + 0.55 * len(table)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for row, entry in enumerate(table):
            heads = list(entry[metric])
            shown = {"main": heads[0]} if len(heads) == 1 else {"main": heads[0], "last": heads[-1]}
            for offset, (kind, head) in zip((-0.17, 0.17), shown.items(), strict=False):
                value = entry[metric][head]
                if value["mean"] is None:
                    continue
                colour = "black" if kind == "main" else head_colours(2)[1]
                y = row + (0 if len(shown) == 1 else offset)
                axis.errorbar(
                    value["mean"], y, xerr=value["std"] or 0.0, color=colour, fmt="o", capsize=3
                )
                axis.annotate(
                    f"{head} {value['mean']:.2f}",
                    (value["mean"], y),
                    xytext=(0, 5 if kind == "main" else -12),
                    textcoords="offset points",
                    ha="center",
                    fontsize="x-small",
                    color=colour,
                )
        axis.set_yticks(range(len(table)), [entry["algorithm"] for entry in table])
        axis.set_ylim(len(table) - 0.4, -0.6)
        axis.set_xlim(0, 1.05)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    seeds = table[0]["seeds"]
    figure.suptitle(f"Mean over clients and {seeds} seed{'s' * (seeds > 1)}, ± std over seeds")
    return figure


def comparison_curves(histories: Mapping[str, Sequence[Sequence[Record]]]) -> Figure:
    """Accuracy over steps of every algorithm's last head, mean ± std over seeds."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for name, runs, style in _styled(histories):
            head, values = _last_head(runs, metric)
            steps = [record["step"] for record in runs[0]]
            mean, std = values.mean(axis=0), values.std(axis=0)
            axis.plot(steps, mean, **style, label=f"{name} ({head})")
            axis.fill_between(
                steps, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0
            )
        axis.set_xlabel("step")
        _accuracy_axis(axis, label)
    _legend_beside(figure)
    return figure


def communication_curves(histories: Mapping[str, Sequence[Sequence[Record]]]) -> Figure:
    """Accuracy of every algorithm's last head against the bytes sent so far, mean over seeds."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for name, runs, style in _styled(histories):
            head, values = _last_head(runs, metric)
            sent = _numbers([[record["bytes"] for record in run] for run in runs]).mean(axis=0)
            mean, speaks = values.mean(axis=0), sent > 0
            if speaks.any():
                axis.plot(sent[speaks], mean[speaks], **style, label=f"{name} ({head})")
                axis.plot(sent[-1], mean[-1], "o", color=style["color"])
            else:
                axis.axhline(mean[-1], color=style["color"], linestyle=":", label=name)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(EngFormatter("B", sep=" "))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("bytes sent")
        _accuracy_axis(axis, label)
    _legend_beside(figure)
    return figure


def _legend_beside(figure: Figure) -> None:
    """One legend for all axes, which covers none."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside right upper")


def _styled(histories: Mapping[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Each algorithm with a colour and a line of its own."""
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(histories)))
    styles = ("-", "--", "-.")
    return [
        (name, runs, {"color": colour, "linestyle": styles[i % len(styles)]})
        for i, ((name, runs), colour) in enumerate(zip(histories.items(), colours, strict=True))
    ]


def _last_head(runs: Sequence[Sequence[Record]], metric: str) -> tuple[str, np.ndarray]:
    """The last head's name, and its accuracies [runs, evaluations]."""
    head = list(runs[0][-1][metric])[-1]
    return head, _numbers([[record[metric][head] for record in run] for run in runs])


def _accuracy_axis(axis: Axes, label: str) -> None:
    axis.set_ylabel(label)
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)


def _heat_map_size(values: np.ndarray, class_names: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches of a heat map, its axes and its colour bar."""
    rows, columns = values.shape
    names = 0.06 * max(map(len, class_names)) if len(class_names) <= _MOST_NAMED else 0.0
    return min(2.2 + 0.5 * columns, 14), min(1.4 + 0.35 * rows, 12) + names


def _heat_map(
    axis: Axes,
    values: np.ndarray,
    class_names: Sequence[str],
    number: str,
    colours: str,
    scale: Normalize,
) -> AxesImage:
    image = axis.imshow(values, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    axis.set_xlabel("class")
    axis.set_ylabel("client")
    if len(class_names) <= _MOST_NAMED:
        long = max(map(len, class_names)) > 3
        axis.set_xticks(
            range(len(class_names)),
            class_names,
            rotation=45 if long else 0,
            rotation_mode="anchor",
            ha="right" if long else "center",
        )
    if len(values) <= _MOST_NAMED:
        axis.set_yticks(range(len(values)))
    if values.size <= _MOST_ANNOTATED:
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
                )
    return image


def _numbers(values: Any) -> np.ndarray:
    """An array of floats in which None is NaN."""
    return np.array(values, dtype=float)


def _save(folder: pathlib.Path, figures: Mapping[str, Figure]) -> dict[str, str]:
    """Writes figures as PNG files, and returns them as data URIs for a page."""
    uris = {}
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        uris[name] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return uris


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mhd_jax"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["accuracy"] = lambda x: "–" if x is None else f"{x:.3f}"
    environment.filters["bytes"] = _bytes
    environment.filters["accuracy_lines"] = accuracy_lines
    return environment.get_template(name)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
