"""The steps at which a run evaluates and saves, and the number of steps in a dispatch."""

from __future__ import annotations

import dataclasses

from mhd_jax.core.validation import require_counts

_SECONDS_PER_DISPATCH = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """The schedule of a run's evaluations and checkpoints, in steps."""

    steps: int
    eval_every: int
    checkpoint_every: int
    per_dispatch: int | None

    @classmethod
    def checked(
        cls, steps: int, eval_every: int, checkpoint_every: int | None, per_dispatch: int | None
    ) -> Plan:
        """Checks the counts and returns the plan; without `checkpoint_every`, evaluations save."""
        checkpoint_every = eval_every if checkpoint_every is None else checkpoint_every
        require_counts(
            checkpoint_every=checkpoint_every,
            steps_per_dispatch=1 if per_dispatch is None else per_dispatch,
        )
        return cls(steps, eval_every, checkpoint_every, per_dispatch)

    def evaluates_at(self, step: int) -> bool:
        """Returns whether an evaluation follows step `step`."""
        return step % self.eval_every == 0 or step == self.steps

    def saves_at(self, step: int) -> bool:
        """Returns whether a checkpoint follows step `step`."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def next_stop(self, step: int) -> int:
        """Returns the first step after `step` at which the host evaluates, saves or ends."""
        every = (self.eval_every, self.checkpoint_every)
        return min(self.steps, *((step // n + 1) * n for n in every))


class Pace:
    """Adapts the number of steps in a dispatch: it hides the overhead, yet stays responsive."""

    def __init__(self, fixed: int | None):
        self._fixed = fixed
        self._next = 4
        self.rate = 0.0

    def steps(self) -> int:
        """Returns the number of steps in the next dispatch."""
        return self._fixed or self._next

    def observe(self, num_steps: int, seconds: float) -> None:
        """Updates the rate from the `seconds` that a dispatch of `num_steps` took."""
        self.rate = num_steps / max(seconds, 1e-9)
        self._next = max(1, min(int(self.rate * _SECONDS_PER_DISPATCH), 8 * self._next))
