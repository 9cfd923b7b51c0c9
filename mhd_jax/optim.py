"""Optimizers as settings: a frozen description that builds an optax transformation.

Any optax transformation may stand in its place; a description adds that a run can be
repeated from its `config.json`, and that equal settings share a compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeAlias

import optax

from mhd_jax.errors import ConfigError

SCHEDULES = ("cosine", "constant", "step")


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and L2 weight decay on all parameters.

    Attributes:
      learning_rate: the peak rate.
      momentum: β; 0 keeps no buffer.
      nesterov: whether the step looks ahead along the momentum.
      weight_decay: added to the gradient as weight_decay · θ, before the momentum.
      schedule: "cosine" to 0 over the run, "constant", or "step": divided by 10 at half
        and at three quarters of the run.
      warmup_steps: steps of linear warm-up from 0, taken from the schedule's start.
    """

    learning_rate: float = 0.03
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, not {self.learning_rate}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be in [0, 1), not {self.momentum}.")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0, not {self.weight_decay}.")
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"unknown schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}."
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be at least 0, not {self.warmup_steps}.")

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps` steps."""
        steps = max(steps - self.warmup_steps, 1)
        if self.schedule == "cosine":
            main = optax.cosine_decay_schedule(self.learning_rate, steps)
        elif self.schedule == "step":
            main = optax.piecewise_constant_schedule(
                self.learning_rate, {steps // 2: 0.1, steps * 3 // 4: 0.1}
            )
        else:
            main = optax.constant_schedule(self.learning_rate)
        if not self.warmup_steps:
            return main
        warmup = optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, main], [self.warmup_steps])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps; equal settings give the same object."""
        return _build_sgd(self, steps)


@functools.cache
def _build_sgd(settings: SGD, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay)
        if settings.weight_decay
        else optax.identity(),
        optax.sgd(settings.rate(steps), settings.momentum or None, settings.nesterov),
    )


Optimizer: TypeAlias = SGD | optax.GradientTransformation


def build(optimizer: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optax transformation that `optimizer` stands for in a run of `steps` steps."""
    return optimizer.build(steps) if isinstance(optimizer, SGD) else optimizer
