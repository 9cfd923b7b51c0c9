"""Optimizers as settings: frozen records that build optax transformations.

Any optax transformation may be used instead; with a record a run can be repeated from its
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


class Recorded:
    """What all records of optimizers share: the schedule of the learning rate, and clipping.

    Attributes:
      learning_rate: the peak rate.
      weight_decay: see each record.
      schedule: "cosine" to 0 over the run, "constant", "step": divided by 10 at half and at three
        quarters of the steps after the warm-up, or "decreasing": η / (1 + t/100)^¾ whatever the
        length of the run, rates whose sum diverges while the sum of their squares converges (Robbins
        and Monro, 1951).
      warmup_steps: W steps of linear warm-up before the schedule: step t < W has (t + 1)/W of the
        peak rate, so that no step has rate 0, and step W is the first of the schedule.
      clip_norm: the largest norm of a client's gradient, to which a longer one is scaled down before
        anything else; None clips nothing.
    """

    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    clip_norm: float | None

    def __post_init__(self):
        require_kinds(self)
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, not {self.learning_rate}.")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0, not {self.weight_decay}.")
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"unknown schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}."
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be at least 0, not {self.warmup_steps}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm must be positive, or be left out, not {self.clip_norm}.")
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name, 0.0)
            if not 0 <= value < 1:
                raise ConfigError(f"{name} must be in [0, 1), not {value}.")

    def rate(self, steps: int, peak: Any = None) -> optax.Schedule:
        """Returns the learning rate as a function of the step, for a run of `steps` steps.

        `peak`, which may be traced, stands for `learning_rate` if it is given.
        """
        peak = self.learning_rate if peak is None else peak
        steps = max(steps - self.warmup_steps, 1)
        if self.schedule == "cosine":
            main = optax.cosine_decay_schedule(peak, steps)
        elif self.schedule == "step":
            main = optax.piecewise_constant_schedule(
                peak, {max(part, 1): 0.1 for part in (steps // 2, steps * 3 // 4)}
            )
        elif self.schedule == "decreasing":

            def main(step: Any) -> Any:
                # Before the end of a warm-up, where this does not count, the step is below 0.
                return peak * (1 + jnp.maximum(step, 0) / 100) ** -0.75
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
        return _build(self, steps, numbers) if numbers else _cached(self, steps)

    def directions(self, number: Callable[[str], Any]) -> list[optax.GradientTransformation]:
        """Returns what makes steps of gradients, but for the rate; `number` gives a setting."""
        raise NotImplementedError

    def decay(self, number: Callable[[str], Any]) -> optax.GradientTransformation:
        """Returns what adds weight_decay · θ, or changes nothing where it is 0."""
        if not self.weight_decay:
            return optax.identity()
        return optax.add_decayed_weights(number("weight_decay"))


@dataclasses.dataclass(frozen=True)
class SGD(Recorded):
    """Stochastic gradient descent with momentum and L2 weight decay on all parameters.

    Attributes:
      learning_rate, schedule, warmup_steps, clip_norm: see `Recorded`.
      momentum: β; 0 keeps no buffer.
      nesterov: whether momentum is Nesterov's. None takes the form in the paper of the run's
        algorithm: Nesterov's for gossip, CCL and IDKD.
      weight_decay: added to the gradient as weight_decay · θ, before the momentum.
    """

    learning_rate: float = 0.03
    momentum: float = 0.9
    nesterov: bool | None = None
    weight_decay: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0
    clip_norm: float | None = None

    def directions(self, number: Callable[[str], Any]) -> list[optax.GradientTransformation]:
        """See `Recorded`."""
        momentum = optax.trace(number("momentum"), bool(self.nesterov))
        return [self.decay(number), momentum if self.momentum else optax.identity()]


@dataclasses.dataclass(frozen=True)
class AdamW(Recorded):
    """Adam with decoupled weight decay: Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101.

    Attributes:
      learning_rate, schedule, warmup_steps, clip_norm: see `Recorded`.
      beta1, beta2: β₁ and β₂, the decay rates of the two moments.
      weight_decay: each step takes η · weight_decay · θ from the parameters, beside Adam's step.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup_steps: int = 0
    clip_norm: float | None = None

    def directions(self, number: Callable[[str], Any]) -> list[optax.GradientTransformation]:
        """See `Recorded`."""
        return [optax.scale_by_adam(number("beta1"), number("beta2")), self.decay(number)]


OPTIMIZERS: dict[str, type[SGD] | type[AdamW]] = {"sgd": SGD, "adamw": AdamW}


def described(record: Recorded) -> dict[str, Any]:
    """Returns the settings of a record; those of SGD have no name, and None is left out."""
    fields = {name: value for name, value in vars(record).items() if value is not None}
    return fields if isinstance(record, SGD) else {"name": type(record).__name__.lower(), **fields}


def _build(
    settings: Recorded, steps: int, numbers: Mapping[str, jax.Array] = types.MappingProxyType({})
) -> optax.GradientTransformation:
    def number(name: str) -> Any:
        return numbers.get(name, getattr(settings, name))

    clips = settings.clip_norm is not None
    return optax.chain(
        *([optax.clip_by_global_norm(number("clip_norm"))] if clips else []),
        *settings.directions(number),
        _scale_by_rate(settings.rate(steps, numbers.get("learning_rate"))),
    )


_cached = functools.cache(_build)


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


Optimizer: TypeAlias = SGD | AdamW | optax.GradientTransformation


def resolved(optimizer: Any, nesterov: bool) -> Any:
    """Returns an `SGD` whose `nesterov` is set to the algorithm's default if it is None.

    Other optimizers are returned unchanged.
    """
    if isinstance(optimizer, SGD) and optimizer.nesterov is None:
        return dataclasses.replace(optimizer, nesterov=nesterov)
    return optimizer


def build(optimizer: Any, steps: int) -> optax.GradientTransformation:
    """Returns the optax transformation of a record, or a user's own, in a run of `steps` steps.

    Raises:
      ConfigError: `optimizer` is neither. The returned transformation raises `ConfigError`, too,
        if a user's transformation fails.
    """
    if isinstance(optimizer, Recorded):
        return optimizer.build(steps)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ConfigError(
            f"an optimizer is mhd_jax.optim.SGD(...), mhd_jax.optim.AdamW(...) or an optax "
            f"transformation, not {optimizer!r}."
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
