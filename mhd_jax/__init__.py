"""mhd_jax: decentralized learning by distillation, simulated as pure JAX functions."""

from mhd_jax import algorithms, callbacks, data, exchange, models, optim, pretext, topology
from mhd_jax.callbacks import Callback
from mhd_jax.clients import Clients, make_clients
from mhd_jax.data import partition
from mhd_jax.errors import (
    ConfigError,
    DivergedError,
    InterruptedRun,
    LostProcessError,
    StorageError,
)
from mhd_jax.faults import Faults
from mhd_jax.simulate import Result, simulate, simulate_many, simulate_seeds
from mhd_jax.topology import Topology
from mhd_jax.types import Algorithm, Batch, State

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
