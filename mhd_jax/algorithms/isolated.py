"""The two bounds: training each client alone (the MHD paper's "Separate"), and on pooled data.

L_i = CE(z_i(x), y) on the private batch
"""

from __future__ import annotations

from jax import Array

from mhd_jax.algorithms.base import factory, require_label_smoothing
from mhd_jax.core.types import Algorithm, Batch, Metrics, Participants, State
from mhd_jax.training.groups import apply_gradients, init_state, predict, private_gradients


@factory
def isolated(label_smoothing: float = 0.1) -> Algorithm:
    """Returns isolated training, the lower bound: each client learns from its private data alone.

    Args:
      label_smoothing: label smoothing of the private cross-entropy, in [0, 1).
    """
    return _private_only(label_smoothing, pooled=False)


@factory
def supervised(label_smoothing: float = 0.1) -> Algorithm:
    """Returns pooled training, the upper bound: one client learns from all private data.

    It trains on K·B samples per step.

    Args:
      label_smoothing: label smoothing of the cross-entropy, in [0, 1).
    """
    return _private_only(label_smoothing, pooled=True)


def _private_only(label_smoothing: float, pooled: bool) -> Algorithm:
    require_label_smoothing(label_smoothing)

    def init(key: Array, clients: Participants, sample_batch: Batch) -> State:
        return init_state(key, clients, sample_batch, num_heads=1)

    def train_step(state: State, batch: Batch, graph: Array) -> tuple[State, Metrics]:
        del graph

        gradients, stats, losses = private_gradients(state, batch, label_smoothing)
        metrics = Metrics(losses, {}, {"private_loss": losses})
        return apply_gradients(state, gradients, stats), metrics

    return Algorithm(
        init=init,
        train_step=train_step,
        predict=predict,
        message=lambda state, batch, group: {},
        falsifiable=True,
        pooled=pooled,
        needs_everyone="one client holds all the data" if pooled else "",
    )
