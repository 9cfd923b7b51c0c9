"""When a run evaluates and saves, and how many steps a dispatch takes."""

from __future__ import annotations

import dataclasses

from mhd_jax.core.validation import require_counts

_SECONDS_PER_DISPATCH = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run does what: all in steps."""

    steps: int
    eval_every: int
    checkpoint_every: int
    per_dispatch: int | None

    @classmethod
    def checked(
        cls, steps: int, eval_every: int, checkpoint_every: int | None, per_dispatch: int | None
    ) -> Plan:
        """The plan, once its counts are found to be some; without one, evaluations save."""
        checkpoint_every = eval_every if checkpoint_every is None else checkpoint_every
        require_counts(
            checkpoint_every=checkpoint_every,
            steps_per_dispatch=1 if per_dispatch is None else per_dispatch,
        )
        return cls(steps, eval_every, checkpoint_every, per_dispatch)

    def evaluates_at(self, step: int) -> bool:
        """Whether step `step` ends with an evaluation."""
        return step % self.eval_every == 0 or step == self.steps

    def saves_at(self, step: int) -> bool:
        """Whether step `step` ends with a checkpoint."""
        return step % self.checkpoint_every == 0 or step == self.steps

    def next_stop(self, step: int) -> int:
        """The next step after `step` at which the host has something to do."""
        every = (self.eval_every, self.checkpoint_every)
        return min(self.steps, *((step // n + 1) * n for n in every))


class Pace:
    """How many steps a dispatch takes: enough to hide its overhead, few enough to stay responsive."""

    def __init__(self, fixed: int | None):
        self._fixed = fixed
        self._next = 4
        self.rate = 0.0

    def steps(self) -> int:
        """Of the next dispatch."""
        return self._fixed or self._next

    def observe(self, num_steps: int, seconds: float) -> None:
        """Takes note of what a dispatch took."""
        self.rate = num_steps / max(seconds, 1e-9)
        self._next = max(1, min(int(self.rate * _SECONDS_PER_DISPATCH), 8 * self._next))
