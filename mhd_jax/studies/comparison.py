"""`Comparison`: the runs of several algorithms with the same seeds, and what they say."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.shown import aligned, html_block, html_table, html_text
from mhd_jax.engine.frames import as_frame
from mhd_jax.engine.result import Result
from mhd_jax.runs.accuracies import by_metric
from mhd_jax.studies import over_seeds, tables, verdict
from mhd_jax.studies.differences import FEWEST_SEEDS, Difference, in_pairs
from mhd_jax.studies.rows import Row, caption, shown, summarise
from mhd_jax.training.metrics import SYMBOLS, declared_head

if TYPE_CHECKING:
    from mhd_jax.runs.drawing import Figure

_LATEX_SYMBOLS = {"beta_sh": r"$\beta_{\mathrm{sh}}$", "beta_priv": r"$\beta_{\mathrm{priv}}$"}


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
        one, other = (
            dict(zip(self.seeds, self._values(name, metric, own), strict=True))
            for name, own in zip((first, second), heads, strict=True)
        )
        found = in_pairs((first, second), metric, heads, (one, other))
        if isinstance(found, int):
            raise ConfigError(
                f"a test of {first} against {second} in {metric} needs at least {FEWEST_SEEDS} "
                f"seeds, but there are {found}; compare with more seeds."
            )
        return found

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
        from mhd_jax.runs import (  # importing matplotlib is slow, and only plots need it
            accuracies,
            drawing,
            figures,
        )

        first = next(iter(self.results.values()))[0].summary
        with drawing.style("paper", width):
            figure = figures.comparison(self.rows, accuracies.chance(first))
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
        summaries = {
            name: {seed: each.summary for seed, each in zip(self.seeds, of, strict=True)}
            for name, of in self.results.items()
        }
        return [caption(self.rows), *verdict.in_words(summaries), *self.notes, *folder]

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
        if len(self.seeds) < FEWEST_SEEDS or not others:
            return False
        return all(self.test(best, other, metric).verdict == "ahead" for other in others)


def _latex_cell(value: Mapping[str, float | None], bold: bool) -> str:
    if value["mean"] is None:
        return "--"
    mean = f"{value['mean']:.3f}"
    deviation = "" if value["std"] is None else rf" \pm {value['std']:.3f}"
    shown_mean = rf"\mathbf{{{mean}}}" if bold else mean
    return f"${shown_mean}{deviation}$"
