"""Cases that differ in some flags, as `FLAG=VALUE,VALUE` names them, and the rows of their results."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from absl.testing import flagsaver

import mhd_jax as mhd
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli.study import Case, Outcome
from mhd_jax.core.commands import typed
from mhd_jax.runs.accuracies import METRICS
from mhd_jax.studies.folder import folder_name, require_folders
from mhd_jax.studies.over_seeds import accuracies, interval, spread

_OF_THE_SWEEP = (
    *("grid", "vary", "search", "space", "trials", "trials_at_once", "objective"),
    *("seeds", "seed", "workdir", "overwrite", "flagfile"),
)
_OF_THE_COMMAND = [name for name in _OF_THE_SWEEP if name != "seed"]  # a single run has a seed

Axis = tuple[str, tuple[str, ...]]  # a flag and its values, as text
Assignment = tuple[tuple[str, str], ...]  # flags and a value of each, as text
Row = dict[str, Any]


def axes(texts: Sequence[str], flag: str) -> list[Axis]:
    """Parses values of a flag: "FLAG=VALUE,VALUE", or "FLAG=VALUE;VALUE" if values hold commas.

    Raises:
      mhd.ConfigError: a text that cannot be read, or a flag that cannot be swept or is named twice.
    """
    found = [_axis(text, flag) for text in texts]
    names = [name for name, _ in found]
    for name in names:
        if name in _OF_THE_SWEEP:
            raise mhd.ConfigError(f"--{name} is the sweep's own; it cannot be in --{flag}.")
        if name not in run_flags.of_a_run():
            raise mhd.ConfigError(
                f"--{name} is the same for all runs of a sweep; give it by itself, not in --{flag}."
            )
        if names.count(name) > 1:
            raise mhd.ConfigError(f"--{name} is in two --{flag}; give all its values in one.")
    return found


def _axis(text: str, flag: str) -> Axis:
    name, equals, values = text.partition("=")
    name = name.strip().lstrip("-")
    found = tuple(v.strip() for v in values.split(";" if ";" in values else ",") if v.strip())
    if not (name and equals and found):
        raise mhd.ConfigError(
            f"cannot read --{flag}={text}; write it like --{flag}=nu_aux=0.1,0.3, with ; between "
            "values that hold commas."
        )
    if name not in flags.FLAGS:
        raise mhd.ConfigError(f"--{flag}={text}: there is no flag --{name}; see --help.")
    if len(set(found)) < len(found):
        raise mhd.ConfigError(f"--{flag}={text} names a value twice; name each once.")
    require_folders([f"{name}={value}" for value in found], f"--{flag}")
    return name, found


def grid(axes: Sequence[Axis]) -> list[Assignment]:
    """Returns all combinations of values; the last flag's values change fastest."""
    return list(itertools.product(*([(name, value) for value in values] for name, values in axes)))


def one_at_a_time(axes: Sequence[Axis]) -> list[Assignment]:
    """Returns the common setting, and one assignment for each value of each flag alone."""
    return [(), *(((name, value),) for name, values in axes for value in values)]


def read(assignments: Sequence[Assignment]) -> tuple[list[Case], list[str]]:
    """Returns the distinct cases of assignments of flags, and notes about omitted ones.

    A flag that a case's algorithm does not use is left out of the case, and so is an option that its
    graph does not use.

    Args:
      assignments: the flags that each case sets, with their values as text.

    Raises:
      mhd.ConfigError: a value that the flag does not take, or an option that no case's graph uses.
    """
    by_name: dict[str, Case] = {}
    for given in assignments:
        case = read_one(given)
        by_name.setdefault(case.name, case)  # names leave out what a run does not use
    cases: dict[str, Case] = {}
    for case in by_name.values():
        cases.setdefault(content(case), case)
    named = {name for given in assignments for name, _ in given}
    run_flags.require_used([case.settings for case in cases.values()], named)
    repeated = len(assignments) - len(cases)
    notes = [f"{repeated} combination(s) that repeat another were left out."] if repeated else []
    return list(cases.values()), notes


def content(case: Case) -> str:
    """Returns a text that is equal for cases whose runs are equal."""
    return repr((case.settings, case.algorithm.name, case.algorithm.hyperparameters))


def read_one(given: Assignment) -> Case:
    """Returns the case of the command line's flags with those that are given in their places.

    Raises:
      mhd.ConfigError: a value that a flag does not take.
    """
    with put(given):
        algorithm, unused = _algorithm()
        used = tuple(pair for pair in given if pair[0] not in unused)
        name = name_of(used)
        return Case(name, folder_name(name), run_flags.settings(strict=False), algorithm, used)


def name_of(given: Assignment) -> str:
    """Returns the name of the case of an assignment of flags."""
    return " ".join(f"{flag}={value}" for flag, value in given) or "base"


@contextlib.contextmanager
def put(given: Assignment) -> Iterator[None]:
    """Gives flags the values of an assignment for a while.

    Raises:
      mhd.ConfigError: a value that a flag does not take.
    """
    with flagsaver.flagsaver():
        for name, text in given:
            flag = flags.FLAGS[name]
            try:
                flag.present = 0  # replaces the command line's value
                flag.parse(text)
            except (flags.IllegalFlagValueError, ValueError) as error:
                raise mhd.ConfigError(f"--{name} does not take {text!r}: {error}") from error
            flag.using_default_value = False
            flag.present = 1
        yield


def _algorithm() -> tuple[mhd.Algorithm, list[str]]:
    """Returns the flags' algorithm, and the names of given flags that it or its graph does not use."""
    algorithm, unused = run_flags.algorithm(str(flags.FLAGS["algorithm"].value), strict=False)
    return algorithm, unused + run_flags.unused_by_topology()


def command(case: Case) -> str:
    """Returns the command line that runs a case by itself, with the first of its seeds."""
    with put(case.given):
        algorithm, unused = _algorithm()
        known = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
        given = {flag.name: flag for flag in known if flag.present and flag.name not in unused}
        texts = [flag.serialize() for name, flag in given.items() if name not in _OF_THE_COMMAND]
        texts += [
            f"--{name}={value}"
            for name, value in run_flags.EQUAL_TERMS.items()
            if name in algorithm.hyperparameters and name not in given
        ]
    return f"{typed('train')} {shlex.join(texts)}"


def tidy(outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns a row for each run and head; a run that did not finish has one without accuracies."""
    names = list(dict.fromkeys(flag for o in outcomes for flag, _ in o.case.given))
    rows: list[Row] = []
    for outcome in outcomes:
        given = dict(outcome.case.given)
        row: Row = {"case": outcome.case.name, **{name: given.get(name) for name in names}}
        row |= {"algorithm": outcome.case.algorithm.name, "seed": outcome.seed}
        row |= {"status": outcome.status, "reason": outcome.reason, "folder": str(outcome.folder)}
        summary = outcome.summary
        if summary is None:
            rows.append(row)
            continue
        for head in summary["beta_sh"]:
            accuracies = {metric: summary[metric][head] for metric in METRICS}
            if "validation" in summary:
                on = summary["validation"]
                accuracies |= {f"validation_{metric}": on[metric][head] for metric in METRICS}
            rows.append(
                {
                    **row,
                    "head": head,
                    **accuracies,
                    "total_bytes": summary["communication"]["total_bytes"],
                    "seconds_per_step": summary["timing"]["seconds_per_step"],
                }
            )
    return rows


def by_case(outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns a row for each case: accuracies by head over finished seeds, bytes, failures."""
    rows = []
    for _, each in itertools.groupby(outcomes, lambda outcome: outcome.case.name):
        own = list(each)
        case = own[0].case
        done = [outcome.summary for outcome in own if outcome.summary is not None]
        sent = [summary["communication"]["total_bytes"] for summary in done]
        rows.append(
            {
                "case": case.name,
                "given": dict(case.given),
                "algorithm": case.algorithm.name,
                "seeds": len(done),
                "failed": len(own) - len(done),
                **accuracies(done, interval),
                "total_bytes": spread(sent)["mean"],
            }
        )
    return rows


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a sentence for each case that has no result for some seeds."""
    by_reason: dict[tuple[str, str, str], list[int]] = {}
    for o in outcomes:
        if o.summary is None:
            by_reason.setdefault((o.case.name, o.status, o.reason), []).append(o.seed)
    said = {"refused": "was refused", "diverged": "diverged"}
    return [
        f"{name} {said[status]}, seed {', '.join(map(str, seeds))}: {reason}"
        for (name, status, reason), seeds in by_reason.items()
    ]


def stopped(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a sentence on how many runs were stopped before their last step, if any were."""
    count = sum(o.status == "stopped" for o in outcomes)
    if not count:
        return []
    return [
        f"{count} of {len(outcomes)} runs were stopped before their last step; results.csv says why."
    ]


def write_runs(workdir: pathlib.Path, outcomes: Sequence[Outcome]) -> None:
    """Writes results.csv and results.jsonl, with the rows of `tidy`."""
    rows = tidy(outcomes)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (workdir / "results.csv").write_text(text.getvalue(), encoding="utf-8")
    lines = (json.dumps({c: row.get(c) for c in columns}, ensure_ascii=False) for row in rows)
    (workdir / "results.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
