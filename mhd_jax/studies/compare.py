"""`compare`: several algorithms on the same clients, graphs and seeds."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import networkx as nx

from mhd_jax.clients import Clients
from mhd_jax.core import multihost
from mhd_jax.core.calls import require_known, takes
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import folder_here
from mhd_jax.core.types import Algorithm
from mhd_jax.core.validation import require_seed
from mhd_jax.engine.host import listed
from mhd_jax.engine.origins import opened
from mhd_jax.engine.prepare import of_another, resolved_algorithm
from mhd_jax.engine.result import Result
from mhd_jax.engine.simulate import simulate, simulate_many
from mhd_jax.runs.finished import read_run
from mhd_jax.studies import folder as comparison_folder
from mhd_jax.studies.comparison import Comparison
from mhd_jax.studies.rows import stopped
from mhd_jax.topology import Topology

_OWN = ("topology", "clients", "algorithm", "seed", "workdir")  # what `compare` itself gives a run
_OF_THE_HOST = inspect.signature(simulate_many).parameters.keys() - {"runs", "workdirs"}
_OF_SIMULATE = [*(inspect.signature(simulate).parameters.keys() - {*_OWN}), "write_reports"]


def compare(
    algorithms: Mapping[str, Algorithm | str],
    topology: Any,
    clients_by_seed: Callable[[int], Clients] | Sequence[Clients],
    *,
    seeds: Sequence[int] = range(5),
    workdir: str | pathlib.Path | None = None,
    **settings: Any,
) -> Comparison:
    """Runs several algorithms on the same clients, graphs and seeds.

    Everything is checked before the first run trains. Runs of one shape share a program, as in
    `simulate_many`.

    Args:
      algorithms: the algorithms by the names of their rows; each is one from `mhd_jax.algorithms`,
        your own, or a name.
      topology: as for `simulate`; or a function of the seed that returns such a graph. If a function
        returns weights, its argument's name, `seed` or `step`, says which it is.
      clients_by_seed: a function of the seed, or a list of one for each seed.
      seeds: the seeds of training.
      workdir: the folder that gets ALGORITHM/seed_N for each run, table.json, table.md, plots and
        report.html, which says while runs go on how many have finished. The same call again resumes
        interrupted runs and only reads finished ones.
      **settings: the other arguments of `simulate`, for all runs, and `write_reports` as for
        `simulate_many`. An algorithm goes without what it cannot have: augmented public images,
        and faults where one client holds all the data.

    Returns:
      A `Comparison`.

    Raises:
      ConfigError: settings that cannot work, or a workdir with other content; and as `simulate`.
    """
    known = [*_OF_SIMULATE, *inspect.signature(compare).parameters]
    require_known("compare", settings, known, of_another)
    seeds = _checked_seeds(seeds)
    resolved = _checked_algorithms(algorithms)
    path = None if workdir is None else folder_here(workdir, "workdir")
    if path is not None:
        comparison_folder.require_own(path, list(algorithms), seeds)
    cases = [(name, place) for name in algorithms for place in range(len(seeds))]
    clients = _one_for_each(clients_by_seed, seeds)
    graphs = [_graph(topology, seed) for seed in seeds]
    settings["init"] = opened(settings.get("init"))  # once for all runs
    of_host = {name: settings.pop(name) for name in [*settings] if name in _OF_THE_HOST}
    runs = [
        {
            "topology": graphs[place],
            "clients": clients[place],
            "algorithm": resolved[name],
            "seed": seeds[place],
            **settings_for(resolved[name], settings),
        }
        for name, place in cases
    ]
    if path is None:
        found = simulate_many(runs, **of_host)
    else:
        # Imported late, as few programs write pages.
        from mhd_jax.studies.live_study import LiveStudy

        folders = {
            name: [comparison_folder.run_folder(path, name, seed) for seed in seeds]
            for name in algorithms
        }
        workdirs = [folders[name][place] for name, place in cases]
        with LiveStudy(path, folders) as live:
            of_host["callbacks"] = [*listed(of_host.get("callbacks", ())), live]
            found = simulate_many(runs, workdirs=workdirs, **of_host)
    results: dict[str, list[Result]] = {name: [] for name in algorithms}
    for (name, _), result in zip(cases, found, strict=True):
        results[name].append(cast(Result, result))  # a run that diverges has raised
    notes = stopped({name: [each.summary for each in of] for name, of in results.items()})
    comparison = Comparison(results, tuple(seeds), tuple(notes), path)
    if path is not None and multihost.is_main():
        _write(path, comparison)
    return comparison


def settings_for(algorithm: Algorithm, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run that is compared, without what its algorithm cannot have."""
    without: dict[str, Any] = {}
    if settings.get("augment_public") and not algorithm.may_augment_public:
        without["augment_public"] = False
    if settings.get("faults") is not None and algorithm.pooled:
        without["faults"] = None
    return {**settings, **without}


def _checked_seeds(seeds: Any) -> list[int]:
    try:
        found = list(seeds)
    except TypeError:
        raise ConfigError(f"seeds are a list or a range of integers, not {seeds!r}.") from None
    for seed in found:
        require_seed(seed)
    if not found or len(set(found)) < len(found):
        raise ConfigError("seeds must be some, each named once, like range(5).")
    return [int(seed) for seed in found]


def _checked_algorithms(algorithms: Any) -> dict[str, Algorithm]:
    if not isinstance(algorithms, Mapping) or not algorithms:
        raise ConfigError(
            'algorithms are a dictionary by name, like {"mhd": mhd.algorithms.mhd(), "alone": '
            '"isolated"}.'
        )
    for name in algorithms:
        if not isinstance(name, str) or not name.strip(" .") or not name.isprintable():
            raise ConfigError(f"the name of an algorithm is a word for its row, not {name!r}.")
    comparison_folder.require_folders(algorithms, "algorithms")
    return {name: resolved_algorithm(given) for name, given in algorithms.items()}


def _one_for_each(clients_by_seed: Any, seeds: Sequence[int]) -> list[Clients]:
    """Returns the clients of each seed."""
    if callable(clients_by_seed):
        if not takes(clients_by_seed, "seed"):
            raise ConfigError(
                "clients_by_seed is called with the seed: lambda seed: mhd.make_clients(..., "
                "seed=seed)."
            )
        found = [clients_by_seed(seed) for seed in seeds]
    elif isinstance(clients_by_seed, Sequence):
        found = list(clients_by_seed)
    else:
        raise ConfigError(
            "clients_by_seed is a function, like lambda seed: mhd.make_clients(..., seed=seed), or a "
            f"list of clients, one for each seed, not of type {type(clients_by_seed).__name__}."
        )
    if len(found) != len(seeds):
        raise ConfigError(
            f"clients_by_seed has clients for {len(found)} seeds, but there are {len(seeds)}; give "
            "one for each."
        )
    return found


def _graph(topology: Any, seed: int) -> Any:
    """Returns a seed's graph: a function of the seed is called, all else is for `simulate`."""
    if isinstance(topology, Topology | nx.Graph) or not callable(topology):
        return topology
    argument = next(iter(inspect.signature(topology).parameters), None)
    if argument == "step":
        return topology
    found = topology(seed)
    if argument != "seed" and not isinstance(found, Topology | nx.Graph | str):  # just weights
        raise ConfigError(
            "weights may be a function of the seed or of the step; call its argument seed or step."
        )
    return found


def _write(path: pathlib.Path, comparison: Comparison) -> None:
    """Writes the comparison's tables and its report into its folder."""
    runs = {
        name: [
            read_run(comparison_folder.run_folder(path, name, seed)) for seed in comparison.seeds
        ]
        for name in comparison.results
    }
    about = {**comparison_folder.settings_of(runs), "seeds": list(comparison.seeds)}
    comparison_folder.write(path, comparison.rows, runs, comparison.notes, about)
