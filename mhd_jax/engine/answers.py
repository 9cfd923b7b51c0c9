"""Predictions of a run's clients on samples given after the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from mhd_jax.core import multihost
from mhd_jax.core.client_axis import Execution
from mhd_jax.core.types import PyTree, State
from mhd_jax.data import tokens
from mhd_jax.data.dataset import take
from mhd_jax.data.kinds import kept_as
from mhd_jax.data.preprocessing import Preparation
from mhd_jax.data.texts import Vocabulary, texts_in
from mhd_jax.engine import steps


@dataclasses.dataclass(frozen=True)
class Answers:
    """Computes a run's logits on given samples, without a reference to the run's data.

    Attributes:
      predict: the algorithm's `predict`.
      preparation: turns stored samples into model inputs.
      execution: how the client axis is computed.
      kind: the shape and type of one sample as the data set stores it.
      dataset: the data set's name.
      vocabulary_size: V of samples that are tokens in 0 … V − 1; None for others.
      vocabulary: what numbers the words of texts, where samples are texts; None for others.
    """

    predict: Callable[[State, PyTree], Array]
    preparation: Preparation
    execution: Execution
    kind: PyTree
    dataset: str
    vocabulary_size: int | None = None
    vocabulary: Vocabulary | None = None

    def __call__(self, state: State, inputs: PyTree) -> np.ndarray:
        """Returns logits [K, N, H, C] of all clients on samples in the data set's input form.

        For a regression they are the predicted numbers [K, N, H, D] in their own units.

        Raises:
          ConfigError: samples as `stored` refuses them.
        """
        stored = self.stored(inputs)
        if len(jax.tree.leaves(stored)[0]) == 0:
            one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), self.kind)
            logits = jax.eval_shape(self._answer, state, one)
            return np.zeros((logits.shape[0], 0, *logits.shape[2:]), logits.dtype)
        return state.task.in_own_units(multihost.fetch(self._answer(state, stored)))

    def stored(self, inputs: PyTree) -> PyTree:
        """Returns samples [N, ...] as the data set stores its own: images read, texts as tokens.

        Raises:
          ConfigError: samples of other shapes or types than the data set's, or tokens beyond its
            vocabulary.
        """
        if self.vocabulary is not None and (texts := texts_in(inputs)) is not None:
            inputs = self.vocabulary(texts)
        found = kept_as(self.kind, inputs, "inputs", self.dataset)
        count = len(jax.tree.leaves(found)[0])
        if count and self.vocabulary_size is not None:
            tokens.vocabulary_size([found], self.vocabulary_size)
        return take(found, np.arange(count))  # which reads lazily stored images

    def _answer(self, state: State, inputs: PyTree) -> Array:
        return steps.answers(
            state,
            inputs,
            predict=self.predict,
            preparation=self.preparation,
            execution=self.execution,
        )

    def on_one_device(self) -> Answers:
        """Returns a copy that computes on one device of this process, not on the run's mesh."""
        return dataclasses.replace(self, execution=dataclasses.replace(self.execution, mesh=None))


def portable(state: State) -> State:
    """Returns a copy of `state` on the host, without optimizers and optimizer states."""
    groups = tuple(
        dataclasses.replace(group, optimizer=None, opt_state=()) for group in state.groups
    )
    state = dataclasses.replace(state, groups=groups)
    return jax.tree.map(
        lambda a: a if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else multihost.fetch(a),
        state,
    )
