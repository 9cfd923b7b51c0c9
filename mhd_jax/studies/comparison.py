"""`Comparison`: the runs of several algorithms with the same seeds, and what they say."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.shown import aligned, html_block, html_table, html_text
from mhd_jax.engine.frames import as_frame, by_metric
from mhd_jax.engine.result import Result
from mhd_jax.studies import over_seeds, tables
from mhd_jax.studies.rows import Row, caption, shown, summarise
from mhd_jax.training.metrics import OF_OWN_LABELS, SYMBOLS, declared_head

if TYPE_CHECKING:
    from mhd_jax.runs.drawing import Figure

_FEWEST_SEEDS = 3  # from two, Student's interval is up to 13 standard deviations wide
_ACCURACIES = ("beta_sh", *OF_OWN_LABELS)
_WIDTHS = {"column": 3.3, "page": 6.75}  # inches, of a two-column paper
_FONT_SIZE = 8  # points
_LATEX_SYMBOLS = {"beta_sh": r"$\beta_{\mathrm{sh}}$", "beta_priv": r"$\beta_{\mathrm{priv}}$"}


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
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    std: float
    interval: tuple[float, float]
    p_value: float
    verdict: str

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"{self.first} ({self.heads[0]}) − {self.second} ({self.heads[1]}) in {self.metric}: "
            f"{self.mean:+.3f} [{low:+.3f}, {high:+.3f}], p = {self.p_value:.2g}, "
            f"{len(self.seeds)} seeds: {self.verdict}"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """The outcome of `mhd_jax.compare`.

    Attributes:
      results: the `Result` of each seed, by the algorithm's name.
      seeds: the seeds.
      notes: sentences that a reader must know beside the numbers.
      folder: the folder of the runs and of the tables; None without a workdir.
    """

    results: Mapping[str, Sequence[Result]]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    folder: pathlib.Path | None = None

    @property
    def rows(self) -> list[Row]:
        """One row for each algorithm, with mean and standard deviation, as in `table.json`."""
        return [
            summarise(name, [result.summary for result in each])
            for name, each in self.results.items()
        ]

    def frame(self) -> Any:
        """Returns all values: `algorithm`, `seed`, `metric`, `head` and `value`, one a row.

        Returns:
          A pandas data frame; without pandas, a list of a dict for each row.
        """
        return as_frame(
            [
                {"algorithm": name, "seed": seed, "metric": metric, "head": head, "value": value}
                for name, each in self.results.items()
                for seed, result in zip(self.seeds, each, strict=True)
                for metric, heads in by_metric(result.summary).items()
                for head, value in heads.items()
            ]
        )

    def test(
        self, first: str, second: str, metric: str = "beta_sh", head: str | None = None
    ) -> Difference:
        """Tests whether one algorithm has higher values than another, seed by seed.

        Args:
          first, second: the names of the algorithms.
          metric: "beta_sh", "beta_priv", or another metric that the runs have.
          head: the head of both; None takes each one's declared head: for metrics on a client's
            own label distribution (β_priv, β_own) the main head, else the last one.

        Returns:
          The differences first − second, with their 95 % interval and p-value.

        Raises:
          ConfigError: no such algorithm, metric or head, or fewer than three seeds.
        """
        heads = self._head(first, metric, head), self._head(second, metric, head)
        both = [
            self._values(name, metric, own)
            for name, own in zip((first, second), heads, strict=True)
        ]
        pairs = {
            seed: a - b
            for seed, a, b in zip(self.seeds, *both, strict=True)
            if a is not None and b is not None
        }
        if len(pairs) < _FEWEST_SEEDS:
            raise ConfigError(
                f"a test of {first} against {second} in {metric} needs at least {_FEWEST_SEEDS} "
                f"seeds, but there are {len(pairs)}; compare with more seeds."
            )
        found = over_seeds.interval(list(pairs.values()))
        limits = over_seeds.OF_DIFFERENCES if metric in _ACCURACIES else over_seeds.OF_ALL
        mean, std, ends = found["mean"], found["std"], over_seeds.ends(found, limits)
        assert mean is not None and std is not None and ends is not None
        tie = ends[0] <= 0 <= ends[1]
        return Difference(
            first,
            second,
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

    def to_latex(self) -> str:
        """Returns a table for a paper, in LaTeX for the package booktabs.

        A row has an algorithm's mean ± standard deviation of β_sh of its last head and of β_priv
        of its main head. The highest mean is bold if its algorithm is ahead of all others by
        `test`; where it ties with one, or seeds are fewer than three, none is.
        """
        columns = {metric: self._latex_column(metric) for metric in SYMBOLS}
        headings = ["algorithm", *(_LATEX_SYMBOLS[metric] for metric in columns)]
        lines = [
            [tables.as_latex(name), *(column[name] for column in columns.values())]
            for name in self.results
        ]
        said = (
            f"% mean ± standard deviation over {len(self.seeds)} seed(s); β_sh of the last head, "
            "β_priv of the main head\n"
            "% bold: ahead of all others by Student's paired 95 % interval\n"
        )
        return said + tables.latex(headings, lines)

    def plot(self, width: str = "page") -> Figure:
        """Returns a matplotlib figure of the main and last heads' accuracies, mean ± std over seeds.

        Args:
          width: "column" (3.3 inches) or "page" (6.75 inches) of a two-column paper; text has
            8 points.

        Raises:
          ConfigError: another width.
        """
        if width not in _WIDTHS:
            raise ConfigError(f"width must be one of {', '.join(_WIDTHS)}, not {width!r}.")
        from mhd_jax.runs import (  # importing matplotlib is slow, and only plots need it
            drawing,
            figures,
        )

        with drawing.own_style():
            figure = figures.comparison(
                self.rows, _WIDTHS[width], row_height=0.3, stacked=width == "column"
            )
            for text in figure.findobj(drawing.Text):
                text.set_fontsize(_FONT_SIZE)
            figure.draw_without_rendering()  # creates all texts while the style is active
        return drawing.shown_in_notebooks(figure)

    def __repr__(self) -> str:
        headings, of_rows = shown(self.rows)
        lines = [line for lines in of_rows for line in lines]
        return "\n".join([self._title(), *aligned([headings, *lines]), *self._end()])

    def _repr_html_(self) -> str:
        headings, of_rows = shown(self.rows)
        table = html_table(headings, [line for lines in of_rows for line in lines])
        return html_block(self._title(), table, html_text("\n".join(self._end())))

    def _title(self) -> str:
        first = next(iter(self.results.values()))[0].summary
        return (
            f"Comparison on {first['dataset']}: {first['num_clients']} clients, "
            f"seeds {', '.join(map(str, self.seeds))}"
        )

    def _end(self) -> list[str]:
        folder = [] if self.folder is None else [f"folder: {self.folder}"]
        return [caption(self.rows), *self.notes, *folder]

    def _head(self, name: str, metric: str, head: str | None) -> str:
        """Returns the head that stands for an algorithm; the declared one if `head` is None."""
        if name not in self.results:
            raise ConfigError(
                f"there is no algorithm {name!r} in this comparison; choose one of "
                f"{', '.join(self.results)}."
            )
        metrics = by_metric(self.results[name][0].summary)
        if metric not in metrics:
            raise ConfigError(
                f"the runs of {name} have no metric {metric!r}; choose one of {', '.join(metrics)}."
            )
        heads = list(metrics[metric])
        if head is None:
            return declared_head(metric, heads)
        if head not in heads:
            raise ConfigError(f"{name} has no head {head!r}; choose one of {', '.join(heads)}.")
        return head

    def _values(self, name: str, metric: str, head: str) -> list[float | None]:
        return [by_metric(result.summary)[metric][head] for result in self.results[name]]

    def _latex_column(self, metric: str) -> dict[str, str]:
        """Returns each algorithm's cell for a metric."""
        found = {
            name: over_seeds.spread(self._values(name, metric, self._head(name, metric, None)))
            for name in self.results
        }
        means = {name: value["mean"] for name, value in found.items() if value["mean"] is not None}
        best = max(means, key=lambda name: means[name], default=None)
        if best is not None and not self._is_ahead_of_all(best, means, metric):
            best = None
        return {name: _latex_cell(value, name == best) for name, value in found.items()}

    def _is_ahead_of_all(self, best: str, names: Mapping[str, Any], metric: str) -> bool:
        others = [name for name in names if name != best]
        if len(self.seeds) < _FEWEST_SEEDS or not others:
            return False
        return all(self.test(best, other, metric).verdict == "ahead" for other in others)


def _latex_cell(value: Mapping[str, float | None], bold: bool) -> str:
    if value["mean"] is None:
        return "--"
    mean = f"{value['mean']:.3f}"
    deviation = "" if value["std"] is None else rf" \pm {value['std']:.3f}"
    shown_mean = rf"\mathbf{{{mean}}}" if bold else mean
    return f"${shown_mean}{deviation}$"
