r"""Asks the questions of the MHD paper on images of many classes, at the size of one machine.

  python -m experiments.paper --flagfile=experiments/presets/tiny_imagenet.flags --data_dir=DIR

The questions, each of --questions:

  main     isolated training, naive distillation, MHD (the paper's; with the most confident, the mean,
           or the mean by density ratios, of the whole neighbourhood), and supervised training on all
           data
  weights  weights of naive distillation, of auxiliary heads and of embeddings
  heads    the number of auxiliary heads
  others   FedMD, IDKD, Selective-FD and DS-FL
  labels   random primary labels; the same ones for all clients, which deals all samples alike
  graphs   accuracy by hops on a complete graph, a ring, two islands and a chain, where skew is inf
  models   one client of --other_model among those of --model, and the reverse
  pools    teachers from pools of earlier models
  gossip   DSGD with local momentum, QG-DSGDm-N and CCL
  pilots   short runs on validation data, to choose learning rates and weights by

Runs come one after the other, the questions in the order given, and all cases of a seed before the
next seed. --results gets CASE/seed_N.json as soon as a run has ended: small records, from which
alone tables.md, tables.json and figures/ are made (--tables makes them without running anything), and
the tables of --page, as experiments/RESULTS.md has them. A run that has a record is not run again,
and one that was interrupted goes on from --workdir.
Other flags are those of experiments.train.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from absl import flags

import mhd_jax as mhd
from experiments import filled_page, paper_cases, paper_tables
from mhd_jax.cli import algorithm_flag, launch, seed_flags, study  # noqa: F401
from mhd_jax.cli import flags as run_flags
from mhd_jax.core import multihost
from mhd_jax.core.files import folder_here

_QUESTIONS = flags.DEFINE_list(
    "questions", ["main"], f"What to ask, in this order: {', '.join(paper_cases.ASKED)}."
)
_ONLY = flags.DEFINE_list("only", [], "Which cases of these questions to run; by default all.")
_OTHER_SEEDS = flags.DEFINE_integer(
    "other_seeds",
    1,
    "How many seeds the questions beside main have; main has --seeds.",
    lower_bound=1,
)
_RESULTS = flags.DEFINE_string(
    "results", "experiments/results/paper", "Folder of the records, the tables and the figures."
)
_OTHER_MODEL = flags.DEFINE_string(
    "other_model", "lenet5", "A second backbone, beside --model, for the question about two models."
)
_PILOT_STEPS = flags.DEFINE_integer("pilot_steps", 1000, "Steps of a pilot.", lower_bound=1)
_TABLES = flags.DEFINE_bool("tables", False, "Whether to make tables and figures, and run nothing.")
_PAGE = flags.DEFINE_string(
    "page",
    None,
    "A Markdown file whose tables are made anew: those between <!-- made: RESULTS/TABLE --> and "
    "<!-- end --> on lines of their own, where RESULTS is the name of the folder of the records and TABLE a "
    "question, or graphs_hops.",
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(seed_flags)
flags.adopt_module_key_flags(launch)


def main() -> None:
    """Runs what has no record yet, and makes tables and figures of all records."""
    if flags.FLAGS["algorithm"].present:
        raise mhd.ConfigError("--algorithm is the study's own choice; leave it out.")
    questions = paper_cases.questions(run_flags.settings(), _OTHER_MODEL.value, _PILOT_STEPS.value)
    seeds = {question: _seeds(question) for question in questions}
    results = folder_here(_RESULTS.value, "--results")
    workdir = study.workdir("runs/paper")
    page = pathlib.Path(_PAGE.value) if _PAGE.value else None
    if page:
        filled_page.read(page, results.name)  # refused before hours of runs
    if _TABLES.value:
        _require_records(results)
    else:
        study.keep(_runs(questions, seeds), workdir, results)
    made = paper_tables.of_records(results, questions, seeds)
    if page and multihost.is_main():
        filled_page.fill(page, results.name, made.tables)
    paper_tables.publish(made, results, workdir)


def _require_records(results: pathlib.Path) -> None:
    if next(results.rglob("seed_*.json"), None) is None:
        raise mhd.ConfigError(
            f"{results} holds no record of a run; name the folder of the records, or leave out --tables."
        )


def _seeds(question: str) -> list[int]:
    return seed_flags.values()[: None if question == "main" else _OTHER_SEEDS.value]


def _runs(
    questions: Mapping[str, paper_tables.Groups], seeds: Mapping[str, Sequence[int]]
) -> list[tuple[study.Case, int]]:
    """Returns the runs that the flags choose, in their order."""
    run_flags.require_distinct("questions", _QUESTIONS.value)
    unknown = [name for name in _QUESTIONS.value if name not in questions]
    for name in filter(paper_cases.NEEDED.get, unknown):
        raise mhd.ConfigError(
            f"the question {name} needs {paper_cases.NEEDED[name]}; leave it out of --questions, or "
            "change these flags."
        )
    if unknown:
        raise mhd.ConfigError(
            f"--questions are some of {', '.join(questions)}, not {', '.join(unknown)}."
        )
    chosen = {
        question: {n: c for group in questions[question].values() for n, c in group.items()}
        for question in _QUESTIONS.value
    }
    names = list(dict.fromkeys(name for cases in chosen.values() for name in cases))
    unknown = [name for name in _ONLY.value if name not in names]
    if unknown:
        raise mhd.ConfigError(f"--only takes some of {', '.join(names)}, not {', '.join(unknown)}.")
    runs = {
        (case.folder, seed): (case, seed)
        for question, cases in chosen.items()
        for seed in seeds[question]
        for name, case in cases.items()
        if name in (_ONLY.value or names)
    }
    return list(runs.values())


if __name__ == "__main__":
    launch.run(main)
