"""mhd_jax: decentralized learning by distillation, simulated as pure JAX functions."""

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
from mhd_jax.engine.simulate import Result, simulate, simulate_many, simulate_seeds
from mhd_jax.runs import callbacks
from mhd_jax.runs.callbacks import Callback
from mhd_jax.topology.graphs import Topology
from mhd_jax.training import optim

__version__ = "0.1.0"

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
    "make_clients",
    "models",
    "optim",
    "partition",
    "pretext",
    "simulate",
    "simulate_many",
    "simulate_seeds",
    "topology",
]
