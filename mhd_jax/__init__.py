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
    from mhd_jax.engine.faults import Faults
    from mhd_jax.engine.loading import load
    from mhd_jax.engine.prepare import prepare
    from mhd_jax.engine.result import Result
    from mhd_jax.engine.simulate import simulate, simulate_many, simulate_seeds
    from mhd_jax.runs import callbacks
    from mhd_jax.runs.callbacks import Callback
    from mhd_jax.topology import Topology
    from mhd_jax.training import optim

_MODULES = {
    "algorithms": "mhd_jax.algorithms",
    "callbacks": "mhd_jax.runs.callbacks",
    "data": "mhd_jax.data",
    "exchange": "mhd_jax.exchange",
    "models": "mhd_jax.models",
    "optim": "mhd_jax.training.optim",
    "partition": "mhd_jax.data.partition",
    "pretext": "mhd_jax.data.pretext",
    "topology": "mhd_jax.topology",
}
_OBJECTS = {
    "Algorithm": "mhd_jax.core.types",
    "Batch": "mhd_jax.core.types",
    "Callback": "mhd_jax.runs.callbacks",
    "Clients": "mhd_jax.clients",
    "ConfigError": "mhd_jax.core.errors",
    "DivergedError": "mhd_jax.core.errors",
    "Faults": "mhd_jax.engine.faults",
    "InterruptedRun": "mhd_jax.core.errors",
    "LostProcessError": "mhd_jax.core.errors",
    "Result": "mhd_jax.engine.result",
    "State": "mhd_jax.core.types",
    "StorageError": "mhd_jax.core.errors",
    "Topology": "mhd_jax.topology",
    "load": "mhd_jax.engine.loading",
    "make_clients": "mhd_jax.clients",
    "prepare": "mhd_jax.engine.prepare",
    "simulate": "mhd_jax.engine.simulate",
    "simulate_many": "mhd_jax.engine.simulate",
    "simulate_seeds": "mhd_jax.engine.simulate",
}

__all__ = [
    "Algorithm",
    "Batch",
    "Callback",
    "Clients",
    "ConfigError",
    "DivergedError",
    "Faults",
    "InterruptedRun",
    "LostProcessError",
    "Result",
    "State",
    "StorageError",
    "Topology",
    "algorithms",
    "callbacks",
    "data",
    "exchange",
    "load",
    "make_clients",
    "models",
    "optim",
    "partition",
    "prepare",
    "pretext",
    "simulate",
    "simulate_many",
    "simulate_seeds",
    "topology",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = importlib.import_module(_MODULES[name])
    elif name in _OBJECTS:
        found = getattr(importlib.import_module(_OBJECTS[name]), name)
    elif f"{__name__}.{name}" in moved.MODULES:
        moved.warn_of(f"{__name__}.{name}")
        return importlib.import_module(moved.MODULES[f"{__name__}.{name}"])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


moved.install()
