r"""Compares MHD with its ablations, seed by seed, to measure what each part contributes.

  python -m experiments.ablation --seeds=5 --workdir=runs/ablation

The base case is MHD with the flags given (those of experiments.train); each other case changes one
flag, as --vary names them (by default ablations of the paper, and a few more). Beside the table of
accuracies stand the orderings that the MHD paper claims, as differences between runs of the same
seed with their 95 % confidence intervals. The folder gets results.csv, results.jsonl, table.md,
table.json and two plots; the same command again resumes an interrupted study.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import cases, launch, search, seed_flags, study
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.commands import sweep
from mhd_jax.runs.drawing import Figure
from mhd_jax.studies import over_seeds

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


class Ordering(NamedTuple):
    """A claim that one accuracy is larger than another, or at least as large.

    Attributes:
      claim: the claim in words.
      metric: "beta_sh" or "beta_priv".
      larger, smaller: the case and the head of each; the head "last" is the case's last one.
    """

    claim: str
    metric: str
    larger: tuple[str, str]
    smaller: tuple[str, str]


def orderings(num_aux_heads: int, target_selection: str) -> list[Ordering]:
    """Returns the MHD paper's claims that an ablation can test, and two on naive distillation.

    Args:
      num_aux_heads, target_selection: those of the base.
    """

    def sh(claim: str, larger: tuple[str, str], smaller: tuple[str, str]) -> Ordering:
        return Ordering(claim, "beta_sh", larger, smaller)

    def priv(claim: str, larger: tuple[str, str], smaller: tuple[str, str]) -> Ordering:
        return Ordering(claim, "beta_priv", larger, smaller)

    isolated, naive = ("algorithm=isolated", "main"), ("algorithm=naive", "main")
    main, last, random = (_MHD, "main"), (_MHD, "last"), ("target_selection=random", "last")
    ranks = [main, *((_MHD, f"aux_{k}") for k in range(1, num_aux_heads + 1))]
    sizes = [
        last if m == num_aux_heads else (f"num_aux_heads={m}", "last")
        for m in range(1, num_aux_heads + 2)
    ]
    pairs = list(itertools.pairwise(ranks))
    confident = []
    if target_selection == "most_confident":
        confident = [sh("3. β_sh: confident over random selection", last, random)]
    return [
        sh("1. β_sh: the last head over isolated", last, isolated),
        priv("1. β_priv: the main head over isolated", main, isolated),
        *(sh(f"2. β_sh: {high[1]} over {low[1]}", high, low) for low, high in pairs),
        *(priv(f"2. β_priv: {low[1]} over {high[1]}", low, high) for low, high in pairs),
        *(
            sh(f"2. β_sh of the last head: m = {m + 1} over m = {m}", more, fewer)
            for m, (fewer, more) in enumerate(itertools.pairwise(sizes), 1)
        ),
        *confident,
        sh("3. β_sh: with over without embeddings", last, ("nu_emb=0", "last")),
        sh("β_sh: the last head over naive distillation", last, naive),
        priv("β_priv: the main head over naive distillation", main, naive),
    ]


def margins(outcomes: Sequence[study.Outcome], claims: Sequence[Ordering]) -> list[dict[str, Any]]:
    """Returns each claim's margin, the difference between runs of the same seed.

    A row holds the mean over seeds, its interval, the number of seeds, and the number of seeds in
    which the difference is positive ("holds_in").
    """
    summaries = {(o.case.name, o.seed): o.summary or {} for o in outcomes}

    def accuracy(seed: int, metric: str, case: str, head: str) -> float | None:
        heads = summaries.get((case, seed), {}).get(metric, {})
        return heads.get(list(heads)[-1] if head == "last" and heads else head)

    rows = []
    for claim, metric, larger, smaller in claims:
        differences = []
        for seed in dict.fromkeys(o.seed for o in outcomes):
            high, low = (accuracy(seed, metric, *which) for which in (larger, smaller))
            if high is not None and low is not None:
                differences.append(high - low)
        if differences:
            about = over_seeds.interval(differences)
            holds_in = sum(difference > 0 for difference in differences)
            rows.append({"claim": claim, **about, "seeds": len(differences), "holds_in": holds_in})
    return rows


_HEADINGS = ("ordering", "margin", "in seeds")


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table's lines: claim, margin with its interval, seeds with positive margin."""
    found = []
    for row in rows:
        margin = over_seeds.as_cell({**row, "std": None}, "+", over_seeds.OF_DIFFERENCES)
        found.append([row["claim"], margin, f"{row['holds_in']} of {row['seeds']}"])
    return found


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plots each claim's margin with its interval; a claim with a negative margin fails."""
    drawn = Figure(figsize=(8, 1 + 0.32 * len(rows)), layout="constrained")
    axis = drawn.subplots()
    for y, row in enumerate(rows):
        over_seeds.draw_point(axis, y, row, over_seeds.OF_DIFFERENCES, color="black", fmt="o")
    axis.axvline(0, color="grey", linewidth=1)
    names = [row["claim"] for row in rows]
    over_seeds.name_rows(axis, names, "margin, mean over seeds with its 95 % interval")
    return drawn


def main() -> None:
    """Runs the ablation that the flags describe."""
    # The sweep's flags.
    if flags.FLAGS["algorithm"].value != "mhd" or flags.FLAGS.grid or search.asked():
        raise mhd.ConfigError(
            "an ablation is of mhd, one flag at a time; leave --algorithm, --grid and --search out, or "
            "take experiments.sweep."
        )
    axes = cases.axes(flags.FLAGS.vary or _CASES, "vary")
    workdir = study.workdir("runs/ablation")
    outcomes, content, table = sweep.carry_out(cases.one_at_a_time(axes), workdir)
    claims = orderings(flags.FLAGS.num_aux_heads, flags.FLAGS.target_selection)
    compared = margins(outcomes, claims)
    title = "differences between runs of one seed, 95 % interval"
    shown = [table, study.Table(_HEADINGS, lines(compared), title)]
    drawn = {"ablation": lambda: sweep.figure(content["rows"], [])}
    if compared:
        drawn["orderings"] = lambda: figure(compared)
    study.publish(workdir, {**content, "orderings": compared}, shown, drawn)


if __name__ == "__main__":
    flags.FLAGS.set_default("eval_every", _EVAL_EVERY)
    launch.run(main, several_processes=True)
