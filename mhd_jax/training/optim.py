"""Optimizers as settings: a frozen record that builds an optax transformation.

Any optax transformation may be used instead; with the record a run can be repeated from its
`config.json`, and equal settings share one compiled program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.validation import require_kinds
from mhd_jax.models.pretrained import is_frozen

SCHEDULES = ("cosine", "constant", "step", "decreasing")


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and L2 weight decay on all parameters.

    Attributes:
      learning_rate: the peak rate.
      momentum: β; 0 keeps no buffer.
      nesterov: whether momentum is Nesterov's. None takes the form in the paper of the run's
        algorithm: Nesterov's for gossip and CCL.
      weight_decay: added to the gradient as weight_decay · θ, before the momentum.
      schedule: "cosine" to 0 over the run, "constant", "step": divided by 10 at half and at three
        quarters of the run, or "decreasing": η / (1 + t/100)^¾ whatever the length of the run,
        rates whose sum diverges while the sum of their squares converges (Robbins and Monro,
        1951).
      warmup_steps: W steps of linear warm-up before the schedule: step t < W has (t + 1)/W of the
        peak rate, so that no step has rate 0, and step W is the first of the schedule.
    """

    learning_rate: float = 0.03
    momentum: float = 0.9
    nesterov: bool | None = None
    weight_decay: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0

    def __post_init__(self):
        require_kinds(self)
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

    def rate(self, steps: int, peak: Any = None) -> optax.Schedule:
        """Returns the learning rate as a function of the step, for a run of `steps` steps.

        `peak`, which may be traced, stands for `learning_rate` if it is given.
        """
        peak = self.learning_rate if peak is None else peak
        steps = max(steps - self.warmup_steps, 1)
        if self.schedule == "cosine":
            main = optax.cosine_decay_schedule(peak, steps)
        elif self.schedule == "step":
            main = optax.piecewise_constant_schedule(peak, {steps // 2: 0.1, steps * 3 // 4: 0.1})
        elif self.schedule == "decreasing":

            def main(step: Any) -> Any:
                return peak * (1 + step / 100) ** -0.75
        else:
            main = optax.constant_schedule(peak)
        if not self.warmup_steps:
            return main

        def warmup(step: Any) -> Any:
            return peak * (step + 1) / self.warmup_steps

        return optax.join_schedules([warmup, main], [self.warmup_steps])

    def build(
        self, steps: int, numbers: Mapping[str, jax.Array] | None = None
    ) -> optax.GradientTransformation:
        """Returns the optax transformation for a run of `steps` steps.

        `numbers` are traced values, by name, that stand for those of some settings, and are 0 where
        these are. Without them there is one object per setting.
        """
        return _build_sgd(self, steps, numbers) if numbers else _cached_sgd(self, steps)


def _build_sgd(
    settings: SGD, steps: int, numbers: Mapping[str, jax.Array] = types.MappingProxyType({})
) -> optax.GradientTransformation:
    momentum = numbers.get("momentum", settings.momentum)
    weight_decay = numbers.get("weight_decay", settings.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if settings.weight_decay else optax.identity(),
        optax.trace(momentum, bool(settings.nesterov)) if settings.momentum else optax.identity(),
        _scale_by_rate(settings.rate(steps, numbers.get("learning_rate"))),
    )


_cached_sgd = functools.cache(_build_sgd)


class _RateState(NamedTuple):
    steps: jax.Array
    learning_rate: jax.Array


def _scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns a transformation that scales by −η and keeps the last η, which gossip needs."""

    def init(params: Any) -> _RateState:
        del params
        return _RateState(jnp.zeros((), jnp.int32), jnp.asarray(rate(0), jnp.float32))

    def update(updates: Any, state: _RateState, params: Any = None) -> tuple[Any, _RateState]:
        del params
        now = jnp.asarray(rate(state.steps), jnp.float32)
        scaled = jax.tree.map(lambda u: -now.astype(u.dtype) * u, updates)
        return scaled, _RateState(state.steps + 1, now)

    return optax.GradientTransformation(init, update)


Optimizer: TypeAlias = SGD | optax.GradientTransformation


def resolved(optimizer: Any, nesterov: bool) -> Any:
    """Returns an `SGD` whose `nesterov` is set to the algorithm's default if it is None.

    Other optimizers are returned unchanged.
    """
    if isinstance(optimizer, SGD) and optimizer.nesterov is None:
        return dataclasses.replace(optimizer, nesterov=nesterov)
    return optimizer


def build(optimizer: Any, steps: int) -> optax.GradientTransformation:
    """Returns the optax transformation of an `SGD`, or of a user's own, in a run of `steps` steps.

    Raises:
      ConfigError: `optimizer` is neither. The returned transformation raises `ConfigError`, too,
        if a user's transformation fails.
    """
    if isinstance(optimizer, SGD):
        return optimizer.build(steps)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ConfigError(
            f"an optimizer is mhd_jax.optim.SGD(...) or an optax transformation, not {optimizer!r}."
        )
    return optimizer if isinstance(optimizer, _Guarded) else _guarded(optimizer)


class _Guarded(optax.GradientTransformation):
    """A user's transformation whose exceptions are turned into `ConfigError`."""


@functools.lru_cache(maxsize=64)  # one object per transformation: programs are cached by it
def _guarded(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        with _in_words(params):
            return optimizer.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with _in_words(params):
            return optimizer.update(updates, state, params)

    return _Guarded(init, update)


@contextlib.contextmanager
def _in_words(params: Any) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # optax and users' code may raise any exception
        parts = ", ".join(params) if isinstance(params, Mapping) else "…"
        raise ConfigError(
            f"the optimizer cannot be applied to the clients' parameters, a dictionary of {parts} "
            f"({in_a_line(error)}); it must need gradients, state and "
            "parameters only, and masks or labels must be trees like the parameters, or functions "
            "of them."
        ) from error


@functools.lru_cache(maxsize=64)  # one object per setting: programs are cached by it
def freezing(
    optimizer: optax.GradientTransformation, frozen: tuple[str, ...]
) -> optax.GradientTransformation:
    """Returns the optimizer of all parameters but those that the patterns `frozen` name.

    These are not updated, have no optimizer state, and do not count in norms of gradients.
    """
    if not frozen:
        return optimizer

    def where(is_kept: bool) -> Callable[[Any], Any]:
        def is_so(path: Any, _: Any) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return is_frozen(name, frozen) == is_kept

        return lambda params: jax.tree_util.tree_map_with_path(is_so, params)

    return optax.chain(
        optax.masked(optimizer, where(False)), optax.masked(optax.set_to_zero(), where(True))
    )
