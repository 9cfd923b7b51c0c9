"""The harness of studies: runs their cases with several seeds, then writes and shows the results.

A study brings its flags, its cases, its rows and its figures; all else is here.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import kept, launch, workdirs
from mhd_jax.cli.settings import RunSettings, simulate_cases
from mhd_jax.cli.watching import watchers
from mhd_jax.core import multihost
from mhd_jax.core.files import folder_here, make_folder
from mhd_jax.engine import memory
from mhd_jax.engine.host import HostSettings
from mhd_jax.runs import page, report, report_process
from mhd_jax.runs.callbacks import LiveReport
from mhd_jax.runs.decoration import decoration
from mhd_jax.runs.drawing import Figure
from mhd_jax.runs.records import write_json
from mhd_jax.studies import tables
from mhd_jax.studies.live_study import LiveStudy

_MOST_AT_ONCE = 64  # runs given to one call of simulate_cases
_FOR_DATA = 0.1  # the share of the memory for the runs' copies of the data

Summary = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration that a study runs with every seed.

    Attributes:
      name: its name beside the study's other cases, for progress bars and tables.
      folder: its folder in the study's.
      settings, algorithm: the settings and the algorithm of its runs.
      given: the flags that it sets, with their values as text, where the study varies flags.
    """

    name: str
    folder: str
    settings: RunSettings
    algorithm: mhd.Algorithm
    given: tuple[tuple[str, str], ...] = ()

    def run_folder(self, workdir: pathlib.Path, seed: int) -> pathlib.Path:
        """Returns the folder of the run with this seed."""
        return workdir / self.folder / f"seed_{seed}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a case with one seed: a run's summary, or why there is none.

    The reason is also that of a run that was stopped before its last step.
    """

    case: Case
    seed: int
    folder: pathlib.Path
    summary: Summary | None
    status: str = "finished"  # or "stopped", "diverged" or "refused"
    reason: str = ""


def workdir(default: str) -> pathlib.Path:
    """Returns the study's folder: --workdir, or else the default."""
    return folder_here(flags.FLAGS.workdir or default, "--workdir")


def run(
    cases: Sequence[Case], seeds: Sequence[int], workdir: pathlib.Path
) -> dict[str, list[Summary]]:
    """Runs every case with every seed; a run that has finished before is only read.

    Args:
      cases: the study's cases, of distinct names.
      seeds: seeds of data split and training.
      workdir: the folder that gets CASE/seed_N for each run.

    Returns:
      The runs' summaries, one for each seed, by the case's name.

    Raises:
      mhd.ConfigError: two cases of one name, or a case that cannot work, before the first one
        trains; or a folder that holds other runs.
    """
    _require_distinct(cases)
    callbacks = watchers()
    for case in cases:  # all of them, before the first trains for hours
        prepared = case.settings.prepared(case.algorithm, seeds[0], callbacks)
        folder = case.run_folder(workdir, seeds[0])
        if folder.exists() and not workdirs.overwrites():
            HostSettings(workdirs=[folder]).folders([prepared])  # refuses a run with other settings
    workdirs.make_room(workdir, [case.settings.continue_from for case in cases])
    found: dict[str, list[Summary]] = {case.name: [] for case in cases}
    batches = [[(case, seed) for seed in seeds] for case in cases]
    num_runs = sum(map(len, batches))
    with report_process.beside(num_runs) as reports, launch.last_words(reports.stop):
        for outcome in _simulated(batches, workdir):
            assert outcome.summary is not None  # one that diverges has raised
            found[outcome.case.name].append(outcome.summary)
    return found


def _require_distinct(cases: Sequence[Case]) -> None:
    """Raises `ConfigError` for two cases of one name, whose results would be one another's."""
    names: set[str] = set()
    for case in cases:
        if case.name in names:
            raise mhd.ConfigError(f"two cases are called {case.name!r}; name each once.")
        names.add(case.name)


def explore(cases: Sequence[Case], seeds: Sequence[int], workdir: pathlib.Path) -> list[Outcome]:
    """Runs every case with every seed, in one program for cases of one shape.

    A run that has finished before is only read. The other runs go on after one that diverges, or
    whose settings cannot work. Runs have no reports of their own.

    Args:
      cases: the study's cases, of distinct names.
      seeds: seeds of data split and training.
      workdir: the folder that gets CASE/seed_N for each run.

    Raises:
      mhd.ConfigError: two cases of one name, no case that can work with any seed, or a folder that
        holds other runs.
    """
    _require_distinct(cases)
    refused = refusals(cases, seeds)
    if refused and len(refused) == len(cases) * len(seeds):
        raise next(iter(refused.values()))
    workdirs.make_room(workdir, [case.settings.continue_from for case in cases])
    return attempt(cases, seeds, workdir, refused)


def refusals(cases: Sequence[Case], seeds: Sequence[int]) -> dict[tuple[str, int], mhd.ConfigError]:
    """Returns the errors of runs that cannot work, by their case's name and their seed."""
    found, callbacks = {}, watchers()
    for case, seed in itertools.product(cases, seeds):
        try:
            case.settings.check(case.algorithm, seed, callbacks)
        except mhd.ConfigError as error:
            found[case.name, seed] = error
    return found


def attempt(
    cases: Sequence[Case],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    refused: Mapping[tuple[str, int], mhd.ConfigError],
    place: str = "",
) -> list[Outcome]:
    """Runs the cases with the seeds that are not refused, as `explore` does.

    Args:
      cases, seeds, workdir: as for `explore`.
      refused: `refusals` of the cases.
      place: where these cases stand in a study of more, for progress bars and the page.
    """
    outcomes: dict[tuple[str, int], Outcome] = {}
    pending: dict[str, list[tuple[Case, int]]] = {}
    for case, seed in itertools.product(cases, seeds):
        if (case.name, seed) not in refused:
            pending.setdefault(_program(case), []).append((case, seed))
            continue
        folder, why = case.run_folder(workdir, seed), str(refused[case.name, seed])
        outcomes[case.name, seed] = Outcome(case, seed, folder, None, "refused", why)
    batches = [part for runs in pending.values() for part in _parts(runs)]
    options = {"keep_going": True, "write_reports": False}
    for outcome in _simulated(batches, workdir, place, **options):
        outcomes[outcome.case.name, outcome.seed] = outcome
    return [outcomes[case.name, seed] for case in cases for seed in seeds]


def keep(
    runs: Sequence[tuple[Case, int]], workdir: pathlib.Path, records: pathlib.Path
) -> list[Outcome]:
    """Runs each case with its seed by itself, and keeps a small record as soon as it has ended.

    A run that has a record is not run again, whatever the workdir holds. The other runs go on after
    one that diverges, whose record says so. Runs have no reports of their own.

    Args:
      runs: cases and their seeds, in the order in which they run.
      workdir: the folder that gets CASE/seed_N for each run.
      records: the folder of the records, see `mhd_jax.cli.kept`.

    Returns:
      The runs' outcomes; a summary is a part of the run's own, see `kept.record`.

    Raises:
      mhd.ConfigError: a case that cannot work, a record of a run with other settings, or a folder of
        records that cannot be made; all before the first run trains.
    """
    files = [kept.path(records, case.folder, seed) for case, seed in runs]
    callbacks = watchers()
    settings = [case.settings.check(case.algorithm, seed, callbacks) for case, seed in runs]
    make_folder(records, "folder of records")
    workdirs.make_room(workdir, [case.settings.continue_from for case, _ in runs])
    found = {file: kept.read(file, own) for file, own in zip(files, settings, strict=True)}
    left = [place for place, file in enumerate(files) if found[file] is None]
    batches = [[runs[place]] for place in left]
    outcomes = _simulated(batches, workdir, keep_going=True, write_reports=False)
    for place, outcome in zip(left, outcomes, strict=True):
        record = kept.record(
            outcome.case.name, outcome.seed, settings[place], outcome.summary, outcome.reason
        )
        found[files[place]] = kept.write(files[place], record)
    return [
        _kept(case, seed, workdir, found[file])
        for (case, seed), file in zip(runs, files, strict=True)
    ]


def _kept(case: Case, seed: int, workdir: pathlib.Path, record: Summary | None) -> Outcome:
    """Returns the outcome that a record tells."""
    assert record is not None
    folder = case.run_folder(workdir, seed)
    if record["status"] == "diverged":
        return Outcome(case, seed, folder, None, "diverged", record["reason"])
    return _ended(case, seed, folder, record)


def _simulated(
    batches: Sequence[Sequence[tuple[Case, int]]],
    workdir: pathlib.Path,
    place: str = "",
    **options: Any,
) -> Iterator[Outcome]:
    """Runs each batch of cases and seeds in one call, and yields the outcomes; writes live pages."""
    rows: dict[str, list[pathlib.Path]] = {}
    for case, seed in itertools.chain(*batches):
        rows.setdefault(case.name, []).append(case.run_folder(workdir, seed))
    live = LiveStudy(workdir, rows, place and f"Trials {place}.")
    pages = [live, LiveReport()] if options.get("write_reports", True) else [live]
    with live, launch.last_words(live.interrupt):
        for number, batch in enumerate(batches, 1):
            names = list(dict.fromkeys(case.name for case, _ in batch))
            label = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}, {len(batch)} runs"
            folders = [case.run_folder(workdir, seed) for case, seed in batch]
            results = simulate_cases(
                [(case.settings, case.algorithm, seed) for case, seed in batch],
                folders,
                [*pages, *watchers(f"[{place or f'{number}/{len(batches)}'}] {label}")],
                **options,
            )
            for (case, seed), folder, result in zip(batch, folders, results, strict=True):
                yield _outcome(case, seed, folder, result)


def _outcome(
    case: Case, seed: int, folder: pathlib.Path, result: mhd.Result | mhd.DivergedError
) -> Outcome:
    """Returns the outcome of a run that has just ended."""
    if isinstance(result, mhd.DivergedError):
        return Outcome(case, seed, folder, None, "diverged", str(result))
    return _ended(case, seed, folder, result.summary)


def _ended(case: Case, seed: int, folder: pathlib.Path, summary: Summary) -> Outcome:
    """Returns the outcome of a run that has come to its end, or was stopped before."""
    why = summary.get("stopped_because", "")
    return Outcome(case, seed, folder, summary, summary["status"], why)


def _program(case: Case) -> str:
    """Returns a key that is equal for cases that may share a program: no numbers, data, graph."""

    def kind(value: Any) -> Any:
        return value != 0 if isinstance(value, float) else value

    settings = dataclasses.replace(
        case.settings, topology="", topology_options=(), partition=mhd.partition.iid()
    )
    own = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    optimizer = settings.optimizer
    own["optimizer"] = type(optimizer), {k: kind(v) for k, v in vars(optimizer).items()}
    numbers = {k: kind(v) for k, v in case.algorithm.hyperparameters.items()}
    return repr((case.algorithm.name, numbers, own))


def _parts(runs: Sequence[tuple[Case, int]]) -> list[Sequence[tuple[Case, int]]]:
    """Splits runs that may share a program into as many as go into one call, by their data."""
    data = max(runs[0][0].settings.data_bytes(), 1)
    most = max(1, min(_MOST_AT_ONCE, int(_FOR_DATA * memory.capacity_bytes() // data)))
    return [runs[start : start + most] for start in range(0, len(runs), most)]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a study: its headings, its lines of cells, and sentences to stand below it.

    The title is for the terminal and the page. A line's first cell may be empty where it is the one
    above.
    """

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    title: str | None = None
    notes: Sequence[str] = ()


def publish(
    workdir: pathlib.Path,
    content: Any,
    shown: Sequence[Table],
    figures: Mapping[str, Callable[[], Figure]],
    name: str = "table",
    page_folder: pathlib.Path | None = None,
) -> None:
    """Writes and prints a study's results; only the first of several processes does.

    Args:
      workdir: the study's folder.
      content: what NAME.json gets.
      shown: the tables, which the terminal, NAME.md and the page get.
      figures: functions that make figures, by the names of their files.
      name: the name of both files.
      page_folder: the folder that gets the page, `report.html`, if it is there; by default the workdir.
    """
    page_folder = page_folder or workdir
    drawn: Mapping[str, Any] = {}
    if multihost.is_main():
        write_json(workdir / f"{name}.json", content)
        parts = []
        for table in shown:
            parts.append(tables.markdown(table.headings, table.lines))
            if table.notes:
                parts.append("".join(f"{note}\n" for note in table.notes))
        (workdir / f"{name}.md").write_text("\n".join(parts), encoding="utf-8")
        drawn = report.save(workdir, figures)
        if page_folder.is_dir():
            with decoration(f"the page of {page_folder}", "All else is there."):
                report.write_study(page_folder, [_on_page(table) for table in shown], drawn)
    console = launch.console()
    for table in shown:
        console.print(tables.rich(table.headings, table.lines, table.title))
        for note in table.notes:
            console.print(note, markup=False, soft_wrap=True)  # a command can be copied
    console.print(f"table: {workdir / name}.md", markup=False, soft_wrap=True)
    for stem in (stem for stem, figure in drawn.items() if figure is not None):
        console.print(f"plot: {workdir / stem}.png", markup=False, soft_wrap=True)
    if page_folder.is_dir():
        launch.tell_report(page_folder)


def _on_page(table: Table) -> tuple[page.Table, Sequence[str]]:
    """Returns a table as a page has it, whose lines each name their row, and its notes."""
    lines, row = [], ""
    for first, *others in table.lines:
        row = first or row
        lines.append([page.Cell(row), *map(page.of_text, others)])
    return page.Table(table.title or "results", table.headings, lines), table.notes
