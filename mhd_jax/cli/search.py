"""The search of a sweep: Optuna proposes settings from a space, judged on validation samples.

Nothing of the search itself is saved. Optuna's proposals are a function of the seed and of the
values told so far, so that the same command asks for the same trials again: those whose runs have
finished are only read, and the search goes on where it was killed, as if it never had been.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from absl import flags

import mhd_jax as mhd
from mhd_jax.cli import cases, study, workdirs
from mhd_jax.cli.cases import Assignment, Axis
from mhd_jax.cli.watching import watchers
from mhd_jax.core import extras
from mhd_jax.core.errors import in_a_line
from mhd_jax.core.validation import require_validation
from mhd_jax.runs.accuracies import METRICS, by_metric
from mhd_jax.studies import over_seeds
from mhd_jax.studies.folder import folder_name
from mhd_jax.training.metrics import declared_head

_SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}
_DIGITS = 4  # of numbers that are tried, so that command lines and folders stay short

_SEARCH = flags.DEFINE_enum(
    "search",
    None,
    list(_SAMPLERS),
    "How --trials settings of a --space are proposed (extra search): by Optuna's tree-structured Parzen "
    "estimator, from what the trials before have reached, or at random.",
)
_SPACE = flags.DEFINE_multi_string(
    "space",
    [],
    "FLAG=LOW..HIGH, FLAG=LOW..HIGH:log or FLAG=VALUE,VALUE: a flag, and what --search may give it",
)
_TRIALS = flags.DEFINE_integer("trials", 20, "How many settings --search tries.", lower_bound=1)
_AT_ONCE = flags.DEFINE_integer(
    "trials_at_once",
    4,
    "How many settings --search proposes at a time: more share a program, fewer learn more from those before.",
    lower_bound=1,
)
_OBJECTIVE = flags.DEFINE_string(
    "objective",
    "beta_sh",
    "What --search maximises on the validation set (--validation_fraction), as a mean over seeds: beta_sh, "
    "beta_priv or one of --metrics, of a head like beta_sh/aux_1, or else of the last head (beta_priv: of the "
    "main head). With a - before it, it is minimised.",
)
_NUMBER = r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A proposed setting, and what came of it.

    Attributes:
      number: its place in the search, from 1.
      outcomes: the outcome of its case with each seed.
      values: the objective of each seed; None where the run did not finish, or it is not a number.
    """

    number: int
    outcomes: Sequence[study.Outcome]
    values: Sequence[float | None]

    @property
    def case(self) -> study.Case:
        """The setting as a case."""
        return self.outcomes[0].case

    @property
    def value(self) -> float | None:
        """The objective's mean over seeds; None if one of them has none."""
        known = [value for value in self.values if value is not None]
        return sum(known) / len(known) if len(known) == len(self.values) else None


def asked() -> bool:
    """Tells whether the flags describe a search.

    Raises:
      mhd.ConfigError: they describe only a part of one.
    """
    given = [
        f for f in ("space", "trials", "trials_at_once", "objective") if flags.FLAGS[f].present
    ]
    if given and _SEARCH.value is None:
        raise mhd.ConfigError(
            f"--{given[0]} is about --search; give --search=tpe, or leave it out."
        )
    if _SEARCH.value is not None and not _SPACE.value:
        raise mhd.ConfigError(
            "--search needs a --space, like --space=nu_aux=0.1..3:log or --space=num_aux_heads=1..4."
        )
    return _SEARCH.value is not None


def carry_out(seeds: Sequence[int], workdir: pathlib.Path) -> list[Trial]:
    """Runs the search that the flags describe, and returns its trials in their order.

    Raises:
      mhd.ConfigError: a space, an objective or settings that cannot work, or a folder that holds
        other runs.
    """
    optuna = extras.require("optuna")
    space = {axis[0]: _distribution(optuna, axis) for axis in _axes()}
    metric = _metric()
    base = cases.read_one(())
    run = base.settings.prepared(base.algorithm, seeds[0], watchers())
    require_validation("--search", len(run.clients.validation) > 0)
    workdirs.make_room(workdir, [base.settings.continue_from])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = getattr(optuna.samplers, _SAMPLERS[flags.FLAGS.search])(seed=seeds[0])
    direction = "minimize" if _is_minimised() else "maximize"
    optuna_study = optuna.create_study(sampler=sampler, direction=direction)
    trials: list[Trial] = []
    while len(trials) < _TRIALS.value:
        proposed = [
            optuna_study.ask(space) for _ in range(min(_AT_ONCE.value, _TRIALS.value - len(trials)))
        ]
        found = [_read(_as_text(each.params), base) for each in proposed]
        outcomes = _outcomes(found, seeds, workdir, done=len(trials))
        for asked, (case, _) in zip(proposed, found, strict=True):
            values = [_value(outcome, metric) for outcome in outcomes[case.name]]
            trial = Trial(len(trials) + 1, outcomes[case.name], values)
            failed = optuna.trial.TrialState.FAIL if trial.value is None else None
            optuna_study.tell(asked, trial.value, state=failed)
            trials.append(trial)
    return trials


def _read(given: Assignment, base: study.Case) -> tuple[study.Case, mhd.ConfigError | None]:
    """Returns a proposed case, and why there is none if its algorithm or its optimizer refuses it.

    In the place of one that is refused stands the base with its name.
    """
    try:
        return cases.read_one(given), None
    except mhd.ConfigError as error:
        name = cases.name_of(given)
        called = dict(given).get("algorithm", base.algorithm.name)
        algorithm = dataclasses.replace(base.algorithm, name=called)
        return study.Case(name, folder_name(name), base.settings, algorithm, given), error


def _outcomes(
    found: Sequence[tuple[study.Case, mhd.ConfigError | None]],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    done: int,
) -> dict[str, list[study.Outcome]]:
    """Runs the cases of some trials after those that are done, and returns outcomes by case."""
    by_name = {case.name: (case, error) for case, error in found}
    distinct = [case for case, _ in by_name.values()]
    refused = study.refusals([case for case, error in by_name.values() if error is None], seeds)
    refused |= {
        (name, seed): error
        for name, (_, error) in by_name.items()
        for seed in seeds
        if error is not None
    }
    label = f"{done + 1}–{done + len(found)} of {_TRIALS.value}"
    outcomes = study.attempt(distinct, seeds, workdir, refused, label)
    return {case.name: [each for each in outcomes if each.case is case] for case in distinct}


def best(trials: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the best value; None if all have failed."""
    return next(iter(_ranked(trials)), None)


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials with a value, the best one first; a setting comes once."""
    distinct = {trial.case.name: trial for trial in reversed(trials) if trial.value is not None}
    sign = 1 if _is_minimised() else -1
    return sorted(distinct.values(), key=lambda trial: (sign * (trial.value or 0), trial.number))


def content(trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns the search for table.json: how it was made, its trials, and the best setting."""
    chosen = best(trials)
    return {
        "search": {
            "sampler": _SEARCH.value,
            "optuna": extras.require("optuna").__version__,
            "objective": _OBJECTIVE.value,
            "space": dict(_axes()),
        },
        "trials": [
            {
                "trial": trial.number,
                "case": trial.case.name,
                "given": dict(trial.case.given),
                "status": "failed" if trial.value is None else "finished",
                "value": trial.value,
                "values": trial.values,
            }
            for trial in trials
        ],
        "best": chosen
        and {
            "trial": chosen.number,
            "case": chosen.case.name,
            "value": chosen.value,
            "command": cases.command(chosen.case),
        },
    }


def table(trials: Sequence[Trial], notes: Sequence[str]) -> study.Table:
    """Returns the table of settings by the objective; below are notes and the best one's command."""
    order = _ranked(trials)
    limits = over_seeds.OF_ACCURACIES if _metric()[0] in METRICS else over_seeds.OF_ALL
    lines = [
        [str(trial.number), trial.case.name, over_seeds.as_cell(about, limits=limits)]
        for trial in order
        for about in [over_seeds.interval(trial.values)]
    ]
    failed = sum(trial.value is None for trial in trials)
    said = [f"{failed} of {len(trials)} trials failed."] if failed else []
    if order:
        said.append(f"The best setting, alone:\n\n    {cases.command(order[0].case)}\n")
    heading = f"{_OBJECTIVE.value} on validation samples"
    return study.Table(("trial", "setting", heading), lines, notes=[*notes, *said])


def _axes() -> list[Axis]:
    found = cases.axes(_SPACE.value, "space")
    if "validation_fraction" in dict(found):
        raise mhd.ConfigError(
            "--validation_fraction says on what --search chooses; it cannot be in its --space."
        )
    return found


def _distribution(optuna: Any, axis: Axis) -> Any:
    """Returns the values that a flag may take: whole numbers, numbers, or one of several texts."""
    name, values = axis
    match = _RANGE.fullmatch(values[0]) if len(values) == 1 else None
    for text in match.groups()[:2] if match else values:
        with cases.put(((name, text),)):  # which refuses what the flag does not take
            pass
    if match is None:
        return optuna.distributions.CategoricalDistribution(values)
    *ends, log = match.groups()
    whole = all(re.fullmatch(r"[+-]?\d+", end) for end in ends)
    try:
        if whole and not isinstance(flags.FLAGS[name].parser, flags.FloatParser):
            return optuna.distributions.IntDistribution(*map(int, ends), log=log is not None)
        return optuna.distributions.FloatDistribution(*map(float, ends), log=log is not None)
    except ValueError as error:
        raise mhd.ConfigError(
            f"--space={name}={values[0]} is no range: {in_a_line(error)}"
        ) from error


def _as_text(params: dict[str, Any]) -> Assignment:
    """Returns proposed values as texts of their flags; numbers are rounded."""
    return tuple(
        (name, f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value))
        for name, value in params.items()
    )


def _is_minimised() -> bool:
    return _OBJECTIVE.value.startswith("-")


def _metric() -> tuple[str, str]:
    """Returns the objective's metric and head; "" is the head by which the metric is judged."""
    metric, _, head = _OBJECTIVE.value.removeprefix("-").partition("/")
    own = [name.rpartition(":")[2] for name in (flags.FLAGS.metrics or "").split(",") if name]
    known = [*METRICS, *own]
    if metric not in known:
        raise mhd.ConfigError(
            f"--objective={_OBJECTIVE.value}: there is no metric {metric!r}; choose among "
            f"{', '.join(known)}, or name it in --metrics."
        )
    return metric, head


def _value(outcome: study.Outcome, metric: tuple[str, str]) -> float | None:
    """Returns the objective of a run on its validation samples; None if it has none."""
    if outcome.summary is None:
        return None
    require_validation("--search", "validation" in outcome.summary)
    name, head = metric
    measured = by_metric(outcome.summary["validation"])
    if name not in measured:
        raise mhd.ConfigError(
            f"--objective={_OBJECTIVE.value}: {outcome.folder} holds a finished run that was not "
            "measured by it; begin anew with --overwrite, or choose another --workdir."
        )
    by_head = measured[name]
    chosen = head or declared_head(name, list(by_head))
    if chosen not in by_head:
        raise mhd.ConfigError(
            f"--objective={_OBJECTIVE.value}: {outcome.case.name} has no head {chosen!r}, but "
            f"{', '.join(by_head)}; leave the head out to take that by which runs are judged."
        )
    return by_head[chosen]
