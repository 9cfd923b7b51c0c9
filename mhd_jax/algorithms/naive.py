"""Naive distillation: MHD with no auxiliary heads and no embedding term.

    L_i = CE(z_i(x), y) + ν_naive · mean_x CE(softmax z_i(x), sg softmax z_q(x))

The single head serves the private labels and the neighbours at once: what auxiliary heads
are to be measured against.
"""

from __future__ import annotations

from mhd_jax.algorithms.base import factory, require
from mhd_jax.algorithms.mhd import mhd
from mhd_jax.core.types import Algorithm
from mhd_jax.exchange.selection import TargetSelection
from mhd_jax.training.parameter_averaging import Ensembles


@factory
def naive(
    nu_naive: float = 1.0,
    num_targets: int | str = 1,
    target_selection: str | TargetSelection = "most_confident",
    temperature: float = 1.0,
    public_batch: str = "shared",
    public_updates_stats: bool = True,
    pool_size: int = 0,
    pool_refresh: int = 200,
    teacher_delay: int = 0,
    compression: str = "none",
    ensembles: Ensembles | None = None,
    average_every: int = 10,
    label_smoothing: float = 0.1,
) -> Algorithm:
    """Naive distillation.

    Args:
      nu_naive: weight of the distillation.

    All others are as for `mhd`.
    """
    require(nu_naive >= 0, f"nu_naive must be at least 0, not {nu_naive}.")
    return mhd(
        num_aux_heads=0,
        nu_aux=nu_naive,
        nu_emb=0.0,
        num_targets=num_targets,
        target_selection=target_selection,
        temperature=temperature,
        public_batch=public_batch,
        public_updates_stats=public_updates_stats,
        pool_size=pool_size,
        pool_refresh=pool_refresh,
        teacher_delay=teacher_delay,
        compression=compression,
        ensembles=ensembles,
        average_every=average_every,
        label_smoothing=label_smoothing,
    )
