"""The algorithms, one file each; a new algorithm is one file and one entry of `ALGORITHMS`."""

from mhd_jax.algorithms.base import hyperparameters
from mhd_jax.algorithms.ccl import ccl
from mhd_jax.algorithms.distributed_distillation import distributed_distillation
from mhd_jax.algorithms.ds_fl import ds_fl
from mhd_jax.algorithms.fedavg import fedavg
from mhd_jax.algorithms.fedmd import fedmd
from mhd_jax.algorithms.fedproto import fedproto
from mhd_jax.algorithms.gossip import dsgd, qg_dsgd
from mhd_jax.algorithms.idkd import idkd
from mhd_jax.algorithms.isolated import isolated, supervised
from mhd_jax.algorithms.mhd import mhd, naive
from mhd_jax.algorithms.selective_fd import selective_fd

ALGORITHMS = {
    "mhd": mhd,
    "naive": naive,
    "distributed_distillation": distributed_distillation,
    "ccl": ccl,
    "dsgd": dsgd,
    "qg_dsgd": qg_dsgd,
    "idkd": idkd,
    "fedproto": fedproto,
    "fedavg": fedavg,
    "fedmd": fedmd,
    "selective_fd": selective_fd,
    "ds_fl": ds_fl,
    "isolated": isolated,
    "supervised": supervised,
}

__all__ = [
    "ALGORITHMS",
    "ccl",
    "distributed_distillation",
    "ds_fl",
    "dsgd",
    "fedavg",
    "fedmd",
    "fedproto",
    "hyperparameters",
    "idkd",
    "isolated",
    "mhd",
    "naive",
    "qg_dsgd",
    "selective_fd",
    "supervised",
]
