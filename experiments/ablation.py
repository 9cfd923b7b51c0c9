r"""Compares MHD with its ablations, seed by seed, to measure what each part contributes.

  python -m experiments.ablation --seeds=5 --workdir=runs/ablation

The base case is MHD with the flags given (those of experiments.train); each other case changes one
flag, as --vary names them (by default ablations of the paper, and a few more). Beside the table of
accuracies stand the orderings that the MHD paper claims, as differences between runs of the same
seed with their 95 % confidence intervals. The folder gets results.csv, results.jsonl, table.md,
table.json and two plots; the same command again resumes an interrupted study.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from absl import flags

import mhd_jax as mhd
from experiments import cases, launch, seed_flags, sweep, tables
from experiments import flags as run_flags
from experiments.cases import Outcome
from mhd_jax.core.files import folder_here
from mhd_jax.runs.drawing import Figure

_CASES = (
    "algorithm=isolated,naive",
    "num_aux_heads=1,2,4",
    "target_selection=random,mean",
    "nu_emb=0,1",
    "nu_aux=0.1,1",
    "num_targets=2,all",
    "include_self=false",
    "same_level=true",
    "label_smoothing=0",
    "public_fraction=0.02,0.05",
)
flags.declare_key_flag("vary")  # defined by experiments.sweep
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(launch)
_EVAL_EVERY = 1000  # seldom, as only final accuracies are compared

_MHD = "base"


@dataclasses.dataclass(frozen=True)
class Quantity:
    """An accuracy of a case: that of the head with this name, or of the last one ("last")."""

    case: str
    metric: str
    head: str

    def of(self, summary: Any) -> float | None:
        """Returns the quantity's value in a run; None if the run has no such head."""
        heads = summary[self.metric]
        value: float | None = heads.get(list(heads)[-1] if self.head == "last" else self.head)
        return value


@dataclasses.dataclass(frozen=True)
class Ordering:
    """A claim that one quantity is larger than another, or at least as large."""

    claim: str
    larger: Quantity
    smaller: Quantity


def orderings(num_aux_heads: int) -> list[Ordering]:
    """Returns the MHD paper's claims that an ablation can test, and two on naive distillation."""

    def sh(case: str, head: str = "last") -> Quantity:
        return Quantity(case, "beta_sh", head)

    def priv(case: str, head: str = "main") -> Quantity:
        return Quantity(case, "beta_priv", head)

    isolated, naive = "algorithm=isolated", "algorithm=naive"
    ranks = ["main", *(f"aux_{k}" for k in range(1, num_aux_heads + 1))]
    sizes = {m: f"num_aux_heads={m}" for m in range(1, num_aux_heads + 3)}
    sizes[num_aux_heads] = _MHD
    return [
        Ordering("1. β_sh: the last head over isolated", sh(_MHD), sh(isolated)),
        Ordering("1. β_priv: the main head over isolated", priv(_MHD), priv(isolated)),
        *(
            Ordering(f"2. β_sh: {high} over {low}", sh(_MHD, high), sh(_MHD, low))
            for low, high in itertools.pairwise(ranks)
        ),
        *(
            Ordering(f"2. β_priv: {low} over {high}", priv(_MHD, low), priv(_MHD, high))
            for low, high in itertools.pairwise(ranks)
        ),
        *(
            Ordering(
                f"2. β_sh of the last head: m = {m + 1} over m = {m}",
                sh(sizes[m + 1]),
                sh(sizes[m]),
            )
            for m in range(1, num_aux_heads + 1)
        ),
        Ordering(
            "3. β_sh: confident over random selection", sh(_MHD), sh("target_selection=random")
        ),
        Ordering("3. β_sh: with over without embeddings", sh(_MHD), sh("nu_emb=0")),
        Ordering("β_sh: the last head over naive distillation", sh(_MHD), sh(naive, "main")),
        Ordering("β_priv: the main head over naive distillation", priv(_MHD), priv(naive)),
    ]


def margins(outcomes: Sequence[Outcome], claims: Sequence[Ordering]) -> list[dict[str, Any]]:
    """Returns each claim's margin, the difference between runs of the same seed.

    A row holds the mean over seeds, its interval, the number of seeds, and the number of seeds in
    which the difference is positive ("holds_in").
    """
    found = {(o.case.name, o.seed): o.summary for o in outcomes if o.summary is not None}
    seeds = list(dict.fromkeys(o.seed for o in outcomes))
    rows = []
    for claim in claims:
        differences = []
        for seed in seeds:
            pair = [(q, found.get((q.case, seed))) for q in (claim.larger, claim.smaller)]
            values = [q.of(summary) for q, summary in pair if summary is not None]
            if len(values) == 2 and values[0] is not None and values[1] is not None:
                differences.append(values[0] - values[1])
        if differences:
            rows.append(
                {
                    "claim": claim.claim,
                    **cases.interval(differences),
                    "seeds": len(differences),
                    "holds_in": sum(difference > 0 for difference in differences),
                }
            )
    return rows


_HEADINGS = ("ordering", "margin", "in seeds")


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table's lines: claim, margin with its interval, seeds with positive margin."""
    found = []
    for row in rows:
        half = "" if row["half_width"] is None else f" ± {row['half_width']:.3f}"
        margin = f"{row['mean']:+.3f}{half}"
        found.append([row["claim"], margin, f"{row['holds_in']} of {row['seeds']}"])
    return found


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plots each claim's margin with its interval; a claim with a negative margin fails."""
    drawn = Figure(figsize=(8, 1 + 0.32 * len(rows)), layout="constrained")
    axis = drawn.subplots()
    for y, row in enumerate(rows):
        axis.errorbar(
            row["mean"], y, xerr=row["half_width"] or 0.0, color="black", fmt="o", capsize=3
        )
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(rows)), [row["claim"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("margin, mean over seeds with its 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    return drawn


def main() -> None:
    """Runs the ablation that the flags describe."""
    if flags.FLAGS["algorithm"].value != "mhd" or flags.FLAGS.grid:  # the sweep's flags
        raise mhd.ConfigError(
            "an ablation is of mhd, one flag at a time; leave --algorithm and --grid out, or take "
            "experiments.sweep."
        )
    axes = [cases.axis(text, "vary") for text in flags.FLAGS.vary or _CASES]
    sweep.check_axes(axes, "vary")
    found, notes = cases.read(cases.one_at_a_time(axes))
    workdir = folder_here(flags.FLAGS.workdir or "runs/ablation", "--workdir")
    seeds = seed_flags.values()
    outcomes = cases.carry_out(found, seeds, workdir)
    rows = cases.by_case(outcomes)
    notes += sweep.failures(outcomes)
    compared = margins(outcomes, orderings(flags.FLAGS.num_aux_heads))
    content = {"seeds": seeds, "rows": rows, "orderings": compared, "notes": notes}
    cells = lines(compared)
    markdown = f"{sweep.markdown(rows, notes, len(seeds))}\n{tables.markdown(_HEADINGS, cells)}"
    drawn = {"ablation": lambda: sweep.figure(rows, [])}
    if compared:
        drawn["orderings"] = lambda: figure(compared)
    cases.write(workdir, outcomes, content, markdown, drawn)
    console = launch.console()
    console.print(sweep.rich_table(rows, len(seeds)))
    if compared:
        title = "differences between runs of one seed, 95 % interval"
        console.print(tables.rich(_HEADINGS, cells, title))
    for note in notes:
        console.print(note, markup=False)
    console.print(f"tables: {workdir / 'table.md'}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    flags.FLAGS.set_default("eval_every", _EVAL_EVERY)
    launch.run(main, several_processes=True)
