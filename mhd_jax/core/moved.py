"""The module names of version 0.1, which remain importable for one more version."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

from mhd_jax.core.warned import warn

MODULES = {
    "mhd_jax.adversaries": "mhd_jax.exchange.adversaries",
    "mhd_jax.answers": "mhd_jax.engine.answers",
    "mhd_jax.callbacks": "mhd_jax.runs.callbacks",
    "mhd_jax.checkpoint": "mhd_jax.runs.folder",
    "mhd_jax.checkpoints": "mhd_jax.runs.checkpoints",
    "mhd_jax.checks": "mhd_jax.core.validation",
    "mhd_jax.communication": "mhd_jax.exchange.messages",
    "mhd_jax.compression": "mhd_jax.exchange.compression",
    "mhd_jax.consoles": "mhd_jax.runs.consoles",
    "mhd_jax.contract": "mhd_jax.engine.contract",
    "mhd_jax.data.assignment": "mhd_jax.data.split_files",
    "mhd_jax.data.evaluation": "mhd_jax.engine.evaluation",
    "mhd_jax.data.folders": "mhd_jax.data.image_folders",
    "mhd_jax.data.lazy": "mhd_jax.data.lazy_images",
    "mhd_jax.data.preparation": "mhd_jax.data.preprocessing",
    "mhd_jax.data.prepared": "mhd_jax.data.tfds",
    "mhd_jax.data.statistics": "mhd_jax.data.partition_statistics",
    "mhd_jax.data.stream": "mhd_jax.engine.stream",
    "mhd_jax.decoration": "mhd_jax.runs.decoration",
    "mhd_jax.degenerate": "mhd_jax.engine.degenerate",
    "mhd_jax.delays": "mhd_jax.exchange.delays",
    "mhd_jax.dotted": "mhd_jax.runs.settings",
    "mhd_jax.drawing": "mhd_jax.runs.drawing",
    "mhd_jax.edges": "mhd_jax.exchange.diagnostics",
    "mhd_jax.ensembles": "mhd_jax.training.parameter_averaging",
    "mhd_jax.errors": "mhd_jax.core.errors",
    "mhd_jax.execution": "mhd_jax.core.client_axis",
    "mhd_jax.faults": "mhd_jax.engine.faults",
    "mhd_jax.figures": "mhd_jax.runs.figures",
    "mhd_jax.files": "mhd_jax.core.files",
    "mhd_jax.fingerprint": "mhd_jax.core.digests",
    "mhd_jax.fit": "mhd_jax.engine.memory",
    "mhd_jax.groups": "mhd_jax.training.groups",
    "mhd_jax.hops": "mhd_jax.topology.distances",
    "mhd_jax.hosts": "mhd_jax.core.multihost",
    "mhd_jax.label_sets": "mhd_jax.core.label_sets",
    "mhd_jax.locks": "mhd_jax.runs.locks",
    "mhd_jax.losses": "mhd_jax.training.losses",
    "mhd_jax.manifest": "mhd_jax.runs.manifest",
    "mhd_jax.memory": "mhd_jax.engine.memory",
    "mhd_jax.metrics": "mhd_jax.engine.metrics",
    "mhd_jax.modes": "mhd_jax.core.modes",
    "mhd_jax.nested": "mhd_jax.runs.settings",
    "mhd_jax.ops": "mhd_jax.models.conv",
    "mhd_jax.optim": "mhd_jax.training.optim",
    "mhd_jax.passes": "mhd_jax.training.passes",
    "mhd_jax.pools": "mhd_jax.exchange.teacher_pools",
    "mhd_jax.pretext": "mhd_jax.data.pretext",
    "mhd_jax.programs": "mhd_jax.engine.programs",
    "mhd_jax.projection": "mhd_jax.training.projection",
    "mhd_jax.random": "mhd_jax.core.random",
    "mhd_jax.report": "mhd_jax.runs.report",
    "mhd_jax.run": "mhd_jax.engine.prepare",
    "mhd_jax.schedules": "mhd_jax.topology.schedules",
    "mhd_jax.together": "mhd_jax.engine.joint_runs",
    "mhd_jax.types": "mhd_jax.core.types",
}


class _Finder(MetaPathFinder, Loader):
    """Finds modules by their old names, which get the new modules themselves."""

    def __init__(self, places: Mapping[str, str], category: type[Warning]):
        self.places, self.category = dict(places), category

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in self.places else None

    def exec_module(self, module: types.ModuleType) -> None:
        warn_of(module.__name__, self.places[module.__name__], self.category)
        sys.modules[module.__name__] = importlib.import_module(self.places[module.__name__])


def warn_of(old: str, new: str, category: type[Warning] = DeprecationWarning) -> None:
    """Warns that a module has a new name."""
    text = f"{old} is {new} now; the old name will go with the next version."
    warn(text, category)


def install(places: Mapping[str, str], category: type[Warning] = DeprecationWarning) -> None:
    """Makes modules importable by their old names.

    Args:
      places: the new names by the old ones.
      category: the warning that an old name gets.
    """
    if not any(isinstance(each, _Finder) and each.places == places for each in sys.meta_path):
        sys.meta_path.append(_Finder(places, category))
