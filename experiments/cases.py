"""Cases that differ in some flags, each run with several seeds, for sweeps and ablations.

The module reads `FLAG=VALUE,VALUE`, runs cases jointly if they share a program, and makes the tidy
table of their results.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from absl import flags
from absl.testing import flagsaver

import mhd_jax as mhd
from experiments import flags as run_flags
from experiments.comparison import spread
from experiments.settings import RunSettings, simulate_cases
from experiments.watching import watchers
from mhd_jax.core import multihost
from mhd_jax.engine import memory
from mhd_jax.runs.drawing import Figure, save_figure
from mhd_jax.runs.figures import METRICS
from mhd_jax.runs.records import write_json

CONFIDENCE = 0.95
_MOST_AT_ONCE = 64  # runs given to one call of simulate_cases
_FOR_DATA = 0.1  # the share of the memory for the runs' copies of the data
_LONGEST_NAME = 120  # characters of a folder's name

Axis = tuple[str, tuple[str, ...]]  # a flag and its values, as text
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One assignment of values to the flags.

    Attributes:
      given: the flags that the case sets, with their values as text; flags at the common value are
        left out.
      settings, algorithm: the settings and the algorithm of the common flags with these changes.
    """

    given: tuple[tuple[str, str], ...]
    settings: RunSettings
    algorithm: mhd.Algorithm

    @property
    def name(self) -> str:
        """The case's name, made of the flags that it sets."""
        return " ".join(f"{flag}={value}" for flag, value in self.given) or "base"

    @property
    def folder(self) -> str:
        """The case's name as a folder name."""
        name = re.sub(r"[^\w.=,+-]+", "_", self.name)
        if len(name) <= _LONGEST_NAME:
            return name
        return f"{name[:_LONGEST_NAME]}_{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a case with one seed: a finished run's summary, or why there is none."""

    case: Case
    seed: int
    folder: pathlib.Path
    summary: Mapping[str, Any] | None
    status: str  # "finished", "diverged" or "refused"
    reason: str = ""


def axis(text: str, flag: str) -> Axis:
    """Parses "FLAG=VALUE,VALUE", or "FLAG=VALUE;VALUE" for values that contain commas.

    Raises:
      mhd.ConfigError: the text cannot be read; `flag` is the name of its flag, for the error.
    """
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
    return name, found


def grid(axes: Sequence[Axis]) -> list[tuple[tuple[str, str], ...]]:
    """Returns all combinations of values; the last flag's values change fastest."""
    return list(itertools.product(*([(name, value) for value in values] for name, values in axes)))


def one_at_a_time(axes: Sequence[Axis]) -> list[tuple[tuple[str, str], ...]]:
    """Returns the common setting, and one assignment for each value of each flag alone."""
    return [(), *(((name, value),) for name, values in axes for value in values)]


def read(
    assignments: Sequence[tuple[tuple[str, str], ...]],
) -> tuple[list[Case], list[str]]:
    """Returns the distinct cases of assignments of flags, and notes about omitted ones.

    A hyperparameter that a case's algorithm does not use is left out of the case, and so is an
    option that its graph does not use.

    Args:
      assignments: the flags that each case sets, with their values as text.

    Raises:
      mhd.ConfigError: a value that the flag does not take, or an option that no case's graph uses.
    """
    cases: dict[str, Case] = {}
    for given in assignments:
        case = _read_one(given)
        content = repr((case.settings, case.algorithm.name, case.algorithm.hyperparameters))
        cases.setdefault(content, case)
    named = {name for given in assignments for name, _ in given}
    used = {name for case in cases.values() for name, _ in case.settings.topology_options}
    for name in run_flags.TOPOLOGY_FLAGS:
        if name not in used and (name in named or flags.FLAGS[name].present):
            raise mhd.ConfigError(f"--{name} is not used by any of the graphs; leave it out.")
    repeated = len(assignments) - len(cases)
    notes = [f"{repeated} combination(s) that repeat another were left out."] if repeated else []
    return list(cases.values()), notes


def _read_one(given: Sequence[tuple[str, str]]) -> Case:
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
        name = str(flags.FLAGS["algorithm"].value)
        algorithm, unused = run_flags.algorithm(name, strict=False)
        unused += run_flags.unused_by_topology()
        used = tuple(pair for pair in given if pair[0] not in unused)
        return Case(used, run_flags.settings(strict=False), algorithm)


def carry_out(cases: Sequence[Case], seeds: Sequence[int], workdir: pathlib.Path) -> list[Outcome]:
    """Runs every case with every seed, in one program for cases of one shape.

    A run that has finished before is only read. The other runs go on after one that diverges, or
    whose settings cannot work.

    Args:
      cases: cases from `read`.
      seeds: seeds of data split and training.
      workdir: the folder that gets CASE/seed_N for each run.

    Raises:
      mhd.ConfigError: no case can work, or a folder holds other runs.
    """
    outcomes: dict[tuple[int, int], Outcome] = {}
    pending: dict[Any, list[tuple[int, int]]] = {}
    refusals = []
    for i, case in enumerate(cases):
        try:
            case.settings.check(case.algorithm, seeds[0])
        except mhd.ConfigError as error:
            refusals.append(error)
            for seed in seeds:
                folder = workdir / case.folder / f"seed_{seed}"
                outcomes[i, seed] = Outcome(case, seed, folder, None, "refused", str(error))
            continue
        pending.setdefault(_program(case), []).extend((i, seed) for seed in seeds)
    if len(refusals) == len(cases):
        raise refusals[0]
    batches = [
        part for runs in pending.values() for part in _split(runs, _at_once(cases[runs[0][0]]))
    ]
    for number, batch in enumerate(batches, 1):
        runs = [(cases[i], seed) for i, seed in batch]
        folders = [workdir / case.folder / f"seed_{seed}" for case, seed in runs]
        label = f"[{number}/{len(batches)}] {_label(runs)}"
        found = simulate_cases(
            [(case.settings, case.algorithm, seed) for case, seed in runs],
            folders,
            watchers(label),
            keep_going=True,
            write_reports=False,
        )
        for key, (case, seed), folder, result in zip(batch, runs, folders, found, strict=True):
            if isinstance(result, mhd.DivergedError):
                outcomes[key] = Outcome(case, seed, folder, None, "diverged", str(result))
            else:
                outcomes[key] = Outcome(case, seed, folder, result.summary, "finished")
    return [outcomes[i, seed] for i in range(len(cases)) for seed in seeds]


def _program(case: Case) -> str:
    """Returns a key that is equal for cases that may share a program: no numbers, data, graph."""

    def kind(value: Any) -> Any:
        return value != 0 if isinstance(value, float) else value

    settings = dataclasses.replace(
        case.settings, topology="", topology_options=(), partition=mhd.partition.iid()
    )
    own = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    own["optimizer"] = {k: kind(v) for k, v in dataclasses.asdict(settings.optimizer).items()}
    numbers = {k: kind(v) for k, v in case.algorithm.hyperparameters.items()}
    return repr((case.algorithm.name, numbers, own))


def _at_once(case: Case) -> int:
    """Returns how many runs of a case to give to one call, by the size of their data."""
    data = case.settings.data_bytes()
    return max(1, min(_MOST_AT_ONCE, int(_FOR_DATA * memory.capacity_bytes() // max(data, 1))))


def _split(runs: Sequence[Any], most: int) -> list[Sequence[Any]]:
    return [runs[start : start + most] for start in range(0, len(runs), most)]


def _label(runs: Sequence[tuple[Case, int]]) -> str:
    names = list(dict.fromkeys(case.name for case, _ in runs))
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}, {len(runs)} runs"


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


def interval(values: Sequence[float | None]) -> dict[str, float | None]:
    """Returns the mean, the standard deviation (n − 1) and the half-width of a 95 % interval.

    It is Student's confidence interval of the mean, over the known values (not None); entries are
    None if there are too few.
    """
    found, count = spread(values), sum(value is not None for value in values)
    std = found["std"]
    if std is None:
        return {**found, "half_width": None}
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return {**found, "half_width": float(quantile * std / np.sqrt(count))}


def by_case(outcomes: Sequence[Outcome]) -> list[Row]:
    """Returns a row for each case: accuracies by head over finished seeds, bytes, failures."""
    rows = []
    for name in dict.fromkeys(outcome.case.name for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.case.name == name]
        case = own[0].case
        done = [outcome.summary for outcome in own if outcome.summary is not None]
        row: Row = {"case": name, "given": dict(case.given), "algorithm": case.algorithm.name}
        row |= {"seeds": len(done), "failed": len(own) - len(done)}
        for metric in METRICS:
            heads = done[0][metric] if done else ()
            row[metric] = {h: interval([summary[metric][h] for summary in done]) for h in heads}
        sent = [summary["communication"]["total_bytes"] for summary in done]
        row["total_bytes"] = float(np.mean(sent)) if sent else None
        rows.append(row)
    return rows


def write(
    workdir: pathlib.Path,
    outcomes: Sequence[Outcome],
    content: Mapping[str, Any],
    markdown: str,
    drawn: Mapping[str, Callable[[], Figure]],
) -> None:
    """Writes results.csv, results.jsonl, table.json, table.md, and the figures by their names."""
    if not multihost.is_main():
        return
    rows = tidy(outcomes)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (workdir / "results.csv").write_text(text.getvalue(), encoding="utf-8")
    lines = (json.dumps({c: row.get(c) for c in columns}, ensure_ascii=False) for row in rows)
    (workdir / "results.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_json(workdir / "table.json", content)
    (workdir / "table.md").write_text(markdown, encoding="utf-8")
    for name, make in drawn.items():
        save_figure(make, workdir / name)
