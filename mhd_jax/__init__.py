"""mhd_jax: decentralized learning by distillation, simulated as pure JAX functions.

Public names load when they are asked for, so that importing one thing loads little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mhd_jax.core import moved
from mhd_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from mhd_jax import algorithms, data, exchange, models, topology
    from mhd_jax.clients import Clients, make_clients
    from mhd_jax.core.errors import (
        ConfigError,
        DivergedError,
        InterruptedRun,
        LostProcessError,
        StorageError,
    )
    from mhd_jax.core.types import Algorithm, Batch, State
    from mhd_jax.data import partition, pretext
    from mhd_jax.engine import metrics
    from mhd_jax.engine.faults import Faults
    from mhd_jax.engine.loading import load
    from mhd_jax.engine.prepare import prepare
    from mhd_jax.engine.result import Result
    from mhd_jax.engine.simulate import simulate, simulate_many, simulate_seeds
    from mhd_jax.models.pretrained import pretrained
    from mhd_jax.runs import callbacks, figures
    from mhd_jax.runs.callbacks import Callback
    from mhd_jax.studies.compare import compare
    from mhd_jax.studies.plan import plan
    from mhd_jax.topology import Topology
    from mhd_jax.training import optim

_PLACES = {
    "Algorithm": "mhd_jax.core.types:Algorithm",
    "Batch": "mhd_jax.core.types:Batch",
    "Callback": "mhd_jax.runs.callbacks:Callback",
    "Clients": "mhd_jax.clients:Clients",
    "ConfigError": "mhd_jax.core.errors:ConfigError",
    "DivergedError": "mhd_jax.core.errors:DivergedError",
    "Faults": "mhd_jax.engine.faults:Faults",
    "InterruptedRun": "mhd_jax.core.errors:InterruptedRun",
    "LostProcessError": "mhd_jax.core.errors:LostProcessError",
    "Result": "mhd_jax.engine.result:Result",
    "State": "mhd_jax.core.types:State",
    "StorageError": "mhd_jax.core.errors:StorageError",
    "Topology": "mhd_jax.topology:Topology",
    "algorithms": "mhd_jax.algorithms",
    "callbacks": "mhd_jax.runs.callbacks",
    "compare": "mhd_jax.studies.compare:compare",
    "data": "mhd_jax.data",
    "exchange": "mhd_jax.exchange",
    "figures": "mhd_jax.runs.figures",
    "load": "mhd_jax.engine.loading:load",
    "make_clients": "mhd_jax.clients:make_clients",
    "metrics": "mhd_jax.engine.metrics",
    "models": "mhd_jax.models",
    "optim": "mhd_jax.training.optim",
    "partition": "mhd_jax.data.partition",
    "plan": "mhd_jax.studies.plan:plan",
    "prepare": "mhd_jax.engine.prepare:prepare",
    "pretext": "mhd_jax.data.pretext",
    "pretrained": "mhd_jax.models.pretrained:pretrained",
    "simulate": "mhd_jax.engine.simulate:simulate",
    "simulate_many": "mhd_jax.engine.simulate:simulate_many",
    "simulate_seeds": "mhd_jax.engine.simulate:simulate_seeds",
    "topology": "mhd_jax.topology",
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, _, attribute = _PLACES[name].partition(":")
        found: Any = importlib.import_module(module)
        globals()[name] = found = getattr(found, attribute) if attribute else found
        return found
    old = f"{__name__}.{name}"
    if old not in moved.MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    moved.warn_of(old, moved.MODULES[old])
    return importlib.import_module(moved.MODULES[old])


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


moved.install(moved.MODULES)
